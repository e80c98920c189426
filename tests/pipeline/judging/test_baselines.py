"""Simple ways to answer: each fold's labels come from the other folds alone."""

import numpy as np
import pytest

from pipeline.images.thumbnails import THUMBNAIL
from pipeline.judging import baselines
from tests.graphs import plain_facts

COUNT = 120
LABELS = np.arange(COUNT) % 4
FOLDS = np.arange(COUNT) // 4 % 3
RNG = np.random.default_rng(3)


def predict(facts: list, features: np.ndarray) -> dict[str, np.ndarray]:
    pixels = RNG.integers(1, 200, (COUNT, 32, 32, 1), dtype=np.uint8)
    return baselines.predict(pixels, facts, features, LABELS, FOLDS)


def right(predicted: np.ndarray) -> float:
    return float((predicted == LABELS).mean())


@pytest.mark.parametrize(
    "telling",
    [
        {"tissue": lambda label: 90.0 + 30 * label},
        {"air": lambda label: 5.0 + 20 * label},
        {"frame": lambda label: 0.2 * label},
        {"body": lambda label: 0.3 + 0.2 * label},
        {"width": lambda label: 300 * 2**label},
        {"height": lambda label: 300 * 2**label},
    ],
    ids=lambda telling: next(iter(telling)),
)
def test_a_style_that_tells_the_class_is_found_by_style_alone(telling: dict) -> None:
    ((name, value),) = telling.items()
    facts = [plain_facts(**{name: value(int(label))}) for label in LABELS]
    predicted = predict(facts, RNG.normal(0, 1, (COUNT, 5)))
    assert right(predicted["style_alone"]) > 0.7
    assert right(predicted["frozen_features"]) < 0.5


def test_the_style_has_nothing_of_the_picture_but_the_facts_of_its_file() -> None:
    facts = [plain_facts(width=400, height=200, tissue=110.0, air=20.0, frame=0.25, body=0.5)]
    assert baselines.style(facts)[0] == pytest.approx([np.log(400), np.log(200), np.log(2), 110, 20, 0.25, 0.5])


def test_features_that_tell_the_class_are_found_and_the_most_frequent_class_needs_none() -> None:
    predicted = predict([plain_facts()] * COUNT, np.eye(4)[LABELS] + RNG.normal(0, 0.1, (COUNT, 4)))
    assert right(predicted["frozen_features"]) == 1
    assert len(np.unique(predicted["majority_class"])) == 1


def test_the_nearest_picture_is_sought_in_other_folds_alone() -> None:
    vectors = np.zeros((4, THUMBNAIL**2), np.float32)
    vectors[0, 0] = vectors[1, 0] = 1  # the same picture twice, in one fold
    vectors[2, :2] = 0.8, 0.6
    vectors[3, 1] = 1
    labels, folds = np.array([0, 1, 2, 3]), np.array([0, 0, 1, 1])
    assert baselines.nearest_label(vectors, labels, folds).tolist() == [2, 2, 0, 0]


def test_a_baselines_figures_have_intervals_by_scan() -> None:
    predicted = LABELS.copy()
    predicted[:12] = (predicted[:12] + 1) % 4
    alone = baselines.measure(predicted, LABELS, np.arange(COUNT), resamples=200, seed=1)
    together = baselines.measure(predicted, LABELS, np.arange(COUNT) // 12, resamples=200, seed=1)
    assert alone["accuracy"].value == together["accuracy"].value == pytest.approx(0.9)
    assert together["accuracy"].low < alone["accuracy"].low
    assert set(alone) == {"accuracy", "macro_f1"}
