"""How unlike the training images a picture is: a class-conditional Mahalanobis distance of its features.

The covariance within the classes is modelled as probabilistic PCA: the leading directions have their own variance, all
others share one. That is exact to invert, needs a [F, k] matrix instead of [F, F], and fits in the graph.
Features are scaled to unit length first, since their length says how strongly a network fires, not what it sees.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

DIRECTIONS: Final = 64

Array = NDArray[np.float32]


class OodModel(NamedTuple):
    """F features, k directions, C classes, all float32."""

    means: Array
    """[C, F]"""
    directions: Array
    """[F, k], each divided by its standard deviation."""
    rest_scale: np.float32
    """1 / variance shared by all other directions."""
    rest_directions: Array
    """[F, k], orthonormal: what the leading directions take from the squared length."""


def unit(features: Array) -> Array:
    """Rows [N, F] scaled to length 1."""
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-6), np.float32)


def fit(features: Array, labels: NDArray[np.int64], classes: int) -> OodModel:
    """From the features float32 [N, F] of the images a network was trained on; every class must occur."""
    rows = unit(features)
    means = np.stack([rows[labels == c].mean(axis=0) for c in range(classes)])
    residuals = (rows - means[labels]).astype(np.float64)
    k = min(DIRECTIONS, rows.shape[1] - 1, len(rows) - classes - 1)
    _, singular, transposed = np.linalg.svd(residuals, full_matrices=False)
    variances = singular**2 / (len(rows) - classes)
    rest = max(variances[k:].sum() / (rows.shape[1] - k), 1e-9)
    directions = transposed[:k].T
    leading = np.maximum(variances[:k], rest)
    return OodModel(
        means.astype(np.float32),
        (directions / np.sqrt(leading)).astype(np.float32),
        np.float32(1 / rest),
        directions.astype(np.float32),
    )


def score(model: OodModel, features: Array) -> Array:
    """float32 [N]: root mean square distance, in standard deviations a direction, to the nearest class."""
    offsets = unit(features)[:, None, :] - model.means
    squared = (offsets**2).sum(axis=2) - ((offsets @ model.rest_directions) ** 2).sum(axis=2)
    distance = ((offsets @ model.directions) ** 2).sum(axis=2) + squared * model.rest_scale
    return np.asarray(np.sqrt(distance.min(axis=1) / features.shape[1]), np.float32)
