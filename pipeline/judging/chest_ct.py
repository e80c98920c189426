"""The probe that says whether a picture is a chest CT slice, of any source and in any window.

It is a logistic regression on a summary of the picture by the trained network (pipeline.network.summary), so it costs
next to nothing in the graph.
"""

from types import ModuleType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

STRENGTH: Final = 10.0
"""Inverse of the weights' penalty. The summary's parts have unit length, so the weights are large."""

_HALF: Final = np.float32(0.5)


class LinearProbe(NamedTuple):
    """Logistic regression. `ops` is numpy or keras.ops, as for an OOD score."""

    weights: NDArray[np.float32]
    """[P]"""
    bias: np.float32

    def __call__(self, summaries: Any, ops: ModuleType = np) -> Any:
        """Probability, float32 [N], that the pictures with the `summaries` float32 [N, P] are chest CT slices."""
        logits = ops.sum(summaries * self.weights, axis=1) + self.bias
        return _HALF + _HALF * ops.tanh(_HALF * logits)  # the sigmoid, which NumPy lacks, without an overflow


def fit(summaries: NDArray[np.float32], chest: NDArray[np.bool_], kinds: NDArray[np.str_]) -> LinearProbe:
    """Fit the probe on `summaries` [N, P] of pictures that are `chest` CT [N] or not.

    Chest CT and other pictures count alike, however many they are. Within either, the weight of a kind grows with the
    square root of its number of pictures. `kinds` [N] names them.
    """
    weights = np.zeros(len(chest))
    for side in (chest, ~chest):
        _, kind_of, counts = np.unique(kinds[side], return_inverse=True, return_counts=True)
        share = 1 / np.sqrt(counts[kind_of])
        weights[side] = share / share.sum()
    found = LogisticRegression(C=STRENGTH, max_iter=3000).fit(summaries, chest, sample_weight=weights * len(chest))
    return LinearProbe(found.coef_[0].astype(np.float32), np.float32(found.intercept_[0]))


UNFITTED: Final = LinearProbe(np.zeros(1, np.float32), np.float32(20))
"""Takes every picture for a chest CT slice."""
