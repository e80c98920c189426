"""What the queue, the engine and the sharing of engines pass to each other."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Row = tuple[NDArray[np.float32], np.float32, np.float32, NDArray[np.float32]]
"""One image of chestct.engine.Scores, in the same order."""
Pixels = NDArray[np.uint8]
"""One image, [height, width, 1]."""


class EngineFailed(RuntimeError):
    """The engine could not score a batch. Every image of the batch gets this error, with its cause chained."""


class PeerLost(RuntimeError):
    """Another worker did not return a batch."""


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


@dataclass(eq=False, slots=True)  # two images are never equal, whatever their pixels
class QueuedImage:
    """An image's place in the queue, which it may have before it is decoded."""

    score: asyncio.Future[Score | None]
    """Its score; None if it left the queue."""
    deadline: float
    """Time (time.monotonic) after which the engine does not take it."""
    pixels: Pixels | None = None
    queued_at: float = field(default_factory=time.monotonic)
    """Time when it had its pixels."""
    only_here: bool = False
    """Another worker lost it, so this worker computes it."""

    def tell(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call the function in the event loop that waits for the image. Any thread may call this."""
        with contextlib.suppress(RuntimeError):  # the loop has closed
            self.score.get_loop().call_soon_threadsafe(function, *arguments)

    def settle(self, score: Score | None, error: BaseException | None = None) -> None:
        """End the wait for the image, unless it was cancelled."""
        if self.score.done():
            return
        if error is None:
            self.score.set_result(score)
        else:
            self.score.set_exception(error)


class Ended(NamedTuple):
    """The end of a batch in an engine."""

    batch: list[QueuedImage]
    started: float
    """Times on time.monotonic's clock, as is the next."""
    ended: float
    backlog: bool
    """Whether images were left when it ended."""
    rows: list[Row]
    """One for each image, in order; none if the batch failed."""
    error: BaseException | None = None
