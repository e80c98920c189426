"""The arithmetics in which the engine can compute a graph, and what each of them costs."""

from typing import Annotated, Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from chestct.document import Frozen

Arithmetic = Literal["int8", "bfloat16", "float32"]
"""`int8` rounds the inputs and kernels of convolutions to 8 bits. `bfloat16` rounds them to eight bits of precision.
`float32` is exact."""
ARITHMETICS: Final[tuple[Arithmetic, ...]] = get_args(Arithmetic)
"""The fastest first."""
Share = Annotated[float, Field(ge=0, le=1)]


class Rounding(Frozen):
    """Cost of rounding the arithmetic, on images that the networks of the folds have not seen."""

    agreement: Share
    """Share of the images with the same label."""
    same_decision: Share
    """Share of the images with the same decision."""
    accuracy_fall: float
    """Out-of-fold accuracy in float32, minus that with rounding."""


class Int8(Rounding):
    """Cost of int8, and what the engine needs for it."""

    ranges: dict[str, tuple[float, float]]
    """By name of a tensor of the graph that is rounded: its lowest and its highest value."""


class CloseCalls(NamedTuple):
    """What rounding shall not decide."""

    between_classes: float
    """The two highest probabilities are closer than this."""
    to_limit: float = 0
    """The highest probability is closer than this to `least_confidence` of its class."""
    least_confidence: tuple[float, ...] = ()

    def find(self, probabilities: NDArray[np.float32]) -> NDArray[np.intp]:
        """Rows of `probabilities` [N, classes] that are close calls."""
        second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
        close = first - second < self.between_classes
        if self.to_limit:
            limits = np.asarray(self.least_confidence, np.float32)[probabilities.argmax(axis=1)]
            close |= np.abs(first - limits) < self.to_limit
        return np.flatnonzero(close)
