"""Fits the thresholds that decide whether an answer is accepted, referred or rejected."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from chestct.card import Thresholds
from chestct.prediction import cancer_probability
from pipeline.core.params import Costs, Evaluate
from pipeline.images.classes import class_count, normal_index

MOST_CHEST_CT_LIMIT: Final = 0.3
"""Slices of other sources look less like chest CT than those at hand. With 0.5, a source that the probe was not fitted
on lost 20 % of its slices, most of them at the height of the liver; with 0.3 it lost 14 %."""
_ROUNDING: Final = 1e-6

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]


def fit_thresholds(
    probabilities: Floats, ood_scores: Floats, chest_ct: Floats, labels: Ints, wanted: Evaluate
) -> Thresholds:
    """Fit every threshold on calibrated `probabilities` [N, classes] and true `labels` [N].

    `ood_scores` [N] and `chest_ct` [N] are what the graph gives for these slices.
    """
    least_confidence = fit_least_confidence(probabilities, labels, wanted.costs)
    any_cancer = fit_any_cancer(probabilities, labels, wanted.cancer_sensitivity)
    predicted = probabilities.argmax(axis=1)
    confident = probabilities.max(axis=1) >= np.asarray(least_confidence)[predicted]
    suspect = (predicted == normal_index()) & (cancer_probability(probabilities, normal_index()) >= any_cancer)
    return Thresholds(
        ood_limit=float(np.quantile(ood_scores, 1 - wanted.ood_false_rejection, method="higher")),
        chest_ct_limit=fit_chest_ct_limit(chest_ct, wanted.chest_ct_false_rejection),
        refer_margin=fit_refer_margin(probabilities, labels, wanted.refer_risk, standing=confident & ~suspect),
        any_cancer=any_cancer,
        least_confidence=least_confidence,
        conformal_quantile=fit_conformal_quantile(probabilities, labels, wanted.conformal_coverage),
        conformal_coverage=wanted.conformal_coverage,
    )


def fit_chest_ct_limit(chest_ct: Floats, false_rejection: float) -> float:
    """The limit below which the share `false_rejection` of these chest CT slices lies; MOST_CHEST_CT_LIMIT at most."""
    return min(MOST_CHEST_CT_LIMIT, float(np.quantile(chest_ct, false_rejection, method="lower")))


def fit_refer_margin(probabilities: Floats, labels: Ints, risk: float, standing: NDArray[np.bool_]) -> float:
    """The smallest margin between the two highest probabilities with at most `risk` errors among accepted answers.

    `standing` [N] are the answers that all other rules accept. If no margin meets `risk`, it is 1: none is accepted.
    """
    margins = margin(probabilities)[standing]
    wrong = (probabilities.argmax(axis=1) != labels)[standing]
    if wrong.sum() <= risk * len(wrong):
        return 0.0
    widest_first = np.argsort(-margins, kind="stable")
    risks = np.cumsum(wrong[widest_first]) / np.arange(1, len(wrong) + 1)
    margins = margins[widest_first]
    last_of_ties = np.append(margins[1:] != margins[:-1], True)  # equal margins are accepted together
    good = np.flatnonzero(last_of_ties & (risks <= risk))
    return float(margins[good[-1]]) if len(good) else 1.0


def fit_any_cancer(probabilities: Floats, labels: Ints, sensitivity: float) -> float:
    """The highest threshold on the cancers' summed probability that catches `sensitivity` of the cancers.

    The rule applies only to answers labelled normal, so the label of any cancer catches a cancer too. The threshold is
    slightly below the last probability that it must catch, because the service computes in float32.
    """
    cancer = labels != normal_index()
    missed = cancer & (probabilities.argmax(axis=1) == normal_index())
    to_catch = int(np.ceil(sensitivity * cancer.sum())) - int(cancer.sum() - missed.sum())
    if to_catch <= 0:
        return 1.0
    summed = np.sort(cancer_probability(probabilities[missed], normal_index()))[::-1]
    return max(float(summed[to_catch - 1]) - _ROUNDING, 0.0)


def fit_least_confidence(probabilities: Floats, labels: Ints, costs: Costs) -> tuple[float, ...]:
    """For each class, the lowest probability at which its label is accepted: the one with the least total cost.

    An answer below it costs `costs.refer`; an accepted answer costs its error. Of equal costs, the lowest probability.
    It is never below the probability at which an answer that is as often right as it says costs as much as a referral:
    a few patients who happen to be answered rightly do not prove more.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    table = costs_of_errors(costs)
    thresholds = []
    for label in range(probabilities.shape[1]):
        chosen = np.flatnonzero(predicted == label)
        chosen = chosen[np.argsort(confidence[chosen], kind="stable")]
        errors = table[labels[chosen], label]
        total = np.append(0, np.cumsum(costs.refer - errors)) + errors.sum()  # if the k least confident are referred
        candidates = [0.0, *confidence[chosen][1:], 1.0]
        worth = max(0.0, 1 - costs.refer / float(table[:, label].max()))
        thresholds.append(max(worth, float(candidates[int(np.argmin(total))])))
    return tuple(thresholds)


def costs_of_errors(costs: Costs) -> Floats:
    """Cost of an accepted label, float [true class, label]."""
    table = np.full((class_count(), class_count()), costs.wrong_cancer)
    table[:, normal_index()] = costs.missed_cancer
    table[normal_index(), :] = costs.false_alarm
    np.fill_diagonal(table, 0)
    return table


def mean_costs(probabilities: Floats, accepted: NDArray[np.bool_], labels: Ints, costs: Costs) -> dict[str, float]:
    """Mean cost of an answer: as decided, if all were accepted, and if all were referred."""
    errors = costs_of_errors(costs)[labels, probabilities.argmax(axis=1)]
    return {
        "cost": round(float(np.where(accepted, errors, costs.refer).mean()), 4),
        "cost_if_all_stood": round(float(errors.mean()), 4),
        "cost_if_all_referred": round(costs.refer, 4),
    }


def fit_conformal_quantile(probabilities: Floats, labels: Ints, coverage: float) -> float:
    """The quantile of 1 - probability of the true class, by which a prediction set reaches `coverage` on these images.

    It is corrected for a finite number of images, as in conformal prediction. That method's guarantee does not hold
    here: slices of one scan are alike, and each image is scored by another network than the one that is served.
    """
    scores = np.sort(1 - probabilities[np.arange(len(labels)), labels])
    rank = int(np.ceil((len(labels) + 1) * coverage))
    return float(scores[rank - 1]) if rank <= len(labels) else 1.0


def margin(probabilities: Floats) -> Floats:
    """Difference between the two highest probabilities, [N]."""
    highest = np.sort(probabilities, axis=1)
    return np.asarray(highest[:, -1] - highest[:, -2])
