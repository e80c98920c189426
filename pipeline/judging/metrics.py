"""Measures a set of answers: every figure with its 95 % interval, and the plots of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from chestct.card import ClassMetrics, Estimate, Fold, Metrics, ReliabilityBin, RiskPoint
from pipeline.images.classes import class_count, class_names, normal_index, titles
from pipeline.judging.calibration import Answers
from pipeline.judging.plots import draw_metrics
from pipeline.judging.thresholds import margin

BINS: Final = 10
"""Bins of equally many images, by confidence, in the reliability diagram and the expected calibration error."""
COVERAGE: Final = 0.8
"""Share of the images for which the error rate is reported."""
COVERAGES: Final = np.arange(1, 21) / 20
"""Shares of the images in the risk-coverage curve."""

_KEY: Final = ("accuracy", "macro_f1", "cancer_auc", "calibration_error")

_INTERVAL: Final = (2.5, 97.5)
_LEAST_PROBABILITY: Final = 1e-7  # a float32 probability can round to zero; its cross-entropy is infinite

Floats = NDArray[np.float64]


class Evaluation:
    """The figures of N answers.

    An interval is the middle 95 % of the figure over bootstrap resamples. A resample draws whole groups of images with
    replacement: scans, because slices of one scan are not independent. Without groups, each image counts as a scan. A
    share of 0 or 1 does not vary over resamples, so its interval is the exact binomial one over the groups it was
    counted on. A mean over classes leaves out classes without images. The figures of such a class are 0, with an
    interval of 0 to 1.
    """

    def __init__(
        self,
        answers: Answers,
        labels: NDArray[np.int64],
        *,
        groups: NDArray[np.int64] | None = None,
        checks: Mapping[str, NDArray[np.floating]] | None = None,
        resamples: int,
        seed: int,
    ) -> None:
        """`labels` [N] are the true classes. `groups` [N] are drawn as wholes.

        Each of `checks` [N] adds a figure: its mean.
        """
        self._checks = checks or {}
        self._answers = answers
        self._labels = labels
        self._predicted = answers.probabilities.argmax(axis=1)
        self._confidence = answers.probabilities.max(axis=1)
        self._right = self._predicted == labels
        self._widest_first = np.argsort(-margin(answers.probabilities), kind="stable")
        # The bin of each answer, from the least confident; equal confidences share a bin.
        less_confident = np.searchsorted(np.sort(self._confidence), self._confidence)
        self._bins = less_confident * BINS // len(labels)
        groups = np.arange(len(labels)) if groups is None else groups
        self._scans = len(np.unique(groups))
        everything = np.ones((1, len(labels)))
        values, resampled = self._measure(everything), self._measure(resample(groups, resamples, seed))
        self.figures = {name: _estimate(float(values[name][0]), resampled[name]) for name in values}
        """Every figure by its name, such as `macro_f1` or `recall_normal`."""
        for name, counted in self._shares().items():
            self.figures[name] = _widen(self.figures[name], len(np.unique(groups[counted])))
        self.figures["calibration_error_if_perfect"] = self._perfect_calibration_error(resamples, seed)
        self.confusion = self._confusion(everything)[0].astype(int)
        """int [classes, classes]; rows are the true classes, columns the most probable ones."""

    def metrics(self, split: str) -> Metrics:
        """The figures as the model card has them; `split` describes the images in words."""
        figures = self.figures
        estimates: dict[str, Any] = {
            name: figures[name] for name, field in Metrics.model_fields.items() if field.annotation is Estimate
        }
        return Metrics(
            split=split,
            images=len(self._labels),
            scans=self._scans,
            **estimates,
            classes={
                name: ClassMetrics(
                    precision=figures[f"precision_{name}"],
                    recall=figures[f"recall_{name}"],
                    f1=figures[f"f1_{name}"],
                    images=int(self.confusion[label].sum()),
                )
                for label, name in enumerate(class_names())
            },
            confusion=tuple(tuple(int(cell) for cell in row) for row in self.confusion),
            reliability=self._reliability(),
            risk_coverage=self._risk_coverage(),
            rejected=figures["rejected"].value,
            referred=figures["referred"].value,
            unfamiliar=figures["unfamiliar"].value,
        )

    def within(self, parts: NDArray[np.int64]) -> tuple[Fold, ...]:
        """The figures of each part of the images alone; `parts` [N] is the part of each image."""
        inside = np.unique(parts)[:, np.newaxis] == parts
        values = self._measure(inside.astype(float))
        rows = zip(inside.sum(axis=1), values["accuracy"], values["macro_f1"], strict=True)
        return tuple(
            Fold(images=int(images), accuracy=float(accuracy), macro_f1=float(macro_f1))
            for images, accuracy, macro_f1 in rows
        )

    def summary(self) -> dict[str, float]:
        """The rounded figures, with intervals except for those of single classes."""
        numbers: dict[str, float] = {}
        single = {f"{kind}_{name}" for kind in ("precision", "recall", "f1") for name in class_names()}
        for name, figure in self.figures.items():
            numbers[name] = round(figure.value, 4)
            if name not in single:
                numbers |= {f"{name}_low": round(figure.low, 4), f"{name}_high": round(figure.high, 4)}
        return numbers

    def key_figures(self) -> dict[str, float]:
        """The few rounded figures by which trainings are compared."""
        values = {name: self.figures[name].value for name in _KEY}
        values["accepted"] = 1 - self.figures["rejected"].value - self.figures["referred"].value
        return {name: round(value, 4) for name, value in values.items()}

    def draw(self, folder: Path, split: str) -> None:
        """Write the plots of draw_metrics into `folder`; `split` as in `metrics`."""
        draw_metrics(self.metrics(split), titles(), folder)

    def write_pairs(self, path: Path) -> None:
        """Write a CSV file with the true and the most probable class of each image, as DVC's confusion plot reads."""
        names = class_names()
        rows = (f"{names[true]},{names[best]}\n" for true, best in zip(self._labels, self._predicted, strict=True))
        path.write_text("actual,predicted\n" + "".join(rows), encoding="utf-8")

    def _measure(self, weights: Floats) -> dict[str, Floats]:
        """Each figure [R] under R weightings [R, N] of the images. A resample weights images by whole numbers."""
        answers, labels, right = self._answers, self._labels, self._right
        rows, total = np.arange(len(labels)), weights.sum(axis=1)
        true = answers.probabilities[rows, labels]
        brier = ((answers.probabilities - np.eye(class_count())[labels]) ** 2).sum(axis=1)
        cancer = labels != normal_index()
        caught = (self._predicted != normal_index()) | answers.possible_cancer
        means = {
            "loss": -np.log(np.maximum(true, _LEAST_PROBABILITY)),
            "accuracy": right,
            "brier": brier,
            "rejected": answers.rejected,
            "referred": ~(answers.accepted | answers.rejected),
            "unfamiliar": answers.unfamiliar,
            "set_coverage": answers.sets[rows, labels],
            "set_size": answers.sets.sum(axis=1),
            **self._checks,
        }
        with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN: a resample without such images
            figures = {name: weights @ values / total for name, values in means.items()}
            figures |= {
                "calibration_error": self._calibration_error(weights),
                "error_at_80_coverage": self._error_at(COVERAGE, weights),
                "cancer_sensitivity": weights @ (cancer & caught) / (weights @ cancer),
                "cancer_specificity": weights @ ~(cancer | caught) / (weights @ ~cancer),
                "accepted_accuracy": weights @ (answers.accepted & right) / (weights @ answers.accepted),
            }
            confusion = self._confusion(weights)
            hits = np.diagonal(confusion, axis1=1, axis2=2)
            of_class, as_class = confusion.sum(axis=2), confusion.sum(axis=1)
            recall = hits / of_class
            precision = np.where(of_class > 0, hits / np.maximum(as_class, 1), np.nan)
            f1 = np.where(of_class > 0, 2 * hits / (of_class + as_class), np.nan)
            auc = np.stack([self._auc(label, weights) for label in range(class_count())], axis=1)
        for kind, values in (("precision", precision), ("recall", recall), ("f1", f1)):
            figures |= {f"{kind}_{name}": values[:, label] for label, name in enumerate(class_names())}
        figures["macro_f1"] = _mean_over_classes(f1)
        figures["roc_auc"] = _mean_over_classes(auc)
        figures["cancer_auc"] = auc[:, normal_index()]  # the cancers' sum and the normal probability order images alike
        return figures

    def _shares(self) -> dict[str, NDArray[np.bool_]]:
        """The figures that are shares of images, each with the images [N] it is counted on."""
        everything = np.ones(len(self._labels), bool)
        covered = everything.copy()
        covered[self._widest_first[int(np.ceil(COVERAGE * len(covered))) :]] = False
        shares = dict.fromkeys(("accuracy", "rejected", "referred", "unfamiliar", "set_coverage"), everything)
        shares |= {"accepted_accuracy": self._answers.accepted, "error_at_80_coverage": covered}
        normal = self._labels == normal_index()
        shares |= {"cancer_sensitivity": ~normal, "cancer_specificity": normal}
        shares |= {name: everything for name, values in self._checks.items() if np.isin(values, (0, 1)).all()}
        for label, name in enumerate(class_names()):
            of_class, as_class = self._labels == label, self._predicted == label
            shares |= {f"recall_{name}": of_class, f"precision_{name}": as_class, f"f1_{name}": of_class | as_class}
        return shares

    def _confusion(self, weights: Floats) -> Floats:
        """Weight of each pair of true and most probable class, [R, classes, classes]."""
        count = class_count()
        return _table(self._labels * count + self._predicted, count**2, weights).reshape(-1, count, count)

    def _calibration_error(self, weights: Floats) -> Floats:
        gap = (self._confidence - self._right)[np.newaxis]
        return np.asarray(np.abs(_table(self._bins, BINS, weights * gap)).sum(axis=1) / weights.sum(axis=1))

    def _perfect_calibration_error(self, draws: int, seed: int) -> Estimate:
        """The error that chance alone causes: correctness is drawn with the confidences as its probabilities."""
        right = np.random.default_rng(seed).random((draws, len(self._labels))) < self._confidence
        gaps = np.abs(_table(self._bins, BINS, self._confidence - right)).sum(axis=1) / len(self._labels)
        low, middle, high = (float(bound) for bound in np.percentile(gaps, (_INTERVAL[0], 50, _INTERVAL[1])))
        return Estimate(value=middle, low=low, high=high)

    def _error_at(self, coverage: float, weights: Floats) -> Floats:
        """Error rate [R] of the images with the widest margins that together have this share of the weight."""
        sorted_weights = weights[:, self._widest_first]
        before = np.cumsum(sorted_weights, axis=1) - sorted_weights
        covered = sorted_weights * (before < coverage * weights.sum(axis=1, keepdims=True) - 1e-9)
        return np.asarray(covered @ ~self._right[self._widest_first] / covered.sum(axis=1))

    def _auc(self, label: int, weights: Floats) -> Floats:
        """One class against the rest [R]."""
        return weighted_auc(self._answers.probabilities[:, label], self._labels == label, weights)

    def _reliability(self) -> tuple[ReliabilityBin, ...]:
        return tuple(
            ReliabilityBin(
                confidence=float(self._confidence[chosen].mean()),
                accuracy=float(self._right[chosen].mean()),
                images=int(chosen.sum()),
            )
            for chosen in (self._bins == each for each in np.unique(self._bins))
        )

    def _risk_coverage(self) -> tuple[RiskPoint, ...]:
        wrong = ~self._right[self._widest_first]
        counts = np.unique(np.ceil(COVERAGES * len(wrong)).astype(int))
        return tuple(
            RiskPoint(coverage=float(count / len(wrong)), risk=float(wrong[:count].mean())) for count in counts
        )


def weighted_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """The share [R] of pairs of a positive and a negative image that `scores` [N] order correctly; ties count half.

    Each of R `weights` [R, N] weights the images.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of each run of equal scores
    of_positive = np.add.reduceat(weights[:, order] * positive[order], starts, axis=1)
    of_rest = np.add.reduceat(weights[:, order] * ~positive[order], starts, axis=1)
    below = np.cumsum(of_rest, axis=1) - of_rest / 2
    return np.asarray((of_positive * below).sum(axis=1) / (of_positive.sum(axis=1) * of_rest.sum(axis=1)))


def resample(groups: NDArray[np.int64], resamples: int, seed: int) -> Floats:
    """The number of times that each image occurs in each resample of whole groups, [R, N]."""
    names, group_of = np.unique(groups, return_inverse=True)
    share = np.full(len(names), 1 / len(names))
    return np.random.default_rng(seed).multinomial(len(names), share, resamples)[:, group_of].astype(float)


def _table(kinds: NDArray[np.int64], count: int, weights: Floats) -> Floats:
    """Total weight [R, count] of each kind of image, 0 to `count` - 1; `kinds` [N], `weights` [R, N]."""
    return np.asarray(weights @ (kinds[:, np.newaxis] == np.arange(count)))


def _mean_over_classes(figures: Floats) -> Floats:
    """Mean [R] of [R, classes] without NaN, or NaN if all are NaN."""
    present = ~np.isnan(figures)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(present, figures, 0).sum(axis=1) / present.sum(axis=1))


def _estimate(value: float, resampled: Floats) -> Estimate:
    """The percentile interval, widened to include the value: a figure such as the calibration error is biased."""
    known = resampled[~np.isnan(resampled)]
    if np.isnan(value) or not len(known):
        return Estimate(value=0, low=0, high=1)
    low, high = (float(bound) for bound in np.percentile(known, _INTERVAL))
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def _widen(estimate: Estimate, groups: int) -> Estimate:
    """The exact binomial (Clopper-Pearson) interval of a share of 0 or 1. Other shares keep their interval."""
    if groups == 0 or 0 < estimate.value < 1:
        return estimate
    reach = ((100 - _INTERVAL[1]) / 100) ** (1 / groups)
    low, high = (reach, 1.0) if estimate.value == 1 else (0.0, 1 - reach)
    return Estimate(value=estimate.value, low=min(low, estimate.low), high=max(high, estimate.high))
