"""Temperature, limits and prediction sets are fitted as the service applies them."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from chestct.prediction import decide
from pipeline.core.params import Params
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
    fit_scaling,
    fit_temperature,
)
from pipeline.judging.thresholds import MOST_CHEST_CT_LIMIT
from tests.graphs import plain_facts, tiny_card
from tests.pipeline.judging.predictions import draw
from tests.server import ROOT

WANTED = Params.read(ROOT / "params.yaml").evaluate


def scored(count: int, seed: int = 0) -> Scored:
    logits, ood_scores, labels = draw(count, seed)
    layouts = np.random.default_rng(seed).normal(0, 1, (count, 8, 8))
    chest_ct = 1 - np.random.default_rng(seed + 1).random(count) ** 9
    return Scored(logits, ood_scores, chest_ct, labels, [plain_facts(layout=layout) for layout in layouts])


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


def test_the_chest_ct_limit_rejects_the_wanted_share_but_is_low_for_other_sources() -> None:
    images = scored(1000)
    wanted = WANTED.model_copy(update={"chest_ct_false_rejection": 0.02})
    limit = fit(images, wanted, "temperature").thresholds.chest_ct_limit
    assert limit < MOST_CHEST_CT_LIMIT
    assert (images.chest_ct < limit).mean() == pytest.approx(0.02, abs=0.002)
    sure = images._replace(chest_ct=np.full(1000, 0.99))
    assert fit(sure, wanted, "temperature").thresholds.chest_ct_limit == MOST_CHEST_CT_LIMIT


def test_prediction_sets_hold_the_true_class_as_often_as_wanted() -> None:
    images = scored(2000)
    folds = np.arange(2000) % 4
    answers = cross_fit(images, folds, WANTED, "temperature")
    assert answers.sets[np.arange(2000), images.labels].mean() == pytest.approx(0.99, abs=0.006)


def test_answers_equal_those_of_the_service() -> None:
    logits, _, _ = draw(200)
    probabilities = softmax(logits, axis=1).astype(np.float32)
    scores = np.linspace(0, 2, 200, dtype=np.float32)
    card = tiny_card()
    facts = [plain_facts(colour=each) for each in np.linspace(0, 40, 200)]
    chest_ct = np.linspace(1, 0, 200, dtype=np.float32)
    answers = answer(probabilities, scores, chest_ct, facts, card)
    for row in range(200):
        served = decide(
            card,
            probabilities[row],
            float(scores[row]),
            float(chest_ct[row]),
            facts[row],
            request_id="1",
            model="m",
        )
        assert answers.accepted[row] == (served.decision == "accept")
        assert answers.rejected[row] == (served.decision == "reject")
        if served.label is not None:
            assert {CLASSES[i] for i in np.flatnonzero(answers.sets[row])} == set(served.prediction_set)


@pytest.mark.parametrize("method", ["temperature", "normal_apart"])
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


def test_normal_apart_corrects_a_favoured_normal_and_changes_nothing_otherwise() -> None:
    logits, _, labels = draw(4000)
    normal = CLASSES.index(NORMAL)
    favoured = logits.copy()
    favoured[:, normal] = 2 * favoured[:, normal] + 1.5
    scaling = fit_scaling(favoured, labels, "normal_apart")
    expected = [0.5 if name == NORMAL else 1 for name in CLASSES]
    assert np.array(scaling.scale) == pytest.approx(expected, rel=0.15)
    assert scaling.shift[normal] == pytest.approx(-0.75, abs=0.2)
    assert {shift for label, shift in enumerate(scaling.shift) if label != normal} == {0}
    folds = np.arange(4000) % 3
    loss = {
        (name, method): cross_fitted_loss(scored(0)._replace(logits=each, labels=labels), folds, method)
        for name, each in (("favoured", favoured), ("fair", logits))
        for method in METHODS
    }
    assert loss["favoured", "normal_apart"] < loss["favoured", "temperature"] - 0.1
    assert loss["fair", "normal_apart"] == pytest.approx(loss["fair", "temperature"], abs=0.005)


def test_normal_apart_says_sure_of_cancer_and_unsure_of_its_kind() -> None:
    rng = np.random.default_rng(0)
    normal, labels = CLASSES.index(NORMAL), np.arange(800) % 4
    logits = rng.normal(0, 3, (800, 4))  # of the kinds, the network is sure and knows nothing
    logits[:, normal] = np.where(labels == normal, 8, -8)
    probabilities = softmax(fit_scaling(logits, labels, "normal_apart").apply(logits), axis=1)
    assert probabilities[labels != normal, normal].max() < 0.02
    assert probabilities[labels != normal].max() < 0.5
    assert probabilities[labels == normal, normal].min() > 0.95


def test_a_calibration_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibration = fit(scored(100), WANTED, "normal_apart")
    calibration.write(path)
    assert Calibration.read(path) == calibration
