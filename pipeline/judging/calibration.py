"""Numbers fitted after training, on predictions of images the network was not trained on.

Each fold's images are predicted by a network trained on the other folds; pooled, these out-of-fold predictions cover
train + valid. What ships is fitted on all of them. What is reported is cross-fitted: each fold is answered with numbers
fitted on the other folds. Two choices are made on all folds, the number of epochs (pipeline.train) and the method of
scaling, so the figures are a little too good; docs/explanation/evaluation.md says how much.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from chestct.card import (
    Estimate,
    Fold,
    Frozen,
    InputLimits,
    Metrics,
    ModelCard,
    Others,
    Scaling,
    ScoreCounts,
    Thresholds,
)
from chestct.image import Facts
from chestct.prediction import Evidence, cancer_probability, judge, possible_cancer, prediction_set
from pipeline.core.params import Costs, Evaluate
from pipeline.images.classes import CLASSES, NORMAL

MIN_ACCEPTED: Final = 0.5
"""The refer margin leaves at least this share of answers accepted, even where the target risk then can't be met."""

_NORMAL: Final = CLASSES.index(NORMAL)
_ROUNDING: Final = 1e-6
_TEMPERATURES: Final = (0.05, 20.0)
Method = Literal["temperature", "vector"]
METHODS: Final[tuple[Method, ...]] = ("temperature", "vector")

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class Calibration(Frozen):
    """`models/calibration.json`."""

    scaling: Scaling
    thresholds: Thresholds
    input_limits: InputLimits

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


class OutOfFold(Frozen):
    """OUT_OF_FOLD_CARD: what the model card says of the folds."""

    metrics: Metrics
    folds: tuple[Fold, ...]
    baselines: dict[str, dict[str, Estimate]]
    checks: dict[str, Estimate]
    others: dict[str, Others]
    ood_scores: ScoreCounts


class Scored(NamedTuple):
    """N images, scored by networks that never saw them."""

    logits: Floats
    """[N, classes], uncalibrated."""
    ood_scores: Floats
    """[N]"""
    labels: Ints
    """[N]"""
    facts: Sequence[Facts]
    """N, of the pictures as they came."""

    def take(self, where: Ints) -> "Scored":
        return Scored(
            self.logits[where], self.ood_scores[where], self.labels[where], [self.facts[index] for index in where]
        )


class Answers(NamedTuple):
    """What the service would answer for N images."""

    probabilities: Floats
    """[N, classes], calibrated."""
    accepted: NDArray[np.bool_]
    """[N]"""
    rejected: NDArray[np.bool_]
    """[N]; those neither accepted nor rejected are referred."""
    sets: NDArray[np.bool_]
    """[N, classes]: the prediction sets."""
    possible_cancer: NDArray[np.bool_]
    """[N]: labelled normal, and the any-cancer rule speaks."""


def fit(scored: Scored, wanted: Evaluate, method: Method) -> Calibration:
    """Fit every number; `method` is how logits become probabilities."""
    labels = scored.labels
    scaling = fit_scaling(scored.logits, labels, method)
    probabilities = softmax(scaling.apply(scored.logits), axis=1)
    return Calibration(
        scaling=scaling,
        thresholds=Thresholds(
            ood_limit=float(np.quantile(scored.ood_scores, 1 - wanted.ood_false_rejection, method="higher")),
            refer_margin=fit_refer_margin(probabilities, labels, wanted.refer_risk),
            any_cancer=fit_any_cancer(probabilities, labels, wanted.cancer_sensitivity),
            least_confidence=fit_least_confidence(probabilities, labels, wanted.costs),
            conformal_quantile=fit_conformal_quantile(probabilities, labels, wanted.conformal_coverage),
            conformal_coverage=wanted.conformal_coverage,
        ),
        input_limits=InputLimits(**wanted.input_rules.model_dump(), average_layout=average_layout(scored.facts)),
    )


def cross_fit(scored: Scored, folds: Ints, wanted: Evaluate, method: Method) -> Answers:
    """Answer each fold with numbers fitted on the other folds."""
    parts: list[tuple[Ints, Answers]] = []
    for fold in np.unique(folds):
        held_out = np.flatnonzero(folds == fold)
        fitted = fit(scored.take(np.flatnonzero(folds != fold)), wanted, method)
        part = scored.take(held_out)
        probabilities = softmax(fitted.scaling.apply(part.logits), axis=1)
        parts.append((held_out, answer(probabilities, part.ood_scores, part.facts, fitted)))
    order = np.argsort(np.concatenate([held_out for held_out, _ in parts]))
    return Answers(*(np.concatenate(field)[order] for field in zip(*(part for _, part in parts), strict=True)))


def cross_fitted_loss(scored: Scored, folds: Ints, method: Method) -> float:
    """Cross-entropy in nats, each fold scaled by what was fitted on the others."""
    total = 0.0
    for fold in np.unique(folds):
        others, held_out = folds != fold, folds == fold
        scaling = fit_scaling(scored.logits[others], scored.labels[others], method)
        total += cross_entropy(scaling.apply(scored.logits[held_out]), scored.labels[held_out]) * held_out.sum()
    return total / len(folds)


def answer(
    probabilities: Floats, ood_scores: Floats, facts: Sequence[Facts], numbers: Calibration | ModelCard
) -> Answers:
    """Judge calibrated `probabilities` [N, classes], `ood_scores` [N] and N facts by the service's own rules."""
    evidence = [
        Evidence(row, float(score), _NORMAL, numbers.thresholds, each, numbers.input_limits)
        for row, score, each in zip(probabilities, ood_scores, facts, strict=True)
    ]
    decisions = np.array([judge(each)[0] for each in evidence])
    sets = np.zeros(probabilities.shape, bool)
    for row, each in enumerate(evidence):
        sets[row, prediction_set(each)] = True
    return Answers(
        probabilities,
        decisions == "accept",
        decisions == "reject",
        sets,
        np.array([possible_cancer(each) for each in evidence]),
    )


def average_layout(facts: Sequence[Facts]) -> tuple[float, ...]:
    """The mean of the coarse pictures, each with mean 0 and standard deviation 1."""
    rows = np.stack([each.layout.ravel() for each in facts])
    rows = (rows - rows.mean(axis=1, keepdims=True)) / np.maximum(rows.std(axis=1, keepdims=True), 1e-9)
    return tuple(float(level) for level in rows.mean(axis=0).round(4))


def cross_entropy(logits: Floats, labels: Ints) -> float:
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def fit_scaling(logits: Floats, labels: Ints, method: Method) -> Scaling:
    """The scaling of that kind with the least cross-entropy."""
    temperature = fit_temperature(logits, labels)
    classes = logits.shape[1]
    scale, shift = np.full(classes, 1 / temperature), np.zeros(classes)
    if method == "vector":

        def loss(parameters: Floats) -> float:
            scaled = logits * np.exp(parameters[:classes]) + np.append(parameters[classes:], 0)
            return cross_entropy(scaled, labels)

        start = np.concatenate([np.log(scale), shift[1:]])  # a shift of all classes would change nothing
        bounds = [tuple(-np.log(_TEMPERATURES)[::-1])] * classes + [(-5.0, 5.0)] * (classes - 1)
        found = minimize(loss, start, method="L-BFGS-B", bounds=bounds).x
        scale, shift = np.exp(found[:classes]), np.append(found[classes:], 0)
    return Scaling(method=method, scale=tuple(map(float, scale)), shift=tuple(map(float, shift)))


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """The temperature with the least cross-entropy, within 0.05 to 20."""

    def loss(log_temperature: float) -> float:
        return cross_entropy(logits / np.exp(log_temperature), labels)

    bounds = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))


def fit_refer_margin(probabilities: Floats, labels: Ints, risk: float) -> float:
    """The smallest margin between the two highest probabilities that leaves at most `risk` errors among accepted.

    Where no margin that accepts MIN_ACCEPTED does, the one among those with the least risk.
    """
    margins = margin(probabilities)
    wrong = probabilities.argmax(axis=1) != labels
    widest_first = np.argsort(-margins, kind="stable")
    accepted = np.arange(1, len(labels) + 1)
    risks = np.cumsum(wrong[widest_first]) / accepted
    margins = margins[widest_first]
    last_of_ties = np.append(margins[1:] != margins[:-1], True)  # equal margins are accepted together
    allowed = last_of_ties & (accepted >= MIN_ACCEPTED * len(labels))
    if risks[-1] <= risk:
        return 0.0
    good = np.flatnonzero(allowed & (risks <= risk))
    if len(good):
        return float(margins[good[-1]])
    candidates = np.flatnonzero(allowed)
    return float(margins[candidates[np.argmin(risks[candidates])]])


def fit_any_cancer(probabilities: Floats, labels: Ints, sensitivity: float) -> float:
    """The highest threshold on the cancers' summed probability that catches `sensitivity` of the cancers.

    The rule speaks only where the label would be normal, so a cancer is caught by any cancer's label or by the rule.
    The threshold lies a little below the last one that is to be caught: the service's probabilities are float32.
    """
    cancer = labels != _NORMAL
    missed = cancer & (probabilities.argmax(axis=1) == _NORMAL)
    to_catch = int(np.ceil(sensitivity * cancer.sum())) - int(cancer.sum() - missed.sum())
    if to_catch <= 0:
        return 1.0
    summed = np.sort(cancer_probability(probabilities[missed], _NORMAL))[::-1]
    return max(float(summed[to_catch - 1]) - _ROUNDING, 0.0)


def fit_least_confidence(probabilities: Floats, labels: Ints, costs: Costs) -> tuple[float, ...]:
    """For each class the least probability at which its label should stand: where the answers' total cost is least.

    An answer below it costs `costs.refer`, one that stands what its error costs. Of equally good ones the lowest.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    table = costs_of_errors(costs)
    thresholds = []
    for label in range(probabilities.shape[1]):
        chosen = np.flatnonzero(predicted == label)
        chosen = chosen[np.argsort(confidence[chosen], kind="stable")]
        errors = table[labels[chosen], label]
        total = np.append(0, np.cumsum(costs.refer - errors)) + errors.sum()  # with the k least sure ones referred
        best = int(np.argmin(total))
        if best == 0:
            thresholds.append(0.0)
        elif best == len(chosen):
            thresholds.append(1.0)
        else:
            thresholds.append(float(confidence[chosen[best]]))
    return tuple(thresholds)


def costs_of_errors(costs: Costs) -> Floats:
    """[true class, label]: what a label that stands costs."""
    table = np.full((len(CLASSES), len(CLASSES)), costs.wrong_cancer)
    table[:, _NORMAL] = costs.missed_cancer
    table[_NORMAL, :] = costs.false_alarm
    np.fill_diagonal(table, 0)
    return table


def fit_conformal_quantile(probabilities: Floats, labels: Ints, coverage: float) -> float:
    """Split conformal prediction with the score 1 - probability of the true class, corrected for finitely many images.

    The promise of `coverage` holds for images exchangeable with these; slices of one scan are alike, so it is
    approximate.
    """
    scores = np.sort(1 - probabilities[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(labels) + 1) * coverage))
    return float(scores[rank - 1]) if rank <= len(labels) else 1.0


def margin(probabilities: Floats) -> Floats:
    """Difference of the two highest probabilities [N]."""
    highest = np.sort(probabilities, axis=1)
    return np.asarray(highest[:, -1] - highest[:, -2])
