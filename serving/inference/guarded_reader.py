"""Decoding in the guarded process: the order of the files, the retries, and the blame for a failure."""

import asyncio
import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from chestct.card import InputSpec
from chestct.image import Picture
from chestct.invalid_image import InvalidImage
from serving.inference.fair_lock import FairLock
from serving.inference.reader_process import MAX_SECONDS, Cause, ProcessEnded, ReaderProcess
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed

MOST_WAITING: Final = 8
"""Requests with waiting files. Further requests are refused as Overloaded."""
MIN_SECONDS: Final = 2
"""Seconds that a file gets even if its request has less left. A restart of the process costs nearly as much."""
_FAULTS_OF_THE_FILE: Final = {
    Cause.CRASHED: ("undecodable_image", "the file is corrupt: its decoder failed"),
    Cause.OUT_OF_TIME: ("undecodable_image", "the file takes more time to decode than is allowed"),
    Cause.OUT_OF_MEMORY: ("image_too_large", "the file takes more memory to decode than is allowed"),
}


class ReaderFailed(Closed):
    """The guarded process ended twice, and not because of this file. The client may send the file again."""


class Reading(NamedTuple):
    picture: Picture
    waited: float
    """Seconds before decoding."""
    seconds: float
    """Seconds of decoding."""


class GuardedReader:
    """Decodes one file at a time in the guarded process, which starts with the first. Use it from one event loop."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=_block_signals)
        self._process = ReaderProcess()
        self._lock = FairLock(MOST_WAITING)

    async def read(self, data: bytes, record: RequestRecord) -> Reading:
        """Decode a DICOM file, a PNG or a JPEG.

        If the process ends, a new one tries the file once more. Raises InvalidImage like chestct.dicom.read and
        chestct.image.decode, and also if the file ends both processes or uses up its time. Raises ReaderFailed if the
        process ended for another reason. Raises Overloaded and Closed like FairLock.
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
        picture = await asyncio.wrap_future(running)
        return Reading(picture, began - arrived, time.monotonic() - began)

    async def close(self) -> None:
        """Refuse the waiting files, finish the current one, and end the process."""
        self._lock.close()
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._process.stop)

    def _read(self, data: bytes, deadline: float) -> Picture:
        for attempt in (1, 2):
            remaining = deadline - time.monotonic()
            try:
                return self._process.decode(data, self._spec, min(MAX_SECONDS, max(MIN_SECONDS, remaining)))
            except ProcessEnded as ended:
                metrics.READER_RESTARTS.labels(ended.cause).inc()
                if ended.cause is Cause.OUT_OF_TIME or (attempt == 2 and ended.cause in _FAULTS_OF_THE_FILE):
                    raise InvalidImage(*_FAULTS_OF_THE_FILE[ended.cause]) from None
                if remaining < 0:
                    break
        raise ReaderFailed("the process that decodes such files ended, and not by this file: send it again")


def _block_signals() -> None:
    """Block signals in this thread, and so in the process that it starts.

    BentoML's supervisor sends SIGTERM also to the children of a worker, while the worker still answers.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
