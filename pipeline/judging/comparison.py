"""Compares the out-of-fold answers of two trainings, image by image."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from chestct.card import Estimate
from pipeline.images.classes import class_count, normal_index
from pipeline.judging.metrics import resample, weighted_auc

_INTERVAL = (2.5, 97.5)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class OutOfFoldAnswers(NamedTuple):
    """The answers of one training's folds: N images, each by a network that was not trained on its fold."""

    sha256: NDArray[np.str_]
    """[N], in ascending order, by which two trainings' answers are paired."""
    labels: Ints
    """[N], the true classes."""
    predicted: Ints
    """[N], the most probable classes before calibration."""
    cancer_scores: Floats
    """[N], the log odds of any cancer against normal before calibration."""
    folds: Ints
    """[N], the number of the first image of the same fold."""
    scans: Ints
    """[N], the number of the first image of the same scan."""

    @classmethod
    def read(cls, path: Path) -> "OutOfFoldAnswers":
        """Read stage train's out_of_fold.npz."""
        with np.load(path) as file:
            order = np.argsort(file["sha256"])
            sha256, labels, logits, folds, scans = (
                file[name][order] for name in ("sha256", "labels", "logits", "folds", "scans")
            )
        logits = logits.astype(np.float64)
        odds = logsumexp(np.delete(logits, normal_index(), axis=1), axis=1) - logits[:, normal_index()]
        return cls(sha256, labels, logits.argmax(axis=1), odds, _first_of_part(folds), _first_of_part(scans))

    def differences(self, other: "OutOfFoldAnswers") -> list[str]:
        """What of `images`, `labels`, `folds` and `scans` is not the same, so that the answers can't be paired."""
        if not np.array_equal(self.sha256, other.sha256):
            return ["images"]
        return [
            name
            for name in ("labels", "folds", "scans")
            if not np.array_equal(getattr(self, name), getattr(other, name))
        ]


class Figure(NamedTuple):
    """A figure of two trainings, and the second one's minus the first one's, each with its 95 % interval."""

    first: Estimate
    second: Estimate
    difference: Estimate


class Comparison(NamedTuple):
    images: int
    scans: int
    accuracy: Figure
    macro_f1: Figure
    cancer_auc: Figure
    """Area under the ROC curve of any cancer against normal."""
    both_right: int
    first_alone: int
    """Images that only the first training gets right."""
    second_alone: int
    neither: int


def compare_answers(first: OutOfFoldAnswers, second: OutOfFoldAnswers, *, resamples: int, seed: int) -> Comparison:
    """Compare answers of the same images. An interval is the middle 95 % over `resamples` draws of whole scans.

    Both sides of a draw have the same images. So images that are hard for both do not widen the difference's interval.
    """
    right, right_too = (answers.predicted == answers.labels for answers in (first, second))
    weights = np.vstack([np.ones((1, len(right))), resample(first.scans, resamples, seed)])
    return Comparison(
        images=len(right),
        scans=len(np.unique(first.scans)),
        accuracy=_figure(*(_accuracy(answers, weights) for answers in (first, second))),
        macro_f1=_figure(*(_macro_f1(answers, weights) for answers in (first, second))),
        cancer_auc=_figure(*(_cancer_auc(answers, weights) for answers in (first, second))),
        both_right=int((right & right_too).sum()),
        first_alone=int((right & ~right_too).sum()),
        second_alone=int((~right & right_too).sum()),
        neither=int((~right & ~right_too).sum()),
    )


def _accuracy(answers: OutOfFoldAnswers, weights: Floats) -> Floats:
    """The accuracy [R] under each of R weightings [R, N] of the images."""
    return np.asarray(weights @ (answers.predicted == answers.labels) / weights.sum(axis=1))


def _macro_f1(answers: OutOfFoldAnswers, weights: Floats) -> Floats:
    """The mean F1 [R] of the classes that occur in a weighting of `weights` [R, N]."""
    classes = np.arange(class_count())
    true, best = (kind[:, np.newaxis] == classes for kind in (answers.labels, answers.predicted))
    of_class, as_class = weights @ true, weights @ best
    with np.errstate(invalid="ignore"):  # 0 / 0: a class that neither occurs nor is answered
        f1 = 2 * (weights @ (true & best)) / (of_class + as_class)
    return np.asarray(np.nanmean(np.where(of_class > 0, f1, np.nan), axis=1))


def _cancer_auc(answers: OutOfFoldAnswers, weights: Floats) -> Floats:
    """The ROC AUC [R], NaN for a weighting of `weights` [R, N] without cancers or without normal slices."""
    with np.errstate(invalid="ignore"):
        return weighted_auc(answers.cancer_scores, answers.labels != normal_index(), weights)


def _figure(first: Floats, second: Floats) -> Figure:
    """The figure of two trainings [1 + R]: of all images, then of each resample."""
    return Figure(_estimate(first), _estimate(second), _estimate(second - first))


def _estimate(values: Floats) -> Estimate:
    """The first value, and the middle 95 % of the others without NaN, widened to include it."""
    value = float(values[0])
    low, high = (float(end) for end in np.nanpercentile(values[1:], _INTERVAL))
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _first_of_part(parts: Ints) -> Ints:
    """Name each part [N] by the first image in it, so that only who is together counts, and not how parts are named."""
    _, first, part_of = np.unique(parts, return_index=True, return_inverse=True)
    return np.asarray(first[part_of], np.int64)
