"""Adaptive batching: while the engine is busy the next batch grows, or goes to another worker whose engine idles."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.unavailable import Closed, Overloaded

if TYPE_CHECKING:  # the runtime is heavy, and BentoML's supervisor imports this module too
    from chestct.engine import Scores
    from serving.inference.engine_sharing import EngineSharing

_PACE_MEMORY: Final = 32
"""Batches whose mean tells how long an image takes: so many that one pause of the process says little."""
PATIENCE: Final = 0.5
"""Of the time until its deadline an image may be expected to wait. What misses its deadline was work for nothing."""


class EngineFailed(RuntimeError):
    """The engine could not score a batch; its cause is chained. Every image of that batch gets this, no other does."""


class PeerLost(RuntimeError):
    """Another worker did not give back a batch that it was lent."""


Row = tuple[NDArray[np.float32], np.float32, NDArray[np.float32]]
"""One image of chestct.engine.Scores."""
Pixels = NDArray[np.uint8]
"""One image, [height, width, 1]."""


class Score(NamedTuple):
    """One image's share of chestct.engine.Scores."""

    probabilities: NDArray[np.float32]
    """[classes], calibrated, sums to 1."""
    ood_score: float
    heatmap: NDArray[np.float32]
    """[classes, h, w] in logits."""
    waited: float
    """Seconds in the queue."""
    seconds: float
    """The engine took for its batch."""


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
    deadline: float
    queued_at: float
    at_home: bool = False
    """Another worker had it and was lost: this one computes it."""


class Batcher:
    """A bounded queue before an engine that runs one batch at a time in a thread of its own.

    An idle engine takes whatever is queued at once, so nobody waits for a batch to fill; what it leaves goes to
    others that idle. Used from one event loop.
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
        self._engaged = 0
        """Batches in the thread or before it: at most one of this queue's, and those of other workers."""
        self._lent = 0
        """Batches of this queue that other workers have."""
        self._due = False
        """`_start_batches` will run in this turn of the loop."""
        self._closed = False
        self._others: EngineSharing | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._recent: deque[tuple[float, int]] = deque(maxlen=_PACE_MEMORY)
        """Seconds and images of the last batches."""
        self._pace = 0.0
        """Seconds an image takes of late."""
        self._backlog_since = math.inf
        """When the last batch ended, if more was to be done then."""
        self.busy_since = math.inf
        """When the batch that is in the engine began, on time.monotonic's clock; infinity while there is none."""
        self.decoding = 0
        """Images that are made ready for the queue. They have their place in it, and their time is part of the pace."""

    def check_room(self, deadline: float = math.inf) -> None:
        """Raise Closed, or Overloaded where there is no place for one more image.

        There is none either where its answer would come late for its deadline, on time.monotonic's clock.
        """
        if self._closed:
            raise Closed("the service is shutting down")
        waiting = len(self._queue) + self.decoding
        seconds = waiting * self._pace
        known = len(self._recent) == _PACE_MEMORY
        if waiting >= self._queue_size or (known and seconds > PATIENCE * max(0, deadline - time.monotonic())):
            raise Overloaded(seconds)

    async def score(self, pixels: NDArray[np.uint8], deadline: float = math.inf, *, admitted: bool = False) -> Score:
        """Score one image, uint8 [height, width, 1].

        `admitted`: it was counted in `decoding` until now, so it has its place, and what came after it does not delay
        it. Cancelled while it waits, it leaves the queue. Raises Overloaded, unless admitted, Closed, EngineFailed, and
        TimeoutError where the deadline, on time.monotonic's clock, passes before the engine takes it.
        """
        if not admitted:
            self.check_room(deadline=deadline)
        elif self._closed:
            raise Closed("the service is shutting down")
        loop = asyncio.get_running_loop()
        item = _Item(pixels, loop.create_future(), deadline, time.monotonic())
        self._queue.append(item)
        if not self._due and (self._others or not self._engaged):
            # Not at once: what else arrives in this turn of the loop joins the batch.
            self._due = True
            self._idle.clear()
            loop.call_soon(self._start_batches)
        try:
            return await item.score
        except asyncio.CancelledError:
            if item in self._queue:
                self._queue.remove(item)
            raise

    async def close(self) -> None:
        """Refuse new images, finish those that wait, end the engine's thread."""
        self._closed = True
        self._announce()
        await self._idle.wait()
        self._thread.shutdown()

    def share(self, others: EngineSharing) -> None:
        """Give what waits to others that idle, too, and tell them when this engine does."""
        self._others = others
        self._announce()

    async def lend(self, pixels: Sequence[Pixels]) -> list[Row]:
        """Run another worker's batch, past this queue. Raises what the engine does, and RuntimeError once closed."""
        self._engaged += 1
        self._idle.clear()
        self._announce()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, pixels)
        finally:
            self._engaged -= 1
            self._start_batches()

    def _start_batches(self) -> None:
        self._due = False
        if not self._engaged and (batch := self._next_batch()):
            self._engaged += 1
            running = asyncio.get_running_loop().run_in_executor(self._thread, self._run, [one.pixels for one in batch])
            self._follow(batch, running, at_home=True)
        while self._others and self._queue and not self._queue[0].at_home:
            worker = self._others.find_idle_worker()
            if worker is None:
                break
            if batch := self._next_batch():
                self._lent += 1
                computing = self._others.compute(worker, [one.pixels for one in batch])
                self._follow(batch, asyncio.ensure_future(computing), at_home=False)
        self._announce()
        if not (self._engaged or self._lent or self._queue):
            self._idle.set()

    def _announce(self) -> None:
        if self._others:
            self._others.announce(not (self._engaged or self._queue or self._closed))

    def _next_batch(self) -> list[_Item]:
        now = time.monotonic()
        batch: list[_Item] = []
        while self._queue and len(batch) < self._largest_batch:
            item = self._queue.popleft()
            if item.score.done():
                continue  # cancelled in this turn of the loop, mostly by its deadline, and not yet out of the queue
            if item.deadline > now:
                batch.append(item)
            else:
                item.score.set_exception(TimeoutError("the deadline passed in the queue"))
        return batch

    def _run(self, pixels: Sequence[Pixels]) -> list[Row]:
        self.busy_since = time.monotonic()
        try:
            scores = self._infer(np.stack(pixels))
        finally:
            self.busy_since = math.inf
        return [row[1:] for row in zip(pixels, *scores, strict=True)]

    def _follow(self, batch: list[_Item], running: asyncio.Future[list[Row]], *, at_home: bool) -> None:
        started = time.monotonic()
        running.add_done_callback(lambda done: self._finish_batch(batch, started, done, at_home=at_home))

    def _finish_batch(
        self, batch: list[_Item], started: float, done: asyncio.Future[list[Row]], *, at_home: bool
    ) -> None:
        ended = time.monotonic()
        seconds = ended - started
        error = done.exception()
        if at_home:
            self._engaged -= 1
            # While there is a backlog, what holds up the engine (decoding, the event loop) is part of the pace.
            self._recent.append((ended - min(started, self._backlog_since), len(batch)))
            self._backlog_since = ended if self._queue or self.decoding else math.inf
        else:
            self._lent -= 1
            if isinstance(error, PeerLost):
                for item in reversed(batch):
                    item.at_home = True
                    self._queue.appendleft(item)
                self._start_batches()
                return
            self._recent.append((0, len(batch)))  # meanwhile: this engine was busy
        self._pace = sum(spent for spent, _ in self._recent) / sum(count for _, count in self._recent)
        self._report(BatchReport(len(batch), tuple(started - item.queued_at for item in batch), seconds))
        for index, item in enumerate(batch):
            if item.score.done():
                continue
            if error is not None:
                failure = EngineFailed(f"the engine could not score a batch of {len(batch)}: {error}")
                failure.__cause__ = error
                item.score.set_exception(failure)
            else:
                probabilities, ood_score, heatmap = done.result()[index]
                item.score.set_result(
                    Score(probabilities, float(ood_score), heatmap, started - item.queued_at, seconds)
                )
        self._start_batches()
