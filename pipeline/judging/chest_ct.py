"""The probe that says whether a picture is a chest CT slice, of any source and in any window."""

from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_HALF: Final = np.float32(0.5)


class LinearProbe(NamedTuple):
    """Logistic regression on a network's features. `ops` is numpy or keras.ops, as for an OOD score."""

    weights: NDArray[np.float32]
    """[F]"""
    bias: np.float32

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        """Probability, float32 [N], that the pictures with the `features` float32 [N, F] are chest CT slices."""
        logits = ops.sum(features * self.weights, axis=1) + self.bias
        return _HALF + _HALF * ops.tanh(_HALF * logits)  # the sigmoid, which NumPy lacks, without an overflow


UNFITTED: Final = LinearProbe(np.zeros(1, np.float32), np.float32(20))
"""Takes every picture for a chest CT slice."""
