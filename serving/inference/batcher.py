"""Adaptive batching: while the engine is busy, the next batch grows or goes to another worker's idle engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.inference.threads import Threads
from serving.telemetry import metrics
from serving.unavailable import Closed, Overloaded

if TYPE_CHECKING:  # the runtime is heavy, and BentoML's supervisor imports this module too
    from chestct.engine import Scores
    from serving.inference.engine_sharing import EngineSharing

MOST_WAIT: Final = 0.5
"""Largest expected wait of an image, as a share of the time until its deadline. Work for a late answer is wasted."""
_RECENT_BATCHES: Final = 32
"""Batches that the seconds per image are the mean of, enough to smooth out a pause of the process."""


class EngineFailed(RuntimeError):
    """The engine could not score a batch. Every image of the batch gets this error, with its cause chained."""


class PeerLost(RuntimeError):
    """Another worker did not return a batch."""


Row = tuple[NDArray[np.float32], np.float32, np.float32, NDArray[np.float32]]
"""One image of chestct.engine.Scores, in the same order."""
Pixels = NDArray[np.uint8]
"""One image, [height, width, 1]."""


class Score(NamedTuple):
    """One image of chestct.engine.Scores, with its times."""

    probabilities: NDArray[np.float32]
    """[classes], calibrated, sums to 1."""
    ood_score: float
    chest_ct: float
    heatmap: NDArray[np.float32]
    """[classes, h, w] in logits."""
    waited: float
    """Seconds in the queue."""
    seconds: float
    """Seconds of its batch in the engine."""


@dataclass(eq=False, slots=True)  # two items are never equal, whatever their pixels
class _Item:
    pixels: Pixels
    score: asyncio.Future[Score]
    deadline: float
    queued_at: float
    only_here: bool = False
    """Another worker lost it, so this worker computes it."""


class Batcher:
    """A bounded queue before an engine that runs one batch at a time in a thread of its own.

    An idle engine takes all that is queued at once, so no image waits for a batch to fill. Images beyond a batch go to
    other workers with idle engines. Use it from one event loop.
    """

    def __init__(
        self,
        infer: Callable[[NDArray[np.uint8]], Scores],
        infer_alone: Callable[[NDArray[np.uint8]], Scores] | None = None,
        *,
        largest_batch: int,
        queue_size: int,
    ) -> None:
        """`infer` scores uint8 [N, height, width, 1], N up to `largest_batch`.

        `infer_alone` scores one image while this worker has no other, and the other workers' engines are idle. It may
        use their cores.
        """
        self._infer = infer
        self._infer_alone = infer_alone or infer
        self._largest_batch = largest_batch
        self._queue_size = queue_size
        self._queue: deque[_Item] = deque()
        self._thread = Threads(1, "engine")
        self._in_engine = 0
        """Batches in the engine's thread or before it: one of this queue at most, and those of other workers."""
        self._in_peers = 0
        """Batches of this queue in other workers' engines."""
        self._start_scheduled = False
        """Whether `_start_batches` will run in this turn of the loop."""
        self._closed = False
        self._sharing: EngineSharing | None = None
        self._done = asyncio.Event()
        self._done.set()
        self._recent: deque[tuple[float, int]] = deque(maxlen=_RECENT_BATCHES)
        """Seconds and images of the recent batches."""
        self._seconds_per_image = 0.0
        """Mean over the recent batches."""
        self._backlog_since = math.inf
        """End of the last batch (time.monotonic), if work was left then."""
        self.busy_since = math.inf
        """Start of the batch in the engine (time.monotonic); infinity if there is none."""
        self.decoding = 0
        """Images being decoded. Each has a place in the queue, and its decoding counts in the seconds per image."""

    def check_room(self, deadline: float = math.inf) -> None:
        """Raise Closed, or Overloaded if the queue is full or the answer would probably miss the deadline.

        `deadline` is on time.monotonic's clock.
        """
        if self._closed:
            raise Closed("the service is shutting down")
        waiting = len(self._queue) + self.decoding
        seconds = waiting * self._seconds_per_image
        known = len(self._recent) == _RECENT_BATCHES
        if waiting >= self._queue_size or (known and seconds > MOST_WAIT * max(0, deadline - time.monotonic())):
            raise Overloaded(seconds)

    async def score(self, pixels: Pixels, deadline: float = math.inf, *, admitted: bool = False) -> Score:
        """Score one image, uint8 [height, width, 1]. If cancelled, the image leaves the queue.

        An `admitted` image was counted in `decoding` until now, so it has a place already. `deadline` is on
        time.monotonic's clock. Raises Closed, EngineFailed, Overloaded unless admitted, and TimeoutError if the
        deadline passes before the engine takes the image.
        """
        if not admitted:
            self.check_room(deadline=deadline)
        elif self._closed:
            raise Closed("the service is shutting down")
        loop = asyncio.get_running_loop()
        item = _Item(pixels, loop.create_future(), deadline, time.monotonic())
        self._queue.append(item)
        if not self._start_scheduled and (self._sharing or not self._in_engine):
            # Not at once, so that other images of this turn of the loop join the batch.
            self._start_scheduled = True
            self._done.clear()
            loop.call_soon(self._start_batches)
        try:
            return await item.score
        except asyncio.CancelledError:
            if item in self._queue:
                self._queue.remove(item)
            raise

    async def close(self) -> None:
        """Refuse new images, finish the waiting ones, and end the engine's thread."""
        self._closed = True
        self._publish_idle()
        await self._done.wait()
        self._thread.close()

    def share(self, sharing: EngineSharing) -> None:
        """From now on, send waiting images to idle engines of other workers, and publish when this engine is idle."""
        self._sharing = sharing
        self._publish_idle()

    async def lend(self, pixels: Sequence[Pixels]) -> list[Row]:
        """Run another worker's batch, past the queue. Raises the engine's error, and RuntimeError after `close`."""
        self._in_engine += 1
        self._done.clear()
        self._publish_idle()
        try:
            return await self._thread.run(self._run, pixels, self._infer)
        finally:
            self._in_engine -= 1
            self._start_batches()

    def _start_batches(self) -> None:
        self._start_scheduled = False
        if not self._in_engine and (batch := self._next_batch()):
            self._in_engine += 1
            infer = self._infer_alone if self._is_alone(batch) else self._infer
            running = self._thread.run(self._run, [one.pixels for one in batch], infer)
            self._finish_later(batch, running, here=True)
        while self._sharing and self._queue and not self._queue[0].only_here:
            worker = self._sharing.find_idle_worker()
            if worker is None:
                break
            if batch := self._next_batch():
                self._in_peers += 1
                computing = self._sharing.compute(worker, [one.pixels for one in batch])
                self._finish_later(batch, asyncio.ensure_future(computing), here=False)
        self._publish_idle()
        if not (self._in_engine or self._in_peers or self._queue):
            self._done.set()

    def _is_alone(self, batch: Sequence[_Item]) -> bool:
        """Whether nothing but this batch of one image needs a core, as far as is known."""
        others = len(batch) > 1 or self._queue or self.decoding or self._in_peers
        return not others and (self._sharing is None or self._sharing.others_idle())

    def _publish_idle(self) -> None:
        if self._sharing:
            self._sharing.publish_idle(not (self._in_engine or self._queue or self._closed))

    def _next_batch(self) -> list[_Item]:
        now = time.monotonic()
        batch: list[_Item] = []
        while self._queue and len(batch) < self._largest_batch:
            item = self._queue.popleft()
            if item.score.done():
                continue  # cancelled in this turn of the loop, and not yet removed from the queue
            if item.deadline > now:
                batch.append(item)
            else:
                item.score.set_exception(TimeoutError("the deadline passed in the queue"))
        return batch

    def _run(self, pixels: Sequence[Pixels], infer: Callable[[NDArray[np.uint8]], Scores]) -> list[Row]:
        self.busy_since = time.monotonic()
        try:
            scores = infer(np.stack(pixels))
        finally:
            self.busy_since = math.inf
        return [row[1:] for row in zip(pixels, *scores, strict=True)]

    def _finish_later(self, batch: list[_Item], running: asyncio.Future[list[Row]], *, here: bool) -> None:
        started = time.monotonic()
        running.add_done_callback(lambda done: self._finish_batch(batch, started, done, here=here))

    def _finish_batch(self, batch: list[_Item], started: float, done: asyncio.Future[list[Row]], *, here: bool) -> None:
        ended = time.monotonic()
        seconds = ended - started
        error = done.exception()
        if here:
            self._in_engine -= 1
            # During a backlog, time in which the engine waits for decoding or the event loop counts, too.
            self._recent.append((ended - min(started, self._backlog_since), len(batch)))
            self._backlog_since = ended if self._queue or self.decoding else math.inf
        else:
            self._in_peers -= 1
            if isinstance(error, PeerLost):
                for item in reversed(batch):
                    item.only_here = True
                    self._queue.appendleft(item)
                self._start_batches()
                return
            self._recent.append((0, len(batch)))  # no time of its own: this engine was busy meanwhile
        self._seconds_per_image = sum(spent for spent, _ in self._recent) / sum(count for _, count in self._recent)
        metrics.BATCH_SIZE.observe(len(batch))
        metrics.INFER_SECONDS.observe(seconds)
        for index, item in enumerate(batch):
            metrics.QUEUE_SECONDS.observe(waited := started - item.queued_at)
            if item.score.done():
                continue
            if error is not None:
                failure = EngineFailed(f"the engine could not score a batch of {len(batch)}: {error}")
                failure.__cause__ = error
                item.score.set_exception(failure)
            else:
                probabilities, ood_score, chest_ct, heatmap = done.result()[index]
                score = Score(probabilities, float(ood_score), float(chest_ct), heatmap, waited, seconds)
                item.score.set_result(score)
        self._start_batches()
