from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from chestct.prediction import decide
from pipeline.core.params import Costs, Params
from pipeline.images.classes import CLASSES, NORMAL
from pipeline.judging.calibration import (
    METHODS,
    Calibration,
    Method,
    Scored,
    answer,
    cross_fit,
    cross_fitted_loss,
    fit,
    fit_any_cancer,
    fit_conformal_quantile,
    fit_least_confidence,
    fit_refer_margin,
    fit_scaling,
    fit_temperature,
)
from tests.graphs import plain_facts, tiny_card

WANTED = Params.read(Path(__file__).parents[3] / "params.yaml").evaluate
COSTS = Costs(refer=1, wrong_cancer=4, false_alarm=4, missed_cancer=20)


def draw(count: int, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Logits whose softmax is exactly the chance of each class, OOD scores and labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (count, 4))
    labels = (rng.random((count, 1)) > np.cumsum(softmax(logits, axis=1), axis=1)).sum(axis=1)
    return logits, rng.gamma(4, 1, count), labels


def scored(count: int, seed: int = 0) -> Scored:
    logits, ood_scores, labels = draw(count, seed)
    layouts = np.random.default_rng(seed).normal(0, 1, (count, 8, 8))
    return Scored(logits, ood_scores, labels, [plain_facts(layout=layout) for layout in layouts])


def rows(*first_class: float) -> NDArray[np.float64]:
    """Probabilities [N, 4]: the given one for class 0, the rest for class 1."""
    top = np.array(first_class)
    return np.stack([top, 1 - top, np.zeros_like(top), np.zeros_like(top)], axis=1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(temperature: float) -> None:
    logits, _, labels = draw(20_000)
    assert fit_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_stays_bounded_for_logits_that_are_never_wrong() -> None:
    labels = np.arange(40) % 4
    assert fit_temperature(np.eye(4)[labels], labels) == pytest.approx(0.05, rel=0.01)


def test_the_ood_limit_rejects_the_wanted_share() -> None:
    images = scored(1000)
    limit = fit(images, WANTED, "temperature").thresholds.ood_limit
    assert 0.018 <= (images.ood_scores > limit).mean() <= 0.02


def test_the_refer_margin_is_the_smallest_that_meets_the_risk() -> None:
    probabilities = rows(0.95, 0.9, 0.85, 0.8, 0.75)  # margins 0.9, 0.8, 0.7, 0.6, 0.5
    labels = np.array([0, 0, 0, 1, 0])  # one error of five; the fourth
    assert fit_refer_margin(probabilities, labels, risk=0.2) == 0
    assert fit_refer_margin(probabilities, labels, risk=0.1) == pytest.approx(0.7)


def test_a_margin_that_several_answers_share_accepts_all_or_none_of_them() -> None:
    probabilities = rows(0.95, 0.95, 0.95, 0.8, 0.8, 0.8)
    labels = np.array([0, 0, 0, 0, 1, 1])  # the fourth, being right, can't be accepted without the wrong ones
    assert fit_refer_margin(probabilities, labels, risk=0.1) == pytest.approx(0.9)


def test_a_risk_that_cannot_be_met_leaves_half_accepted() -> None:
    logits, _, _ = draw(200)
    always_wrong = (logits.argmax(axis=1) + 1) % 4
    margin = fit_refer_margin(softmax(logits, axis=1), always_wrong, risk=0.05)
    highest = np.sort(softmax(logits, axis=1), axis=1)
    assert (highest[:, -1] - highest[:, -2] >= margin).mean() >= 0.5


def possibly(probabilities: NDArray[np.floating], threshold: float) -> NDArray[np.bool_]:
    """Where the service's own rule speaks."""
    thresholds = tiny_card().thresholds.model_copy(update={"any_cancer": threshold})
    card = tiny_card().model_copy(update={"thresholds": thresholds})
    count = len(probabilities)
    return answer(probabilities, np.zeros(count), [plain_facts()] * count, card).possible_cancer


def test_the_any_cancer_threshold_catches_the_wanted_share_of_cancers() -> None:
    normal = CLASSES.index(NORMAL)
    cancer = np.array([0.9, 0.9, 0.45, 0.4, 0.3, 0.1])  # four of the cancers are called normal
    probabilities = np.zeros((6, 4))
    probabilities[:, 0] = cancer
    probabilities[:, normal] = 1 - cancer
    labels = np.zeros(6, np.int64)
    for sensitivity, speaks in ((4 / 6, [2, 3]), (0.99, [2, 3, 4, 5]), (2 / 6, [])):
        threshold = fit_any_cancer(probabilities, labels, sensitivity)
        assert np.flatnonzero(possibly(probabilities, threshold)).tolist() == speaks


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_last_cancer_that_is_to_be_caught_is_caught_by_the_rule_that_serves(dtype: type[np.floating]) -> None:
    normal = CLASSES.index(NORMAL)
    for seed in range(50):
        logits, _, labels = draw(100, seed)
        probabilities = softmax(logits, axis=1)
        threshold = fit_any_cancer(probabilities, labels, 0.9)
        caught = (probabilities.argmax(axis=1) != normal) | possibly(probabilities.astype(dtype), threshold)
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


def test_prediction_sets_hold_the_true_class_as_often_as_wanted() -> None:
    images = scored(2000)
    folds = np.arange(2000) % 4
    answers = cross_fit(images, folds, WANTED, "temperature")
    assert answers.sets[np.arange(2000), images.labels].mean() == pytest.approx(0.9, abs=0.02)


def test_answers_are_the_services_own() -> None:
    logits, _, _ = draw(200)
    probabilities = softmax(logits, axis=1).astype(np.float32)
    scores = np.linspace(0, 2, 200, dtype=np.float32)
    card = tiny_card()
    facts = [plain_facts(colour=each) for each in np.linspace(0, 40, 200)]
    answers = answer(probabilities, scores, facts, card)
    for row in range(200):
        served = decide(card, probabilities[row], float(scores[row]), facts[row], request_id="1", model="m")
        assert answers.accepted[row] == (served.decision == "accept")
        assert answers.rejected[row] == (served.decision == "reject")
        if served.decision != "reject":
            assert {CLASSES[i] for i in np.flatnonzero(answers.sets[row])} == set(served.prediction_set)


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_cross_fitting_answers_a_fold_without_having_seen_it(method: Method) -> None:
    images = scored(300)
    folds = np.arange(300) % 3
    held_out = folds == 1
    changed = images._replace(labels=np.where(held_out, (images.labels + 1) % 4, images.labels))
    before, after = (cross_fit(each, folds, WANTED, method) for each in (images, changed))
    assert all(np.array_equal(was[held_out], now[held_out]) for was, now in zip(before, after, strict=True))
    assert not np.allclose(before.probabilities[~held_out], after.probabilities[~held_out])


def test_cross_fitting_keeps_the_order_of_the_images() -> None:
    images = scored(300)
    answers = cross_fit(images, np.random.default_rng(1).integers(0, 3, 300), WANTED, "temperature")
    assert np.array_equal(answers.probabilities.argmax(axis=1), images.logits.argmax(axis=1))


def test_vector_scaling_mends_a_class_that_is_favoured_and_no_more() -> None:
    logits, _, labels = draw(4000)
    favoured = logits * [1, 1, 1, 2] + [1.5, 0, 0, 0]
    scaling = fit_scaling(favoured, labels, "vector")
    assert np.array(scaling.scale) == pytest.approx([1, 1, 1, 0.5], rel=0.15)
    assert scaling.shift[0] - scaling.shift[1] == pytest.approx(-1.5, abs=0.25)
    folds = np.arange(4000) % 3
    loss = {
        (name, method): cross_fitted_loss(scored(0)._replace(logits=each, labels=labels), folds, method)
        for name, each in (("favoured", favoured), ("fair", logits))
        for method in METHODS
    }
    assert loss["favoured", "vector"] < loss["favoured", "temperature"] - 0.1
    assert loss["fair", "vector"] == pytest.approx(loss["fair", "temperature"], abs=0.005)


def test_a_label_must_be_so_probable_that_letting_it_stand_costs_less_than_asking() -> None:
    probabilities = rows(0.55, 0.6, 0.7, 0.8, 0.9, 0.95)
    wrong_below = np.array([1, 1, 0, 0, 0, 0])
    first, *others = fit_least_confidence(probabilities, wrong_below, COSTS)
    assert first == pytest.approx(0.7)
    assert others == [0, 0, 0]
    assert fit_least_confidence(probabilities, np.zeros(6, np.int64), COSTS)[0] == 0
    assert fit_least_confidence(probabilities, np.ones(6, np.int64), COSTS)[0] == 1


def test_one_missed_cancer_outweighs_many_referrals() -> None:
    probabilities = np.roll(rows(*np.linspace(0.5, 0.95, 12)), CLASSES.index(NORMAL), axis=1)
    labels = np.full(12, CLASSES.index(NORMAL))
    labels[7] = 0
    least = fit_least_confidence(probabilities, labels, COSTS)[CLASSES.index(NORMAL)]
    assert least == pytest.approx(probabilities[8].max())
    cheap = COSTS.model_copy(update={"missed_cancer": 4})
    assert fit_least_confidence(probabilities, labels, cheap)[CLASSES.index(NORMAL)] == 0


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration = fit(scored(100), WANTED, "vector")
    calibration.write(path)
    assert Calibration.read(path) == calibration
