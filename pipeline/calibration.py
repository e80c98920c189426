"""Numbers fitted after training, on predictions of images the network was not trained on.

Each fold's images are predicted by a network trained on the other folds; pooled, these out-of-fold predictions cover
train + valid. What ships is fitted on all of them. What is reported is cross-fitted: each fold is answered with numbers
fitted on the other folds, so no figure is measured on the images that tuned it.
"""

from pathlib import Path
from typing import Annotated, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from chestct.card import Frozen, Thresholds
from chestct.prediction import Evidence, judge, prediction_set
from pipeline.classes import CLASSES, NORMAL
from pipeline.params import Evaluate

MIN_ACCEPTED: Final = 0.5
"""The refer margin leaves at least this share of answers accepted, even where the target risk then can't be met."""

_NORMAL: Final = CLASSES.index(NORMAL)
_TEMPERATURES: Final = (0.05, 20.0)

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


class Calibration(Frozen):
    """`models/calibration.json`."""

    temperature: Annotated[float, Field(gt=0)]
    """The graph's probabilities are softmax(logits / temperature)."""
    thresholds: Thresholds

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")


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


def fit(logits: Floats, ood_scores: Floats, labels: Ints, wanted: Evaluate) -> Calibration:
    """Fit every number on uncalibrated `logits` [N, classes], `ood_scores` [N] and `labels` [N]."""
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits / temperature, axis=1)
    return Calibration(
        temperature=temperature,
        thresholds=Thresholds(
            ood_limit=float(np.quantile(ood_scores, 1 - wanted.ood_false_rejection, method="higher")),
            refer_margin=fit_refer_margin(probabilities, labels, wanted.refer_risk),
            any_cancer=fit_any_cancer(probabilities, labels, wanted.cancer_sensitivity),
            conformal_quantile=fit_conformal_quantile(probabilities, labels, wanted.conformal_coverage),
            conformal_coverage=wanted.conformal_coverage,
        ),
    )


def cross_fit(logits: Floats, ood_scores: Floats, labels: Ints, folds: Ints, wanted: Evaluate) -> Answers:
    """Answer each fold with numbers fitted on the other folds."""
    parts: list[tuple[Ints, Answers]] = []
    for fold in np.unique(folds):
        held_out = np.flatnonzero(folds == fold)
        others = np.flatnonzero(folds != fold)
        fitted = fit(logits[others], ood_scores[others], labels[others], wanted)
        probabilities = softmax(logits[held_out] / fitted.temperature, axis=1)
        parts.append((held_out, answer(probabilities, ood_scores[held_out], fitted.thresholds)))
    order = np.argsort(np.concatenate([held_out for held_out, _ in parts]))
    return Answers(*(np.concatenate(field)[order] for field in zip(*(part for _, part in parts), strict=True)))


def answer(probabilities: Floats, ood_scores: Floats, thresholds: Thresholds) -> Answers:
    """Judge calibrated `probabilities` [N, classes] and `ood_scores` [N] by the service's own rules."""
    evidence = [
        Evidence(row, float(score), _NORMAL, thresholds) for row, score in zip(probabilities, ood_scores, strict=True)
    ]
    decisions = np.array([judge(each)[0] for each in evidence])
    sets = np.zeros(probabilities.shape, bool)
    for row, each in enumerate(evidence):
        sets[row, prediction_set(each)] = True
    return Answers(probabilities, decisions == "accept", decisions == "reject", sets)


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """The temperature with the least cross-entropy, within 0.05 to 20."""

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(log_probabilities[np.arange(len(labels)), labels].mean())

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
    """
    cancer = labels != _NORMAL
    missed = cancer & (probabilities.argmax(axis=1) == _NORMAL)
    to_catch = int(np.ceil(sensitivity * cancer.sum())) - int(cancer.sum() - missed.sum())
    if to_catch <= 0:
        return 1.0
    summed = np.sort(1 - probabilities[missed, _NORMAL])[::-1]
    return float(summed[to_catch - 1])


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
