"""Adaptive batching in one process: while the engine is busy the next batch grows."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # the runtime is heavy, and BentoML's supervisor imports this module too
    from chestct.engine import Scores

_PACE_MEMORY: Final = 0.2
"""Weight of the newest batch in the running mean of seconds an image takes."""


class Overloaded(RuntimeError):
    """The queue is full; `retry_after` is how many seconds it takes to empty at the engine's recent pace."""

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many images are waiting, try again in {retry_after:.1f} seconds")
        self.retry_after = retry_after


class Closed(RuntimeError):
    """The service is shutting down and takes no more images."""


class EngineFailed(RuntimeError):
    """The engine could not score a batch; its cause is chained. Every image of that batch gets this, no other does."""


class Score(NamedTuple):
    """One image's share of chestct.engine.Scores."""

    probabilities: NDArray[np.float32]
    """[classes], calibrated, sums to 1."""
    ood_score: float
    heatmap: NDArray[np.float32]
    """[classes, h, w] in logits."""


class BatchReport(NamedTuple):
    """What one batch was like, for the metrics."""

    size: int
    waited: tuple[float, ...]
    """Seconds each image spent in the queue."""
    seconds: float
    """The engine took for the batch."""


@dataclass(eq=False, slots=True)  # two items are never equal, whatever their pixels
class _Item:
    pixels: NDArray[np.uint8]
    score: asyncio.Future[Score]
    queued_at: float


class Batcher:
    """A bounded queue before an engine that runs one batch at a time in a thread of its own.

    An idle engine takes whatever is queued at once, so nobody waits for a batch to fill. Used from one event loop.
    """

    def __init__(
        self,
        infer: Callable[[NDArray[np.uint8]], Scores],
        *,
        largest_batch: int,
        queue_size: int,
        report: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        """`infer` takes uint8 [N, height, width, 1] with N of at most `largest_batch`; `report` is told each batch."""
        self._infer = infer
        self._largest_batch = largest_batch
        self._queue_size = queue_size
        self._report = report
        self._queue: deque[_Item] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._busy = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._seconds_per_image = 0.0

    @property
    def depth(self) -> int:
        """Images waiting, without those in the engine."""
        return len(self._queue)

    def check_room(self, coming: int = 0) -> None:
        """Raise Closed, or Overloaded where the queue and the `coming` images beside it leave no place for one more."""
        if self._closed:
            raise Closed("the service is shutting down")
        waiting = len(self._queue) + coming
        if waiting >= self._queue_size:
            raise Overloaded(waiting * self._seconds_per_image)

    async def score(self, pixels: NDArray[np.uint8]) -> Score:
        """Score one image, uint8 [height, width, 1].

        Cancelled while it waits, it leaves the queue. Raises Overloaded, Closed or EngineFailed.
        """
        self.check_room()
        loop = asyncio.get_running_loop()
        item = _Item(pixels, loop.create_future(), time.perf_counter())
        self._queue.append(item)
        if not self._busy:
            # Not at once: what else arrives in this turn of the loop joins the batch.
            self._busy = True
            self._idle.clear()
            loop.call_soon(self._start_batch)
        try:
            return await item.score
        except asyncio.CancelledError:
            if item in self._queue:
                self._queue.remove(item)
            raise

    async def close(self) -> None:
        """Refuse new images, finish those that wait, end the engine's thread."""
        self._closed = True
        await self._idle.wait()
        self._thread.shutdown()

    def _start_batch(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(self._largest_batch, len(self._queue)))]
        if not batch:
            self._busy = False
            self._idle.set()
            return
        started = time.perf_counter()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, [item.pixels for item in batch])
        running.add_done_callback(lambda done: self._finish_batch(batch, started, done))

    def _run(self, pixels: list[NDArray[np.uint8]]) -> list[Score]:
        scores = self._infer(np.stack(pixels))
        return [
            Score(probabilities, float(ood_score), heatmap)
            for _, probabilities, ood_score, heatmap in zip(pixels, *scores, strict=True)
        ]

    def _finish_batch(self, batch: list[_Item], started: float, done: asyncio.Future[list[Score]]) -> None:
        seconds = time.perf_counter() - started
        pace = seconds / len(batch)
        self._seconds_per_image += (_PACE_MEMORY if self._seconds_per_image else 1) * (pace - self._seconds_per_image)
        self._report(BatchReport(len(batch), tuple(started - item.queued_at for item in batch), seconds))
        error = done.exception()
        for index, item in enumerate(batch):
            if item.score.done():
                continue
            if error is not None:
                failure = EngineFailed(f"the engine could not score a batch of {len(batch)}: {error}")
                failure.__cause__ = error
                item.score.set_exception(failure)
            else:
                item.score.set_result(done.result()[index])
        self._start_batch()
