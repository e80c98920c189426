"""The figures of a model and their intervals, by hand and against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import f1_score, log_loss, precision_score, recall_score, roc_auc_score

from pipeline.images.classes import CLASSES, NORMAL
from pipeline.judging.calibration import Answers
from pipeline.judging.metrics import Evaluation


def answers_of(probabilities: NDArray[np.float64]) -> Answers:
    nothing = np.zeros(len(probabilities), bool)
    return Answers(probabilities, ~nothing, nothing, nothing, probabilities > 0.1, nothing)


def evaluate(probabilities: NDArray[np.float64], labels: NDArray[np.int64], **options: NDArray[np.int64]) -> Evaluation:
    return Evaluation(answers_of(probabilities), labels, resamples=200, seed=1, **options)


def draw(count: int = 400, skill: float = 2.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, count)
    return softmax(rng.normal(0, 1, (count, 4)) + skill * np.eye(4)[labels], axis=1), labels


def test_perfect_answers_have_perfect_figures() -> None:
    labels = np.arange(40) % 4
    metrics = evaluate(np.eye(4)[labels], labels).metrics("perfect")
    for figure in (metrics.accuracy, metrics.macro_f1, metrics.roc_auc):
        assert (figure.value, figure.high) == (1, 1)
    assert metrics.loss.value == pytest.approx(0)
    assert metrics.calibration_error.value == 0
    assert metrics.confusion == ((10, 0, 0, 0), (0, 10, 0, 0), (0, 0, 10, 0), (0, 0, 0, 10))
    assert [point.risk for point in metrics.risk_coverage] == [0] * 20


def test_a_share_of_one_has_the_exact_binomial_interval_over_the_groups() -> None:
    labels = np.arange(40) % 4
    groups = np.arange(40) // 8  # five groups, each with all classes
    recall = evaluate(np.eye(4)[labels], labels).figures["recall_normal"]
    assert (recall.value, recall.high) == (1, 1)
    assert recall.low == pytest.approx(0.6915, abs=1e-4)  # Clopper-Pearson for 10 of 10
    figures = evaluate(np.eye(4)[labels], labels, groups=groups).figures
    assert figures["recall_normal"].low == pytest.approx(0.4782, abs=1e-4)  # 5 of 5
    assert (figures["rejected"].value, figures["rejected"].low) == (0, 0)
    assert figures["rejected"].high == pytest.approx(1 - 0.4782, abs=1e-4)


def test_answers_without_skill_have_the_figures_of_chance() -> None:
    figures = evaluate(*draw(4000, skill=0)).figures
    assert figures["accuracy"].low <= 0.25 <= figures["accuracy"].high
    assert figures["roc_auc"].low <= 0.5 <= figures["roc_auc"].high
    assert figures["calibration_error"].value > 0.1


def test_a_case_computed_by_hand() -> None:
    probabilities = np.array([[0.7, 0.3, 0, 0], [0.2, 0.8, 0, 0], [0.6, 0.4, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    labels = np.array([0, 0, 1, 2, 3])
    metrics = evaluate(probabilities, labels).metrics("by hand")
    assert metrics.accuracy.value == pytest.approx(3 / 5)
    assert metrics.loss.value == pytest.approx(-np.log([0.7, 0.2, 0.4]).sum() / 5)
    assert metrics.confusion == ((1, 1, 0, 0), (1, 0, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))
    assert metrics.classes["adenocarcinoma"].precision.value == pytest.approx(1 / 2)
    assert metrics.classes["adenocarcinoma"].recall.value == pytest.approx(1 / 2)
    assert metrics.classes["large_cell_carcinoma"].f1.value == 0
    assert metrics.macro_f1.value == pytest.approx((1 / 2 + 0 + 1 + 1) / 4)
    # bins: 0.6 wrong; 0.7 right; 0.8 wrong; two of 1 right, which share theirs
    assert metrics.calibration_error.value == pytest.approx((0.6 + 0.3 + 0.8 + 0) / 5)
    assert [bin_.images for bin_ in metrics.reliability] == [1, 1, 1, 2]
    assert metrics.brier.value == pytest.approx((2 * 0.3**2 + 2 * 0.8**2 + 2 * 0.6**2) / 5)
    assert metrics.error_at_80_coverage.value == pytest.approx(1 / 4)
    assert (metrics.cancer_sensitivity.value, metrics.cancer_specificity.value) == (1, 1)
    # widest margin first: right, right, wrong (0.6), right (0.4), wrong (0.2)
    assert [(p.coverage, p.risk) for p in metrics.risk_coverage] == [
        (0.2, 0),
        (0.4, 0),
        (0.6, pytest.approx(1 / 3)),
        (0.8, 1 / 4),
        (1, 2 / 5),
    ]


def test_the_figures_are_those_of_scikit_learn() -> None:
    probabilities, labels = draw()
    probabilities = probabilities.round(2) + 1e-9  # with ties
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    predicted = probabilities.argmax(axis=1)
    figures = evaluate(probabilities, labels).figures
    assert figures["macro_f1"].value == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert figures["roc_auc"].value == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))
    cancer = labels != CLASSES.index(NORMAL)
    assert figures["cancer_auc"].value == pytest.approx(roc_auc_score(cancer, -probabilities[:, CLASSES.index(NORMAL)]))
    assert figures["loss"].value == pytest.approx(log_loss(labels, probabilities), abs=1e-6)
    each = zip(
        CLASSES,
        precision_score(labels, predicted, average=None),
        recall_score(labels, predicted, average=None),
        strict=True,
    )
    for name, precision, recall in each:
        assert figures[f"precision_{name}"].value == pytest.approx(precision)
        assert figures[f"recall_{name}"].value == pytest.approx(recall)


def test_the_figures_of_a_part_are_those_of_its_images_alone() -> None:
    probabilities, labels = draw()
    parts = np.arange(len(labels)) % 3
    for part, found in enumerate(evaluate(probabilities, labels).within(parts)):
        alone = evaluate(probabilities[parts == part], labels[parts == part]).figures
        assert found.images == (parts == part).sum()
        assert found.accuracy == pytest.approx(alone["accuracy"].value)
        assert found.macro_f1 == pytest.approx(alone["macro_f1"].value)


def test_every_interval_holds_its_value() -> None:
    for figure in evaluate(*draw()).figures.values():
        assert figure.low <= figure.value <= figure.high


def test_the_interval_of_a_perfect_calibration_reaches_zero() -> None:
    """Every resample is off by chance, so the percentiles alone would leave out the value."""
    right = [60, 75, 85, 95]  # of a hundred answers each, with just that confidence
    probabilities = np.array([[share / 100, 1 - share / 100, 0, 0] for share in right for _ in range(100)])
    labels = np.array([int(answer >= share) for share in right for answer in range(100)])
    error = evaluate(probabilities, labels).figures["calibration_error"]
    assert error.value == pytest.approx(0)
    assert error.low == error.value
    assert error.high > 0.02


def test_a_95_percent_interval_covers_the_truth_about_95_percent_of_the_time() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        labels = rng.integers(0, 4, 150)
        predicted = np.where(rng.random(150) < 0.7, labels, (labels + 1) % 4)
        accuracy = evaluate(np.eye(4)[predicted], labels).figures["accuracy"]
        covered += accuracy.low <= 0.7 <= accuracy.high
    assert 88 <= covered <= 100


def test_images_that_stay_together_widen_the_interval() -> None:
    probabilities, labels = draw(80)
    probabilities, labels = np.repeat(probabilities, 5, axis=0), np.repeat(labels, 5)
    alone = evaluate(probabilities, labels).figures["accuracy"]
    together = evaluate(probabilities, labels, groups=np.repeat(np.arange(80), 5)).figures["accuracy"]
    assert together.value == alone.value
    assert together.high - together.low > 1.6 * (alone.high - alone.low)


def test_a_class_without_images_is_left_out_of_the_means() -> None:
    probabilities, labels = draw()
    some = labels != 1
    figures = evaluate(probabilities[some], labels[some]).figures
    present = [figures[f"f1_{name}"].value for i, name in enumerate(CLASSES) if i != 1]
    assert figures["macro_f1"].value == pytest.approx(np.mean(present))
    assert (figures["f1_large_cell_carcinoma"].low, figures["f1_large_cell_carcinoma"].high) == (0, 1)
    assert evaluate(probabilities[some], labels[some]).metrics("x").classes["large_cell_carcinoma"].images == 0


def test_rejected_referred_unfamiliar_and_accepted_are_counted() -> None:
    probabilities, labels = draw(10)
    accepted = np.arange(10) < 6
    rejected = np.arange(10) == 9
    unfamiliar = np.arange(10) == 8
    answers = Answers(probabilities, accepted, rejected, unfamiliar, np.eye(4, dtype=bool)[labels], ~accepted)
    figures = Evaluation(answers, labels, resamples=20, seed=1).figures
    assert figures["rejected"].value == pytest.approx(0.1)
    assert figures["referred"].value == pytest.approx(0.3)
    assert figures["unfamiliar"].value == pytest.approx(0.1)
    assert figures["accepted_accuracy"].value == (probabilities.argmax(axis=1) == labels)[:6].mean()
    assert figures["set_coverage"].value == figures["set_size"].value == 1


def test_a_cancer_labelled_normal_counts_as_caught_if_the_any_cancer_rule_fires() -> None:
    labels = np.array([0, 1, 3, 2, 2])
    probabilities = np.eye(4)[[0, 2, 2, 2, 2]]
    possible = np.array([False, True, False, True, False])
    answers = answers_of(probabilities)._replace(possible_cancer=possible)
    figures = Evaluation(answers, labels, resamples=20, seed=1).figures
    assert figures["cancer_sensitivity"].value == pytest.approx(2 / 3)
    assert figures["cancer_specificity"].value == pytest.approx(1 / 2)


def test_the_interval_of_a_perfect_calibration_error_includes_right_confidences_and_excludes_wrong_ones() -> None:
    rng = np.random.default_rng(2)
    probabilities = softmax(rng.normal(0, 2, (400, 4)), axis=1)
    labels = (rng.random((400, 1)) > np.cumsum(probabilities, axis=1)).sum(axis=1)
    fair = evaluate(probabilities, labels).figures
    expected = fair["calibration_error_if_perfect"]
    assert expected.low < fair["calibration_error"].value < expected.high
    too_sure = probabilities**3 / (probabilities**3).sum(axis=1, keepdims=True)
    unfair = evaluate(too_sure, labels).figures
    assert unfair["calibration_error"].value > unfair["calibration_error_if_perfect"].high


def test_checks_are_figures_with_intervals_of_whole_groups() -> None:
    probabilities, labels = draw(40)
    check = np.repeat([0.0, 1.0], 20)
    options = {"resamples": 200, "seed": 1, "checks": {"flips": check}}
    alone = Evaluation(answers_of(probabilities), labels, **options).figures["flips"]
    together = Evaluation(answers_of(probabilities), labels, groups=np.arange(40) // 10, **options).figures["flips"]
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_pictures_are_drawn_and_the_pairs_of_classes_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    probabilities, labels = draw(50)
    evaluation = evaluate(probabilities, labels)
    evaluation.draw(folder, "fifty images")
    evaluation.write_pairs(tmp_path / "confusion.csv")
    assert {path.name for path in folder.iterdir()} == {
        "classes.png",
        "confusion.png",
        "reliability.png",
        "risk_coverage.png",
    }
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert len(picture.convert("L").getcolors() or ()) > 20
    lines = (tmp_path / "confusion.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "actual,predicted"
    assert lines[1:] == [
        f"{CLASSES[true]},{CLASSES[best]}" for true, best in zip(labels, probabilities.argmax(axis=1), strict=True)
    ]
