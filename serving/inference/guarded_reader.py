"""Decoding in the guarded process for requests: the order of the files, and the refusals while many wait."""

import asyncio
import contextlib
import hashlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from chestct.card import InputSpec
from chestct.guarded_decoding import GuardedProcessFailed, decode_guarded
from chestct.image import Picture
from chestct.reader_process import Cause, ReaderProcess
from serving.inference.fair_lock import FairLock
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed

MOST_WAITING: Final = 8
"""Requests with waiting files. Further requests are refused as Overloaded."""


class ReaderFailed(Closed):
    """The guarded process ended twice, and not because of this file. The client may send the file again."""


class Reading(NamedTuple):
    picture: Picture
    waited: float
    """Seconds before decoding."""
    seconds: float
    """Seconds of decoding."""
    sha256: str | None
    """Of the file, if the reader hashes."""


class GuardedReader:
    """Decodes one file at a time in the guarded process, which starts with the first. Use it from one event loop."""

    def __init__(self, spec: InputSpec, *, hashing: bool = False) -> None:
        """`hashing`: also make the files' SHA-256."""
        self._spec = spec
        self._hashing = hashing
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=_block_signals)
        self._process = ReaderProcess()
        self._lock = FairLock(MOST_WAITING)

    async def read(self, data: bytes, record: RequestRecord) -> Reading:
        """Decode a DICOM file, a PNG or a JPEG.

        Raises InvalidImage like chestct.guarded_decoding.decode_guarded, ReaderFailed for its GuardedProcessFailed, and
        Overloaded and Closed like FairLock.
        """
        arrived = time.monotonic()
        await self._lock.acquire(record)
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        running = self._thread.submit(self._read, data, record.deadline)

        def release(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._lock.release)

        running.add_done_callback(release)  # also if the request was cancelled
        picture, sha256 = await asyncio.wrap_future(running)
        return Reading(picture, began - arrived, time.monotonic() - began, sha256)

    async def close(self) -> None:
        """Refuse the waiting files, finish the current one, and end the process."""
        self._lock.close()
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._process.stop)

    def _read(self, data: bytes, deadline: float) -> tuple[Picture, str | None]:
        try:
            picture = decode_guarded(self._process, data, self._spec, deadline, _count_restart)
        except GuardedProcessFailed as failed:
            raise ReaderFailed(f"{failed}: send it again") from None
        return picture, hashlib.sha256(data).hexdigest() if self._hashing else None


def _count_restart(cause: Cause) -> None:
    metrics.READER_RESTARTS.labels(cause).inc()


def _block_signals() -> None:
    """Block signals in this thread, and so in the process that it starts.

    BentoML's supervisor sends SIGTERM also to the children of a worker, while the worker still answers.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
