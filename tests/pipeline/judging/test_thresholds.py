"""The thresholds are the best ones that keep their bounds, and the service's rules use them in the same way."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.core.params import Costs
from pipeline.images.classes import CLASSES, NORMAL
from pipeline.judging.calibration import answer
from pipeline.judging.thresholds import (
    fit_any_cancer,
    fit_conformal_quantile,
    fit_least_confidence,
    fit_refer_margin,
)
from tests.graphs import plain_facts, tiny_card
from tests.pipeline.judging.predictions import draw

COSTS = Costs(refer=1, wrong_cancer=4, false_alarm=4, missed_cancer=20)


def rows(*first_class: float) -> NDArray[np.float64]:
    """Probabilities [N, 4]: the given one for class 0, the rest for class 1."""
    top = np.array(first_class)
    return np.stack([top, 1 - top, np.zeros_like(top), np.zeros_like(top)], axis=1)


def test_the_refer_margin_is_the_smallest_that_meets_the_risk() -> None:
    probabilities = rows(0.95, 0.9, 0.85, 0.8, 0.75)  # margins 0.9, 0.8, 0.7, 0.6, 0.5
    labels = np.array([0, 0, 0, 1, 0])  # one error of five; the fourth
    everything = np.ones(5, bool)
    assert fit_refer_margin(probabilities, labels, risk=0.2, standing=everything) == 0
    assert fit_refer_margin(probabilities, labels, risk=0.1, standing=everything) == pytest.approx(0.7)


def test_answers_that_other_rules_refer_do_not_move_the_margin() -> None:
    probabilities, labels = rows(0.95, 0.9, 0.85, 0.8, 0.75), np.array([0, 0, 0, 1, 0])
    assert fit_refer_margin(probabilities, labels, risk=0.1, standing=np.arange(5) != 3) == 0
    assert fit_refer_margin(probabilities, labels, risk=0.1, standing=np.zeros(5, bool)) == 0


def test_a_margin_that_several_answers_share_accepts_all_or_none_of_them() -> None:
    probabilities = rows(0.95, 0.95, 0.95, 0.8, 0.8, 0.8)
    labels = np.array([0, 0, 0, 0, 1, 1])  # the fourth, being right, can't be accepted without the wrong ones
    assert fit_refer_margin(probabilities, labels, risk=0.1, standing=np.ones(6, bool)) == pytest.approx(0.9)


def test_a_risk_that_no_margin_meets_leaves_nothing_accepted() -> None:
    logits, _, _ = draw(200)
    always_wrong = (logits.argmax(axis=1) + 1) % 4
    everything = np.ones(200, bool)
    assert fit_refer_margin(softmax(logits, axis=1), always_wrong, risk=0.05, standing=everything) == 1


def rule_fires(probabilities: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Whether the service's any-cancer rule fires, [N]."""
    thresholds = tiny_card().thresholds.model_copy(update={"any_cancer": threshold})
    card = tiny_card().model_copy(update={"thresholds": thresholds})
    count = len(probabilities)
    return answer(probabilities, np.zeros(count), np.ones(count), [plain_facts()] * count, card).possible_cancer


def test_the_any_cancer_threshold_catches_the_wanted_share_of_cancers() -> None:
    normal = CLASSES.index(NORMAL)
    cancer = np.array([0.9, 0.9, 0.45, 0.4, 0.3, 0.1])  # four of the cancers are called normal
    probabilities = np.zeros((6, 4))
    probabilities[:, 0] = cancer
    probabilities[:, normal] = 1 - cancer
    labels = np.zeros(6, np.int64)
    for sensitivity, speaks in ((4 / 6, [2, 3]), (0.99, [2, 3, 4, 5]), (2 / 6, [])):
        threshold = fit_any_cancer(probabilities, labels, sensitivity)
        assert np.flatnonzero(rule_fires(probabilities, threshold)).tolist() == speaks


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_services_rule_catches_the_wanted_share_of_cancers(dtype: type[np.floating]) -> None:
    normal = CLASSES.index(NORMAL)
    for seed in range(50):
        logits, _, labels = draw(100, seed)
        probabilities = softmax(logits, axis=1)
        threshold = fit_any_cancer(probabilities, labels, 0.9)
        caught = (probabilities.argmax(axis=1) != normal) | rule_fires(probabilities.astype(dtype), threshold)
        cancer = labels != normal
        assert (caught & cancer).sum() >= np.ceil(0.9 * cancer.sum()), seed


def test_normal_slices_do_not_move_the_any_cancer_threshold() -> None:
    logits, _, labels = draw(500)
    probabilities = softmax(logits, axis=1)
    cancers = labels != CLASSES.index(NORMAL)
    assert fit_any_cancer(probabilities, labels, 0.99) == fit_any_cancer(probabilities[cancers], labels[cancers], 0.99)


def test_the_conformal_quantile_is_corrected_for_finitely_many_images() -> None:
    true = np.arange(1, 10) / 10  # scores 0.9, 0.8 ... 0.1
    labels = np.zeros(9, np.int64)
    assert fit_conformal_quantile(rows(*true), labels, coverage=0.8) == pytest.approx(0.8)  # the 8th of 9
    assert fit_conformal_quantile(rows(*true), labels, coverage=0.95) == 1  # the 10th of 9: everything


def test_a_label_is_accepted_from_the_probability_at_which_accepting_costs_less_than_referring() -> None:
    probabilities = rows(0.76, 0.8, 0.85, 0.9, 0.95, 0.99)
    wrong_below = np.array([1, 1, 0, 0, 0, 0])
    assert fit_least_confidence(probabilities, wrong_below, COSTS)[0] == pytest.approx(0.85)
    assert fit_least_confidence(probabilities, np.ones(6, np.int64), COSTS)[0] == 1


def test_luck_does_not_lower_a_bound_below_what_an_honest_probability_would_be_worth() -> None:
    always_right = np.zeros(6, np.int64)
    least = dict(zip(CLASSES, fit_least_confidence(rows(*[0.4] * 6), always_right, COSTS), strict=True))
    assert least[CLASSES[0]] == pytest.approx(1 - 1 / 4)
    assert least[NORMAL] == pytest.approx(1 - 1 / 20)


def test_one_missed_cancer_outweighs_many_referrals() -> None:
    probabilities = np.roll(rows(*np.linspace(0.951, 0.99, 12)), CLASSES.index(NORMAL), axis=1)
    labels = np.full(12, CLASSES.index(NORMAL))
    labels[7] = 0
    least = fit_least_confidence(probabilities, labels, COSTS)[CLASSES.index(NORMAL)]
    assert least == pytest.approx(probabilities[8].max())
    cheap = COSTS.model_copy(update={"missed_cancer": 4})
    assert fit_least_confidence(probabilities, labels, cheap)[CLASSES.index(NORMAL)] == pytest.approx(0.75)
