"""Adaptive batching: while the engine is busy, the next batch grows or goes to another worker's idle engine."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from serving.inference.batches import Ended, EngineFailed, PeerLost, Pixels, QueuedImage, Row, Score
from serving.inference.threads import Threads
from serving.telemetry import metrics
from serving.unavailable import Closed, Overloaded

if TYPE_CHECKING:  # the runtime is heavy, and BentoML's supervisor imports this module too
    from chestct.engine import Scores
    from serving.inference.engine_sharing import EngineSharing

MOST_WAIT: Final = 0.5
"""Largest expected wait of an image, as a share of the time until its deadline. Work for a late answer is wasted."""
QUIET_SECONDS: Final = 0.1
"""Seconds without two images at once before an image may use the other workers' cores.

Otherwise their next images would wait for it: with evenly spaced images at two thirds of the capacity, the median
latency is a fifth longer."""
_RECENT_BATCHES: Final = 32
"""Batches that the seconds per image are the mean of, enough to smooth out a pause of the process."""


class Batcher:
    """A bounded queue before an engine that runs one batch at a time in a thread of its own.

    An idle engine takes all that is queued at once, so no image waits for a batch to fill. The engine's thread takes
    the batches itself, so it never waits for the event loop. Images beyond a batch go to other workers with idle
    engines. Use it from one event loop, except for the methods that say so.
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

        `infer_alone` scores one image while this worker has no other, and the other workers' engines are idle, and were
        so lately. It may use their cores.
        """
        self._infer = infer
        self._infer_alone = infer_alone or infer
        self._largest_batch = largest_batch
        self._queue_size = queue_size
        self._lock = threading.Lock()
        """Guards the next three, which more than one thread changes."""
        self._queue: deque[QueuedImage] = deque()
        self._decoding: set[QueuedImage] = set()
        self._in_engine = 0
        """Batches that the engine's thread has taken, and whose end the event loop has not seen."""
        self._thread = Threads(1, "engine")
        self._lent = 0
        """Batches of other workers in the engine's thread or before it."""
        self._in_peers = 0
        """Batches of this queue in other workers' engines."""
        self._crowded_at = -math.inf
        """Last time (time.monotonic) when an image was not the only one. The engine's thread alone uses it."""
        self._start_scheduled = False
        """Whether `_start_batches` will run in this turn of the loop."""
        self._closed = False
        self._sharing: EngineSharing | None = None
        self._drained: asyncio.Future[None] | None = None
        """Done when a closed queue has no more work."""
        self._recent: deque[tuple[float, int]] = deque()
        """Seconds and images of the recent batches."""
        self._recent_seconds, self._recent_images = 0.0, 0
        """Their sums."""
        self._backlog_since = math.inf
        """End of the last batch (time.monotonic), if work was left then."""
        self.busy_since = math.inf
        """Start of the batch in the engine (time.monotonic); infinity if there is none."""

    @property
    def decoding(self) -> int:
        """Images being decoded. Each has a place in the queue, and its decoding counts in the seconds per image."""
        return len(self._decoding)

    def check_room(self, deadline: float = math.inf) -> None:
        """Raise Closed, or Overloaded if the queue is full or the answer would probably miss the deadline.

        `deadline` is on time.monotonic's clock.
        """
        if self._closed:
            raise Closed("the service is shutting down")
        waiting = len(self._queue) + len(self._decoding)
        seconds = waiting * self._recent_seconds / max(1, self._recent_images)
        known = len(self._recent) == _RECENT_BATCHES
        if waiting >= self._queue_size or (known and seconds > MOST_WAIT * max(0, deadline - time.monotonic())):
            raise Overloaded(seconds)

    async def score(self, pixels: Pixels, deadline: float = math.inf, *, admitted: bool = False) -> Score:
        """Score one image, uint8 [height, width, 1]. If cancelled, the image leaves the queue.

        `deadline` is on time.monotonic's clock. Raises Closed, Overloaded unless admitted, and the errors of `wait`.
        """
        if not admitted:
            self.check_room(deadline=deadline)
        elif self._closed:
            raise Closed("the service is shutting down")
        loop = asyncio.get_running_loop()
        image = QueuedImage(loop.create_future(), deadline, pixels)
        with self._lock:
            self._queue.append(image)
        if not self._start_scheduled:
            # Not at once, so that other images of this turn of the loop join the batch.
            self._start_scheduled = True
            loop.call_soon(self._start_batches)
        score = await self.wait(image)
        assert score is not None
        return score

    def reserve(self, deadline: float = math.inf) -> QueuedImage:
        """A place for an image that will be decoded. `fill` or `leave` must follow."""
        image = QueuedImage(asyncio.get_running_loop().create_future(), deadline)
        with self._lock:
            self._decoding.add(image)
        return image

    def fill(self, image: QueuedImage, pixels: Pixels) -> None:
        """Queue a reserved image that is decoded, unless nobody waits for it any more. Call it in any thread."""
        with self._lock:
            if image not in self._decoding:
                return
            if not self._closed:
                self._decoding.remove(image)
                image.pixels, image.queued_at = pixels, time.monotonic()
                self._queue.append(image)
        if image.pixels is None:
            self.leave(image, Closed("the service is shutting down"))
            return
        self._thread.start(self._run_next)
        if self._sharing and self._in_engine and self._sharing.sees_idle_worker():
            image.tell(self._send_to_peers)

    def leave(self, image: QueuedImage, error: BaseException | None = None) -> None:
        """Give up the place of a reserved image: `wait` returns None, or raises the error. Call it in any thread."""
        with self._lock:
            self._decoding.discard(image)
        image.tell(image.settle, None, error)

    async def wait(self, image: QueuedImage) -> Score | None:
        """The score of an image, or None if it left. If cancelled, the image leaves the queue.

        Raises the error that it left with, EngineFailed, and TimeoutError if the deadline passes before the engine
        takes the image.
        """
        try:
            return await image.score
        except asyncio.CancelledError:
            with self._lock, contextlib.suppress(ValueError):  # it is in the engine
                self._decoding.discard(image)
                self._queue.remove(image)
            self._end_if_drained()
            raise

    async def close(self) -> None:
        """Refuse new images, finish the waiting ones, and end the engine's thread."""
        with self._lock:
            self._closed = True
        self._publish_idle()
        self._drained = asyncio.get_running_loop().create_future()
        self._end_if_drained()
        await self._drained
        self._thread.close()

    def share(self, sharing: EngineSharing) -> None:
        """From now on, send waiting images to idle engines of other workers, and publish when this engine is idle."""
        self._sharing = sharing
        self._publish_idle()

    async def lend(self, pixels: Sequence[Pixels]) -> list[Row]:
        """Run another worker's batch, past the queue. Raises the engine's error, and RuntimeError after `close`."""
        self._lent += 1
        self._publish_idle()
        try:
            return await self._thread.run(self._compute, pixels, self._infer)
        finally:
            self._lent -= 1
            self._publish_idle()
            self._end_if_drained()

    # In the engine's thread

    def _run_next(self) -> None:
        """Run the next batch, if there is one."""
        batch = self._take(here=True)
        if not batch:
            return
        started = time.monotonic()
        if self._is_crowded(batch):
            self._crowded_at = started
        alone = started > self._crowded_at + QUIET_SECONDS
        rows: list[Row] = []
        error = None
        try:
            pixels = [image.pixels for image in batch if image.pixels is not None]
            rows = self._compute(pixels, self._infer_alone if alone else self._infer)
        except BaseException as caught:  # noqa: BLE001 - whatever it is, it is raised where the score is awaited
            error = caught
        if alone and self._is_crowded(batch):  # an image that came meanwhile had to share the cores
            self._crowded_at = time.monotonic()
        ended = Ended(batch, started, time.monotonic(), bool(self._queue or self._decoding), rows, error)
        if self._queue:
            self._thread.start(self._run_next)
        batch[0].tell(self._finish_here, ended)

    def _is_crowded(self, batch: Sequence[QueuedImage]) -> bool:
        """Whether anything but one image in the engine needs a core now."""
        others = self._queue or self._decoding or self._in_peers or self._lent
        return bool(len(batch) > 1 or others or (self._sharing and not self._sharing.others_idle()))

    def _compute(self, pixels: Sequence[Pixels], infer: Callable[[NDArray[np.uint8]], Scores]) -> list[Row]:
        self.busy_since = time.monotonic()
        try:
            scores = infer(np.stack(pixels))
        finally:
            self.busy_since = math.inf
        return [row[1:] for row in zip(pixels, *scores, strict=True)]

    # In any thread

    def _take(self, *, here: bool) -> list[QueuedImage]:
        """The next batch for the engine here or for another one."""
        now = time.monotonic()
        batch: list[QueuedImage] = []
        with self._lock:
            # An idle engine is about to take these itself.
            kept = 0 if here or self._in_engine or self._lent else self._largest_batch
            while len(self._queue) > kept and len(batch) < self._largest_batch:
                if self._queue[0].only_here and not here:
                    break
                image = self._queue.popleft()
                if image.score.done():  # cancelled in this turn of the loop, and not yet removed from the queue
                    continue
                if image.deadline > now:
                    batch.append(image)
                else:
                    image.tell(self._expire, image)
            if batch and here:
                self._in_engine += 1
        self._publish_idle()
        return batch

    def _publish_idle(self) -> None:
        if self._sharing:
            with self._lock:
                self._sharing.publish_idle(not (self._in_engine or self._lent or self._queue or self._closed))

    # In the event loop

    def _start_batches(self) -> None:
        self._start_scheduled = False
        self._thread.start(self._run_next)
        self._send_to_peers()

    def _send_to_peers(self) -> None:
        """Send images that the engine here does not take now to idle engines of other workers."""
        while self._sharing and self._queue:
            worker = self._sharing.find_idle_worker()
            if worker is None:
                break
            batch = self._take(here=False)
            if not batch:
                break
            self._in_peers += 1
            pixels = [image.pixels for image in batch if image.pixels is not None]
            computing = asyncio.ensure_future(self._sharing.compute(worker, pixels))
            computing.add_done_callback(partial(self._finish_in_peer, batch, time.monotonic()))

    def _finish_here(self, ended: Ended) -> None:
        with self._lock:
            self._in_engine -= 1
        # During a backlog, time in which the engine waits for decoding counts, too.
        self._note_time(ended.ended - min(ended.started, self._backlog_since), len(ended.batch))
        self._backlog_since = ended.ended if ended.backlog else math.inf
        self._finish(ended)

    def _finish_in_peer(self, batch: list[QueuedImage], started: float, done: asyncio.Future[list[Row]]) -> None:
        self._in_peers -= 1
        error = done.exception()
        if isinstance(error, PeerLost):
            for image in reversed(batch):
                image.only_here = True
            with self._lock:
                self._queue.extendleft(reversed(batch))
            self._start_batches()
            return
        self._note_time(0, len(batch))  # no time of its own: this engine was busy meanwhile
        self._finish(Ended(batch, started, time.monotonic(), False, [] if error else done.result(), error))

    def _note_time(self, seconds: float, images: int) -> None:
        """Note the seconds of a batch, and forget those of the oldest one."""
        if len(self._recent) == _RECENT_BATCHES:
            oldest_seconds, oldest_images = self._recent.popleft()
            self._recent_seconds -= oldest_seconds
            self._recent_images -= oldest_images
        self._recent.append((seconds, images))
        self._recent_seconds += seconds
        self._recent_images += images

    def _finish(self, ended: Ended) -> None:
        """Give each image of a batch its score, or the error."""
        batch, seconds = ended.batch, ended.ended - ended.started
        metrics.BATCH_SIZE.observe(len(batch))
        metrics.INFER_SECONDS.observe(seconds)
        for index, image in enumerate(batch):
            metrics.QUEUE_SECONDS.observe(waited := ended.started - image.queued_at)
            if ended.error is not None:
                failure = EngineFailed(f"the engine could not score a batch of {len(batch)}: {ended.error}")
                failure.__cause__ = ended.error
                image.settle(None, failure)
            else:
                probabilities, ood_score, chest_ct, heatmap = ended.rows[index]
                score = Score(probabilities, float(ood_score), float(chest_ct), heatmap, waited, seconds)
                image.settle(score)
        self._publish_idle()
        self._send_to_peers()
        self._end_if_drained()

    def _expire(self, image: QueuedImage) -> None:
        image.settle(None, TimeoutError("the deadline passed in the queue"))
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        busy = self._in_engine or self._lent or self._in_peers or self._queue
        if self._drained and not busy and not self._drained.done():
            self._drained.set_result(None)
