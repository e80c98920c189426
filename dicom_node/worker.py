"""Takes each series in the spool through its steps: complete, scored, reported, returned, removed."""

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from dicom_node import metrics
from dicom_node.failures import GivenUp, Later
from dicom_node.objects import make_objects
from dicom_node.revisions import RevisionFolder
from dicom_node.score import Answer, Scorer
from dicom_node.settings import Settings
from dicom_node.spool import Spool

LOG: Final = logging.getLogger(__name__)

Send = Callable[[Sequence[Path]], None]
"""Sends DICOM files to the PACS. Raises Later and GivenUp."""
_PAUSE: Final = 0.2
"""Seconds between two looks at the spool."""


class Worker:
    """Works on the series of a spool, one step at a time."""

    def __init__(self, settings: Settings, spool: Spool, scorer: Scorer, send: Send) -> None:
        self._settings = settings
        self._spool = spool
        self._scorer = scorer
        self._send = send
        self._arrivals: dict[str, float] = {}
        """The last arrival of each series that its next attempt was planned from."""
        self._due: dict[str, float] = {}
        """When to look at each series next."""
        self._failing: dict[str, tuple[float, int]] = {}
        """Since when each series fails, and how often it did."""
        self._answers: dict[str, dict[str, Answer]] = {}
        """Answers of series that are not scored completely."""
        self._returned: set[str] = set()
        """Series with nothing to do unless another slice comes."""
        self._step = ""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set. A step that has begun is finished."""
        while not stop.wait(_PAUSE):
            for key in self.plan():
                if stop.is_set():
                    return
                self.attempt(key)
            self._update_metrics()

    def plan(self) -> list[str]:
        """The series that are due now."""
        present = self._spool.series()
        for key in set(self._arrivals) - set(present):
            self._forget(key)
        for key in present:
            arrival = self._spool.last_arrival(key)
            if self._arrivals.get(key) != arrival:
                self._arrivals[key] = arrival
                self._returned.discard(key)
                self._due[key] = arrival + self._settings.quiet_seconds
        now = time.monotonic()
        return [key for key in present if self._due[key] <= now]

    def attempt(self, key: str) -> None:
        """Take a series as far as it goes."""
        self._step = "score"
        try:
            self._advance(key)
        except Later as later:
            self._postpone(key, str(later), later.wait)
        except OSError as error:
            self._postpone(key, f"the spool can't be read or written: {error.strerror}", None)
        except GivenUp as reason:
            self._bury(key, str(reason))
        except Exception as error:  # noqa: BLE001 - one series must not stop the others; the text may quote a header
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._bury(key, f"internal error: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}")

    def _advance(self, key: str) -> None:
        """Work on the newest revision of a series, or make the next one of slices that came late."""
        revision = RevisionFolder.newest(self._spool, key)
        if revision is None or revision.returned_at() is not None:
            made = RevisionFolder.close(self._spool, key, self._settings.max_slices)
            if made is None:
                assert revision is not None  # a series has slices
                self._remove_if_old(key, revision)
                return
            revision = made
            LOG.info("series %s is complete: revision %d, %s", key, revision.number, revision.read().choice.rule)
        if revision.read().choice.slices:
            self._return_results(key, revision)
        else:
            LOG.info("series %s has localizers only; nothing is returned", key)
        revision.mark_returned()
        self._returned.add(key)
        self._failing.pop(key, None)
        self._due[key] = time.monotonic() + self._settings.keep_seconds

    def _return_results(self, key: str, revision: RevisionFolder) -> None:
        """Score, report and send a revision. Each step that an earlier attempt has ended is left out."""
        result = revision.result()
        if result is None:
            known = self._answers.setdefault(key, {})
            result = self._scorer.score(revision.read().choice, revision.slice_path, known)
            revision.write_result(result)
            LOG.info("series %s is scored", key)
        self._answers.pop(key, None)
        self._step = "report"
        if not revision.objects():
            revision.write_objects(make_objects(revision, result))
        self._step = "send"
        self._send(revision.objects())
        metrics.RETURNED.inc()
        LOG.info("series %s is returned: revision %d", key, revision.number)

    def _remove_if_old(self, key: str, revision: RevisionFolder) -> None:
        """Remove a returned series after `keep_seconds`, unless slices have come since."""
        self._returned.add(key)
        left = (revision.returned_at() or 0) + self._settings.keep_seconds - time.time()
        if left > 0:
            self._due[key] = time.monotonic() + left
        elif self._spool.remove(key, list(revision.read().names)):
            self._forget(key)

    def _postpone(self, key: str, reason: str, wait: float | None) -> None:
        now = time.monotonic()
        since, attempts = self._failing.get(key, (now, 0))
        self._failing[key] = since, attempts + 1
        if now - since > self._settings.give_up_seconds:
            self._bury(key, reason)
            return
        metrics.FAILED.labels(self._step).inc()
        pause = min(2.0 ** min(attempts, 20), self._settings.longest_wait_seconds)
        pause = max(pause, wait or 0)
        self._due[key] = now + pause
        LOG.warning("series %s waits %.0f s: %s", key, pause, reason)

    def _bury(self, key: str, reason: str) -> None:
        metrics.FAILED.labels(self._step).inc()
        try:
            self._spool.bury(key, reason)
        except OSError as error:
            pause = self._settings.longest_wait_seconds
            self._due[key] = time.monotonic() + pause
            LOG.error(
                "series %s waits %.0f s: %s; can't move it to the dead letters: %s", key, pause, reason, error.strerror
            )
            return
        way = f"{sys.executable} -m dicom_node retry {key}"
        LOG.error("series %s is a dead letter: %s; try again with: %s", key, reason, way)
        self._forget(key)

    def _forget(self, key: str) -> None:
        self._arrivals.pop(key, None)
        self._due.pop(key, None)
        self._failing.pop(key, None)
        self._answers.pop(key, None)
        self._returned.discard(key)

    def _update_metrics(self) -> None:
        waiting = [key for key in self._arrivals if key not in self._returned]
        metrics.SPOOL_BYTES.set(self._spool.used_bytes)
        metrics.SPOOL_SERIES.set(len(waiting))
        metrics.DEAD_LETTERS.set(self._spool.dead_letters())
        oldest = min((self._arrivals[key] for key in waiting), default=None)
        metrics.OLDEST_SECONDS.set(0 if oldest is None else time.monotonic() - oldest)
