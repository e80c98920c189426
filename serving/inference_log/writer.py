"""Writes the inference log beside the requests: the event loop notes predictions, and a thread writes them in parts.

A part is a Parquet file that appears whole, in the folder of its day: date=2026-11-29/TIME-HOST-PROCESS-NUMBER.parquet.
"""

import itertools
import logging
import os
import socket
import threading
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from chestct.buckets import SCHEMES, Store, is_url
from chestct.card import ModelCard
from chestct.file_errors import CannotGoOn
from chestct.image import Facts
from chestct.prediction import Prediction
from chestct.tables import Row
from serving.inference_log.rows import Noted, day_of, to_parquet, to_row
from serving.settings import Settings
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord

END_SECONDS: Final = 4.0
"""Most seconds that a stopping worker waits for its last rows. Kubernetes allows five after the slowest request."""
_RETRY_FOR: Final = timedelta(seconds=2)
"""Time in which obstore itself tries a failed request to a bucket again."""
_WAKE_SECONDS: Final = 0.5
"""Seconds between two looks at the waiting predictions."""
_PAUSE_SECONDS: Final = 5.0
"""Seconds between two tries while the folder or the bucket fails."""

_log = logging.getLogger(__name__)


class _Part(NamedTuple):
    name: str
    content: bytes
    rows: int


class InferenceLog:
    """The log of one worker. `note` is for its event loop; all else happens in a thread of its own."""

    def __init__(self, place: str, card: ModelCard, settings: Settings) -> None:
        """`place` is the URL of a bucket or a folder, which is made. Raises CannotGoOn if it can't be used."""
        if "://" in place and not is_url(place):
            raise CannotGoOn(f"{place}: expected a folder, or the URL of a bucket with {', '.join(SCHEMES)}")
        self._store = Store(place, make=True, retry_for=_RETRY_FOR)
        if not is_url(place) and not os.access(Path(place), os.W_OK | os.X_OK):
            raise CannotGoOn(f"{place}: this folder can't be written")
        self._card: Final = card
        self._most_rows: Final = settings.inference_log_rows
        self._part_seconds: Final = settings.inference_log_seconds
        self._waiting: Final[deque[Noted]] = deque()
        self._taken: Final[list[Row]] = []
        """Rows of the open part. The thread alone uses them and the closed parts."""
        self._parts: Final[deque[_Part]] = deque()
        self._held = 0
        """Rows that the thread holds: those of the open part and of the closed ones."""
        self._close_at = 0.0
        self._try_at = 0.0
        self._failing = False
        self._numbers: Final = itertools.count(1)
        self._stop: Final = threading.Event()
        self._end_at = 0.0
        self._thread: Final = threading.Thread(target=self._run, name="inference_log", daemon=True)
        self._thread.start()

    def note(self, record: RequestRecord, image: int, sha256: str, facts: Facts | None, prediction: Prediction) -> None:
        """Take a row for a prediction, or count it as dropped if too many wait. Never waits.

        `image` is its place in the request. `sha256` is of the file or of the pixels.
        """
        if len(self._waiting) + self._held >= self._most_rows:
            metrics.LOG_ROWS_DROPPED.inc()
            return
        if prediction.heatmaps is not None:
            prediction = prediction.model_copy(update={"heatmaps": None, "preview": None})
        noted = Noted(time.time(), record.request_id, record.protocol, image, sha256, facts, prediction)
        self._waiting.append(noted)

    def close(self) -> None:
        """Write all rows and end the thread. After END_SECONDS the rest is dropped and counted."""
        self._end_at = time.monotonic() + END_SECONDS
        self._stop.set()
        self._thread.join(END_SECONDS + _WAKE_SECONDS)
        if left := len(self._waiting) + self._held:
            metrics.LOG_ROWS_DROPPED.inc(left)
            _log.warning("the inference log loses its last %d rows: %s", left, self._store.place)

    def _run(self) -> None:
        while not self._stop.wait(_WAKE_SECONDS):
            self._take()
            now = time.monotonic()
            if self._taken and (now >= self._close_at or 2 * len(self._taken) >= self._most_rows):
                self._close_part()
            if self._parts and now >= self._try_at:
                self._write()
        self._take()
        self._close_part()
        while self._parts and time.monotonic() < self._end_at:
            self._write()
            if self._parts:
                time.sleep(_WAKE_SECONDS)

    def _take(self) -> None:
        """Move what waits into the open part, which begins with its first row."""
        while self._waiting:
            if not self._taken:
                self._close_at = time.monotonic() + self._part_seconds
            self._held += 1  # before it leaves the queue, so that no moment counts it nowhere
            self._taken.append(to_row(self._card, self._waiting.popleft()))

    def _close_part(self) -> None:
        """Turn the open part into a file for each day. Then its name and its bytes stay, however often it is tried."""
        for day, rows_of_day in itertools.groupby(self._taken, day_of):
            rows = list(rows_of_day)
            name = f"date={day.isoformat()}/{self._unique_name()}.parquet"
            self._parts.append(_Part(name, to_parquet(self._card, rows), len(rows)))
        self._taken.clear()

    def _unique_name(self) -> str:
        """A name that no other worker on any machine gives."""
        now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return f"{now}-{socket.gethostname()}-{os.getpid()}-{next(self._numbers)}"

    def _write(self) -> None:
        """Write the closed parts in order. The first failure ends this try, and is logged once until it goes well."""
        try:
            while self._parts:
                part = self._parts[0]
                self._store.put_if_absent(part.name, part.content)  # if it is there, a lost answer hid an earlier try
                self._parts.popleft()
                self._held -= part.rows
                metrics.LOG_ROWS.inc(part.rows)
        except CannotGoOn as error:
            self._try_at = time.monotonic() + _PAUSE_SECONDS
            if not self._failing:
                _log.warning("rows of the inference log wait, and some may be dropped: %s", error)
            self._failing = True
            return
        if self._failing:
            _log.warning("the inference log is written again: %s", self._store.place)
        self._failing = False
