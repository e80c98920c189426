"""Out-of-distribution (OOD) scores: how unlike the training images a picture is. params.yaml chooses one of them.

Features are first scaled to unit length, because their length says how strongly the network responds and not what it
sees. Each score is written once, for NumPy and for the graph: `ops` is numpy or keras.ops, which share function names.
"""

from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

DIRECTIONS: Final = 64
"""Leading directions of the covariance that keep their own variance."""
NEIGHBOUR: Final = 5
"""Rank of the training image that the neighbours score compares with, 1 for the nearest."""

Array = NDArray[np.float32]
Kind = Literal["mahalanobis", "neighbours"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class Score(Protocol):
    """A score fitted on a network's training images. A higher score is less like them."""

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        """Score `features` float32 [N, F]; returns float32 [N]."""


class Mahalanobis(NamedTuple):
    """Mahalanobis distance to the nearest class mean, as a root mean square over the directions.

    The covariance is modelled as probabilistic PCA: each leading direction has its own variance, and all others share
    one. This model is exact to invert, needs [F, k] numbers instead of [F, F], and fits in the graph.
    """

    means: Array
    """[classes, F]"""
    directions: Array
    """[F, k], each divided by its standard deviation."""
    rest_scale: np.float32
    """1 / the variance that all other directions share."""
    rest_directions: Array
    """[F, k], the same directions, orthonormal."""

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        units = unit(features, ops)
        distances = []
        for mean in self.means:
            offset = units - mean
            leading = ops.sum(ops.square(ops.matmul(offset, self.directions)), axis=1)
            explained = ops.sum(ops.square(ops.matmul(offset, self.rest_directions)), axis=1)
            distances.append(leading + (ops.sum(ops.square(offset), axis=1) - explained) * self.rest_scale)
        return ops.sqrt(ops.min(ops.stack(distances, axis=1), axis=1) / np.float32(self.means.shape[1]))


class Neighbours(NamedTuple):
    """1 - cosine similarity with one of the nearest training images (Sun et al., 2022)."""

    units: Array
    """[F, N]"""

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        similarities = ops.sort(ops.matmul(unit(features, ops), self.units), axis=1)
        return np.float32(1) - similarities[:, -min(NEIGHBOUR, self.units.shape[1])]


def fit(kind: Kind, features: Array, labels: NDArray[np.int64], classes: int) -> Score:
    """Fit a score on the features float32 [N, F] and labels [N] of the training images. Every class must occur."""
    units = unit(features)
    return _fit_mahalanobis(units, labels, classes) if kind == "mahalanobis" else Neighbours(units.T.copy())


def unit(features: Any, ops: ModuleType = np) -> Any:
    """Scale the rows [N, F] to length 1."""
    length = ops.sqrt(ops.sum(ops.square(features), axis=1, keepdims=True))
    return features / ops.maximum(length, np.float32(1e-6))


def _fit_mahalanobis(units: Array, labels: NDArray[np.int64], classes: int) -> Mahalanobis:
    means = np.stack([units[labels == label].mean(axis=0) for label in range(classes)])
    residuals = (units - means[labels]).astype(np.float64)
    freedom = len(units) - classes
    k = min(DIRECTIONS, units.shape[1] - 1, freedom - 1)
    _, singular, transposed = np.linalg.svd(residuals, full_matrices=False)
    variances = singular**2 / freedom
    rest = max(variances[k:].sum() / (units.shape[1] - k), 1e-9)
    directions = transposed[:k].T
    leading = np.maximum(variances[:k], rest)
    return Mahalanobis(
        means.astype(np.float32),
        (directions / np.sqrt(leading)).astype(np.float32),
        np.float32(1 / rest),
        directions.astype(np.float32),
    )
