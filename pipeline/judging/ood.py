"""How unlike the training images a picture is: three scores of its features, of which params.yaml chooses one.

Features are scaled to unit length first, since their length says how strongly a network fires, not what it sees. Each
score is written once, for NumPy and for the graph: `ops` is numpy or keras.ops, whose functions have the same names.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

DIRECTIONS: Final = 64
"""Leading directions of the covariance that keep a variance of their own."""
NEIGHBOUR: Final = 5
"""Which of the nearest training images the score of neighbours looks at."""

Array = NDArray[np.float32]
Kind = Literal["mahalanobis", "relative", "neighbours"]


class Score(Protocol):
    """Fitted on a network's training images; higher is less like them."""

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        """float32 [N] of features float32 [N, F]."""


class Distance(NamedTuple):
    """Squared Mahalanobis distance to the nearest of C means, a direction on average.

    The covariance about the means is modelled as probabilistic PCA: the leading directions have their own variance, all
    others share one. That is exact to invert, needs a [F, k] matrix instead of [F, F], and fits in the graph.
    """

    means: Array
    """[C, F]"""
    directions: Array
    """[F, k], each divided by its standard deviation."""
    rest_scale: np.float32
    """1 / variance shared by all other directions."""
    rest_directions: Array
    """[F, k], orthonormal: what the leading directions take from the squared length."""

    def __call__(self, units: Any, ops: ModuleType) -> Any:
        distances = []
        for mean in self.means:
            offset = units - mean
            leading = ops.sum(ops.square(ops.matmul(offset, self.directions)), axis=1)
            explained = ops.sum(ops.square(ops.matmul(offset, self.rest_directions)), axis=1)
            distances.append(leading + (ops.sum(ops.square(offset), axis=1) - explained) * self.rest_scale)
        return ops.min(ops.stack(distances, axis=1), axis=1) / np.float32(self.means.shape[1])


class Mahalanobis(NamedTuple):
    """Root mean square distance, in standard deviations a direction, to the nearest class."""

    by_class: Distance

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        return ops.sqrt(self.by_class(unit(features, ops), ops))


class Relative(NamedTuple):
    """Squared distance to the nearest class less that to the middle of all training images (Ren et al., 2021)."""

    by_class: Distance
    to_all: Distance

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        units = unit(features, ops)
        return self.by_class(units, ops) - self.to_all(units, ops)


class Neighbours(NamedTuple):
    """1 - cosine similarity with one of the nearest training images (Sun et al., 2022)."""

    units: Array
    """[F, N]"""

    def __call__(self, features: Any, ops: ModuleType = np) -> Any:
        similarities = ops.sort(ops.matmul(unit(features, ops), self.units), axis=1)
        return np.float32(1) - similarities[:, -min(NEIGHBOUR, self.units.shape[1])]


def fit(kind: Kind, features: Array, labels: NDArray[np.int64], classes: int) -> Score:
    """From the features float32 [N, F] of the images a network was trained on; every class must occur."""
    return _FITS[kind](unit(features), labels, classes)


def unit(features: Any, ops: ModuleType = np) -> Any:
    """Rows [N, F] scaled to length 1."""
    length = ops.sqrt(ops.sum(ops.square(features), axis=1, keepdims=True))
    return features / ops.maximum(length, np.float32(1e-6))


def _distance(units: Array, groups: NDArray[np.int64], count: int) -> Distance:
    means = np.stack([units[groups == group].mean(axis=0) for group in range(count)])
    residuals = (units - means[groups]).astype(np.float64)
    freedom = len(units) - count
    k = min(DIRECTIONS, units.shape[1] - 1, freedom - 1)
    _, singular, transposed = np.linalg.svd(residuals, full_matrices=False)
    variances = singular**2 / freedom
    rest = max(variances[k:].sum() / (units.shape[1] - k), 1e-9)
    directions = transposed[:k].T
    leading = np.maximum(variances[:k], rest)
    return Distance(
        means.astype(np.float32),
        (directions / np.sqrt(leading)).astype(np.float32),
        np.float32(1 / rest),
        directions.astype(np.float32),
    )


def _relative(units: Array, labels: NDArray[np.int64], classes: int) -> Relative:
    return Relative(_distance(units, labels, classes), _distance(units, np.zeros_like(labels), 1))


_FITS: Final[dict[Kind, Callable[[Array, NDArray[np.int64], int], Score]]] = {
    "mahalanobis": lambda units, labels, classes: Mahalanobis(_distance(units, labels, classes)),
    "relative": _relative,
    "neighbours": lambda units, labels, classes: Neighbours(np.ascontiguousarray(units.T)),
}
KINDS: Final[tuple[Kind, ...]] = tuple(_FITS)
