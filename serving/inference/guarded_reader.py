"""Files that only a process of their own may decode: who is next, what is tried again, and whose fault a failure is."""

import asyncio
import contextlib
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from chestct.card import InputSpec
from chestct.image import InvalidImage, Picture
from serving.inference.fair_lock import FairLock
from serving.inference.reader_process import SECONDS, Cause, Ended, ReaderProcess
from serving.inference.window import Window
from serving.telemetry import metrics
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed

MOST_WAITING: Final = 8
"""Requests whose files wait; more are told to come back later."""
_SHORTEST: Final = 2
"""Seconds that a file may take however little time its request has left: a new process costs nearly as much."""
_BY_THE_FILE: Final = {
    Cause.CRASHED: ("undecodable_image", "the file is corrupt: its decoder failed"),
    Cause.OUT_OF_TIME: ("undecodable_image", "the file takes more time to decode than is allowed"),
    Cause.OUT_OF_MEMORY: ("image_too_large", "the file takes more memory to decode than is allowed"),
}


class ReaderFailed(Closed):
    """The process that decodes such files ended, twice, and not by this file: it may be sent again."""


class Reading(NamedTuple):
    picture: Picture
    waited: float
    """Seconds until its turn."""
    seconds: float
    """It took then."""


class GuardedReader:
    """Decodes one file at a time in a process that is started by the first. Used from one event loop."""

    def __init__(self, spec: InputSpec) -> None:
        self._spec = spec
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reader", initializer=_block_signals)
        self._process = ReaderProcess()
        self._turns = FairLock(MOST_WAITING)

    @property
    def process(self) -> int | None:
        """The id of the process, where one runs."""
        return self._process.id

    async def read(self, data: bytes, call: RequestRecord, window: Window | None = None) -> Reading:
        """The picture in a DICOM file, if with a window, or in a PNG or JPEG.

        A process that ended is replaced, and the file tried once more. Raises InvalidImage as chestct.dicom.read and
        chestct.image.decode do, and for what ends a new process too, or used up its time; ReaderFailed where it was not
        the file that ended it; Overloaded and Closed.
        """
        came = time.monotonic()
        await self._turns.enter(call)
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        running = self._thread.submit(self._read, data, window, call.deadline)

        def leave(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._turns.leave)

        running.add_done_callback(leave)  # also when nobody waits for it any more
        picture = await asyncio.wrap_future(running)
        return Reading(picture, began - came, time.monotonic() - began)

    async def close(self) -> None:
        """Refuse what waits, finish the file that is being read, then end the process."""
        self._turns.close()
        await asyncio.to_thread(self._thread.shutdown)
        await asyncio.to_thread(self._process.stop)

    def _read(self, data: bytes, window: Window | None, deadline: float) -> Picture:
        for attempt in (1, 2):
            remaining = deadline - time.monotonic()
            try:
                return self._process.decode(data, self._spec, window, min(SECONDS, max(_SHORTEST, remaining)))
            except Ended as ended:
                metrics.READER_RESTARTS.labels(ended.cause).inc()
                if ended.cause is Cause.OUT_OF_TIME or (attempt == 2 and ended.cause in _BY_THE_FILE):
                    raise InvalidImage(*_BY_THE_FILE[ended.cause]) from None
                if remaining < 0:
                    break
        raise ReaderFailed("the process that decodes such files ended, and not by this file: send it again")


def _block_signals() -> None:
    """What this thread blocks is blocked in the process it starts, from its first instruction on.

    BentoML's supervisor sends SIGTERM to a worker's children too, while the worker still answers.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
