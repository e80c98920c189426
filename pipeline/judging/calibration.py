"""Fits, after training, the numbers that turn a network's scores into answers.

A network that was trained on the other folds predicts each fold's images. Together, these out-of-fold predictions cover
train and valid. The released numbers are fitted on all of them. The reported figures are cross-fitted: each fold is
answered with numbers that were fitted on the other folds. One choice uses all folds, the scaling method. The
figures are therefore slightly optimistic: see docs/explanation/evaluation.md.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from chestct.card import (
    Estimate,
    Fold,
    InputLimits,
    Metrics,
    ModelCard,
    OtherPictures,
    Reference,
    Scaling,
    ScoreCounts,
    Thresholds,
)
from chestct.document import JsonFile
from chestct.image import Facts
from chestct.prediction import Evidence, judge, possible_cancer, prediction_set
from pipeline.core.params import Evaluate
from pipeline.images.classes import normal_index
from pipeline.judging.thresholds import Floats, Ints, fit_thresholds

_TEMPERATURES: Final = (0.05, 20.0)
Method = Literal["temperature", "normal_apart"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)


class Calibration(JsonFile):
    """`models/calibration.json`."""

    scaling: Scaling
    thresholds: Thresholds
    input_limits: InputLimits


class OutOfFold(JsonFile):
    """OUT_OF_FOLD_CARD: the out-of-fold part of the model card."""

    metrics: Metrics
    folds: tuple[Fold, ...]
    baselines: dict[str, dict[str, Estimate]]
    checks: dict[str, Estimate]
    styles: dict[str, dict[str, Estimate]]
    others: dict[str, OtherPictures]
    ood_scores: ScoreCounts
    reference: Reference


class Scored(NamedTuple):
    """N images, each scored by a network that was not trained on it."""

    logits: Floats
    """[N, classes], uncalibrated."""
    ood_scores: Floats
    """[N]"""
    chest_ct: Floats
    """[N], by a probe that was not fitted on it."""
    labels: Ints
    """[N], the true classes."""
    facts: Sequence[Facts]
    """N, measured on the original pictures."""

    def take(self, rows: Ints) -> "Scored":
        """The images with these indices."""
        facts = [self.facts[row] for row in rows]
        return Scored(self.logits[rows], self.ood_scores[rows], self.chest_ct[rows], self.labels[rows], facts)


class Answers(NamedTuple):
    """The service's answers for N images."""

    probabilities: Floats
    """[N, classes], calibrated."""
    accepted: NDArray[np.bool_]
    """[N]"""
    rejected: NDArray[np.bool_]
    """[N]. Answers that are neither accepted nor rejected are referred."""
    unfamiliar: NDArray[np.bool_]
    """[N], referred without a label."""
    sets: NDArray[np.bool_]
    """[N, classes], the prediction sets."""
    possible_cancer: NDArray[np.bool_]
    """[N], labelled normal although the cancers together are too probable."""


def fit(scored: Scored, wanted: Evaluate, method: Method) -> Calibration:
    """Fit the scaling, every threshold and the average layout; `method` turns logits into probabilities."""
    scaling = fit_scaling(scored.logits, scored.labels, method)
    probabilities = softmax(scaling.apply(scored.logits), axis=1)
    return Calibration(
        scaling=scaling,
        thresholds=fit_thresholds(probabilities, scored.ood_scores, scored.chest_ct, scored.labels, wanted),
        input_limits=InputLimits(**wanted.input_rules.model_dump(), average_layout=average_layout(scored.facts)),
    )


def cross_fit(scored: Scored, folds: Ints, wanted: Evaluate, method: Method) -> Answers:
    """Answer each fold with numbers that were fitted on the other folds; `folds` [N]."""
    parts: list[tuple[Ints, Answers]] = []
    for fold in np.unique(folds):
        held_out = np.flatnonzero(folds == fold)
        fitted = fit(scored.take(np.flatnonzero(folds != fold)), wanted, method)
        part = scored.take(held_out)
        probabilities = softmax(fitted.scaling.apply(part.logits), axis=1)
        parts.append((held_out, answer(probabilities, part.ood_scores, part.chest_ct, part.facts, fitted)))
    order = np.argsort(np.concatenate([held_out for held_out, _ in parts]))
    return Answers(*(np.concatenate(field)[order] for field in zip(*(part for _, part in parts), strict=True)))


def cross_fitted_loss(scored: Scored, folds: Ints, method: Method) -> float:
    """Mean cross-entropy in nats; each fold's scaling is fitted on the other folds."""
    total = 0.0
    for fold in np.unique(folds):
        training, held_out = folds != fold, folds == fold
        scaling = fit_scaling(scored.logits[training], scored.labels[training], method)
        total += cross_entropy(scaling.apply(scored.logits[held_out]), scored.labels[held_out]) * held_out.sum()
    return total / len(folds)


def answer(
    probabilities: Floats,
    ood_scores: Floats,
    chest_ct: Floats,
    facts: Sequence[Facts],
    numbers: Calibration | ModelCard,
) -> Answers:
    """Apply the service's rules to N images, of which `probabilities` [N, classes] are calibrated."""
    normal = normal_index()
    evidence = [
        Evidence(row, float(score), float(chest), normal, numbers.thresholds, each, numbers.input_limits)
        for row, score, chest, each in zip(probabilities, ood_scores, chest_ct, facts, strict=True)
    ]
    judged = [judge(each) for each in evidence]
    decisions = np.array([decision for decision, _ in judged])
    unfamiliar = np.array([any(rule.withholds for rule in rules) for _, rules in judged])
    sets = np.zeros(probabilities.shape, bool)
    for row, each in enumerate(evidence):
        sets[row, prediction_set(each)] = True
    cancers = np.array([possible_cancer(each) for each in evidence])
    return Answers(probabilities, decisions == "accept", decisions == "reject", unfamiliar, sets, cancers)


def average_layout(facts: Sequence[Facts]) -> tuple[float, ...]:
    """The mean of the coarse pictures, each scaled to mean 0 and standard deviation 1."""
    rows = np.stack([each.layout.ravel() for each in facts])
    rows = (rows - rows.mean(axis=1, keepdims=True)) / np.maximum(rows.std(axis=1, keepdims=True), 1e-9)
    return tuple(float(level) for level in rows.mean(axis=0).round(4))


def cross_entropy(logits: Floats, labels: Ints) -> float:
    """Mean cross-entropy in nats of `logits` [N, classes]."""
    return -float(log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def fit_scaling(logits: Floats, labels: Ints, method: Method) -> Scaling:
    """The scaling with the lowest cross-entropy: one temperature, or other numbers for normal than for the cancers.

    A network can be sure that a slice shows a cancer and not know which one. One temperature can't say both. The order
    of the cancers stays in either.
    """
    temperature = fit_temperature(logits, labels)
    classes = logits.shape[1]
    scale: Floats = np.full(classes, 1 / temperature)
    shift: Floats = np.zeros(classes)
    if method == "normal_apart":
        normal = np.arange(classes) == normal_index()

        def unpack(parameters: Floats) -> tuple[Floats, Floats]:
            cancers, apart, moved = parameters
            return np.where(normal, np.exp(apart), np.exp(cancers)), np.where(normal, moved, 0)

        def loss(parameters: Floats) -> float:
            by, plus = unpack(parameters)
            return cross_entropy(logits * by + plus, labels)

        bound = tuple(-np.log(_TEMPERATURES)[::-1])
        start = np.array([np.log(scale[0]), np.log(scale[0]), 0])
        found = minimize(loss, start, method="L-BFGS-B", bounds=[bound, bound, (-5.0, 5.0)]).x
        scale, shift = unpack(found)
    return Scaling(method=method, scale=tuple(map(float, scale)), shift=tuple(map(float, shift)))


def fit_temperature(logits: Floats, labels: Ints, loss: Callable[[Floats, Ints], float] = cross_entropy) -> float:
    """The temperature, 0.05 to 20, with the lowest `loss` of the scaled logits [N, classes] and `labels` [N]."""

    def loss_at(log_temperature: float) -> float:
        return loss(logits / np.exp(log_temperature), labels)

    bounds = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss_at, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x))
