"""Random predictions whose calibration is known."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax


def draw(count: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Logits whose softmax is exactly the probability of each class, OOD scores and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    labels = (rng.random((count, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)).sum(axis=1)
    return logits, rng.gamma(4, 1, count), labels
