"""Two trainings on the same images: who is right where, and how far apart they are."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.images.classes import CLASSES
from pipeline.judging.calibration import Answers
from pipeline.judging.comparison import OutOfFoldAnswers, compare_answers
from pipeline.judging.metrics import Evaluation

COUNT = 120
LABELS = np.arange(COUNT) % 4
NORMAL = CLASSES.index("normal")
NAMES = np.array([f"{index:064d}" for index in range(COUNT)])


def answers(predicted: np.ndarray, scans: np.ndarray | None = None) -> OutOfFoldAnswers:
    scores = 1.0 * (predicted != NORMAL)
    return OutOfFoldAnswers(
        NAMES, LABELS, predicted, scores, np.zeros(COUNT, int), np.arange(COUNT) if scans is None else scans
    )


def wrong_on(*images: int) -> np.ndarray:
    predicted = LABELS.copy()
    predicted[list(images)] = (predicted[list(images)] + 1) % 4
    return predicted


def test_it_counts_who_is_right_alone_and_by_how_much_the_accuracy_differs() -> None:
    found = compare_answers(answers(wrong_on(0, 1, 2)), answers(wrong_on(2, 3, 4, 5, 6, 7)), resamples=500, seed=1)
    assert (found.images, found.scans) == (120, 120)
    assert (found.both_right, found.first_alone, found.second_alone, found.neither) == (112, 5, 2, 1)
    assert found.accuracy.first.value == pytest.approx(117 / 120)
    assert found.accuracy.second.value == pytest.approx(114 / 120)
    assert found.accuracy.difference.value == pytest.approx(-3 / 120)
    # The difference of an image is -1 five times, +1 twice and otherwise 0.
    deviation = np.sqrt((7 / 120 - (3 / 120) ** 2) / 120)
    assert found.accuracy.difference.low == pytest.approx(-3 / 120 - 1.96 * deviation, abs=0.01)
    assert found.accuracy.difference.high == pytest.approx(-3 / 120 + 1.96 * deviation, abs=0.01)


def test_a_trainings_own_figures_are_those_of_its_evaluation() -> None:
    predicted = wrong_on(0, 5, 9, 21, 22)
    certain = np.eye(4)[predicted]
    every = np.ones(COUNT, bool)
    figures = Evaluation(
        Answers(certain, every, ~every, ~every, certain > 0, ~every), LABELS, resamples=200, seed=3
    ).figures
    found = compare_answers(answers(predicted), answers(LABELS), resamples=200, seed=3)
    for name in ("accuracy", "macro_f1"):
        one, same = getattr(found, name).first, figures[name]
        assert (one.value, one.low, one.high) == pytest.approx((same.value, same.low, same.high))


def test_images_that_are_hard_for_both_do_not_widen_the_difference() -> None:
    same = answers(wrong_on(*range(40)))
    found = compare_answers(same, same, resamples=100, seed=1)
    assert found.accuracy.first.low < found.accuracy.first.high
    assert found.accuracy.difference == found.macro_f1.difference
    assert (found.accuracy.difference.low, found.accuracy.difference.high) == (0, 0)


def test_images_of_one_scan_count_together() -> None:
    scans = np.maximum(np.arange(COUNT) - 11, 0)  # the first twelve images are of one scan
    one, other = wrong_on(), wrong_on(*range(12))
    alone = compare_answers(answers(one), answers(other), resamples=400, seed=1).accuracy.difference
    together = compare_answers(answers(one, scans), answers(other, scans), resamples=400, seed=1).accuracy.difference
    assert together.value == alone.value == pytest.approx(-0.1)
    assert together.high == 0, "a third of the draws lack that scan"
    assert together.low < alone.low


def test_macro_f1_leaves_out_a_class_that_a_draw_lacks() -> None:
    labels = LABELS[:4]
    few = OutOfFoldAnswers(NAMES[:4], labels, labels, 1.0 * (labels != NORMAL), np.zeros(4, int), np.arange(4))
    found = compare_answers(few, few, resamples=50, seed=1)
    assert (found.macro_f1.first.low, found.macro_f1.first.value) == (1, 1)
    assert (found.cancer_auc.first.low, found.cancer_auc.first.value) == (1, 1), "draws without one side are left out"


def test_any_cancer_is_told_from_normal_by_the_odds(tmp_path: Path) -> None:
    logits = np.zeros((COUNT, 4))
    logits[:, NORMAL] = np.where(LABELS == NORMAL, 2.0, -2.0)
    exact = written(tmp_path / "one.npz", logits=logits)
    is_normal = LABELS == NORMAL
    assert exact.cancer_scores[is_normal] == pytest.approx(np.log(3) - 2)
    assert exact.cancer_scores[~is_normal] == pytest.approx(np.log(3) + 2)
    logits[np.flatnonzero(is_normal)[:15], NORMAL] = -4.0  # half of the normal slices seem to be cancers
    other = written(tmp_path / "other.npz", logits=logits)
    found = compare_answers(exact, other, resamples=200, seed=1).cancer_auc
    assert (found.first.value, found.second.value) == (1, pytest.approx(0.5))
    assert found.difference.value == pytest.approx(-0.5)
    assert found.difference.low < -0.5 < found.difference.high < 0


def written(path: Path, **changes: np.ndarray) -> OutOfFoldAnswers:
    arrays = {
        "sha256": NAMES,
        "labels": LABELS,
        "logits": np.eye(4)[LABELS],
        "folds": np.arange(COUNT) % 3,
        "scans": np.arange(COUNT) // 2,
    }
    np.savez(path, **{**arrays, **changes})
    return OutOfFoldAnswers.read(path)


def test_answers_are_paired_by_digest_and_not_by_place_or_by_the_numbers_of_folds_and_scans(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(COUNT)
    one = written(tmp_path / "one.npz")
    other = written(
        tmp_path / "other.npz",
        sha256=NAMES[order],
        labels=LABELS[order],
        logits=np.eye(4)[LABELS][order],
        folds=(2 - np.arange(COUNT) % 3)[order],
        scans=(99 - np.arange(COUNT) // 2)[order],
    )
    assert one.differences(other) == []
    assert one.predicted.tolist() == other.predicted.tolist() == LABELS.tolist()


def test_what_forbids_a_comparison_is_named(tmp_path: Path) -> None:
    one = written(tmp_path / "one.npz")
    changed = {"labels": 3 - LABELS, "folds": np.arange(COUNT) % 4, "scans": np.arange(COUNT)}
    for name, values in changed.items():
        assert one.differences(written(tmp_path / "other.npz", **{name: values})) == [name]
    assert one.differences(written(tmp_path / "other.npz", **changed)) == ["labels", "folds", "scans"]
    fewer = {name: values[1:] for name, values in one._asdict().items()}
    assert one.differences(OutOfFoldAnswers(**fewer)) == ["images"]
