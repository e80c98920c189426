"""The tiny model as an engine that can be held, for the tests of both protocols."""

import threading

import numpy as np
from numpy.typing import NDArray

from chestct.engine import Engine, Scores

SECONDS = 300
"""Most seconds that a batch is held, so that a failed test ends."""


class GatedEngine:
    """The tiny model behind a gate. While the gate is closed, a batch stays in the engine."""

    def __init__(self, engine: Engine, largest_batch: int = 1) -> None:
        self.largest_batch = largest_batch
        self._engine = engine
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.images = 0
        self.fails = False

    def close(self) -> None:
        """Hold batches from now on. `entered` is set by the first."""
        self.open.clear()
        self.entered.clear()

    def infer(self, pixels: NDArray[np.uint8]) -> Scores:
        self.entered.set()
        assert self.open.wait(SECONDS)
        if self.fails:
            raise RuntimeError("secret of the engine")
        self.images += len(pixels)
        return self._engine.infer(pixels)

    infer_alone = infer
