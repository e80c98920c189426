"""The figures of a site, each with what it counts, and the bar that they have to reach."""

import numpy as np
import pytest

from pipeline.core.params import Bar
from pipeline.foreign.site_figures import SiteFigures, judge, measure, to_answers
from pipeline.images.classes import CLASSES
from tests.pipeline.foreign.answered import answered, file, towards, unreadable

NORMAL = 2
ANSWERED = [
    answered(file("adenocarcinoma", "A1"), *towards(0)),
    answered(file("adenocarcinoma", "A1"), *towards(3)),
    answered(file("adenocarcinoma", "A2"), *towards(NORMAL)),
    answered(file("adenocarcinoma", "A3"), 0, 0, 0.2, -9),
    answered(file("adenocarcinoma", "A4"), *towards(0), ood_score=0.95),
    answered(file("normal", "N1"), *towards(NORMAL)),
    answered(file("normal", "N2"), *towards(1)),
    answered(file("normal", "N3"), *towards(NORMAL), chest_ct=0),
    unreadable(file("normal", "N4")),
]
BAR = Bar(labelled=(0.5, 0.3), accepted_accuracy=(0.85, 0.75), missed_cancers=(0.02, 0.1), false_alarms=(0.05, 0.15))


def measured(some: list, *, two: bool = False) -> SiteFigures:
    return measure(some, two=two, resamples=50, seed=0)


def counts(figures: SiteFigures) -> dict[str, tuple[int, int, int] | None]:
    return {name: share and (share.count, share.slices, share.patients) for name, share in figures.shares.items()}


def test_each_figure_counts_what_its_words_say() -> None:
    figures = measured(ANSWERED)
    assert (figures.slices, figures.patients) == (9, 8)
    assert counts(figures) == {
        "labelled": (6, 9, 8),
        "accepted": (5, 9, 8),
        "referred": (1, 9, 8),
        "unfamiliar": (1, 9, 8),
        "rejected": (1, 9, 8),
        "accepted_accuracy": (2, 5, 4),
        "missed_cancers": (1, 5, 4),
        "false_alarms": (1, 4, 4),
        "cancer_sensitivity": (3, 4, 3),  # the close call between normal and two cancers has the reason possible_cancer
        "cancer_specificity": (1, 2, 2),
    }
    assert figures.table == {
        "adenocarcinoma": {
            "adenocarcinoma": 1,
            "squamous_cell_carcinoma": 1,
            "normal": 1,
            "referred, with a label": 1,
            "unfamiliar": 1,
        },
        "normal": {"normal": 1, "large_cell_carcinoma": 1, "rejected as not a chest CT": 1, "not readable": 1},
    }


def test_if_only_cancer_and_normal_are_known_any_cancers_label_is_right() -> None:
    two = [
        each._replace(file=each.file._replace(known=each.file.known.replace("adenocarcinoma", "cancer")))
        for each in ANSWERED
    ]
    assert counts(measured(two, two=True)) == {**counts(measured(ANSWERED)), "accepted_accuracy": (3, 5, 4)}


def test_calibration_is_of_the_probability_of_any_cancer() -> None:
    sure = [answered(file("cancer", f"C{n}"), *towards(0)) for n in range(20)]
    sure += [answered(file("normal", f"N{n}"), *towards(NORMAL)) for n in range(20)]
    wrong = [answered(file("normal", f"W{n}"), *towards(0)) for n in range(20)]
    good, bad = measured(sure, two=True), measured([*sure, *wrong], two=True)
    assert good.calibration_error is not None
    assert bad.calibration_error is not None
    assert good.calibration_error.value < 0.02
    assert bad.calibration_error.value == pytest.approx(1 / 3, abs=0.02)
    assert bad.calibration_error.low < bad.calibration_error.value < bad.calibration_error.high
    assert sum(point.images for point in bad.reliability) == 60
    assert bad.reliability[-1].accuracy == 0.5
    assert bad.auroc is not None
    assert bad.auroc.value == pytest.approx(0.75)


def test_without_a_label_or_a_side_some_figures_are_missing() -> None:
    figures = measured([ANSWERED[4], ANSWERED[8]._replace(file=file("adenocarcinoma"))])
    assert counts(figures) == {
        "labelled": (0, 2, 2),
        "accepted": (0, 2, 2),
        "referred": (0, 2, 2),
        "unfamiliar": (1, 2, 2),
        "rejected": (0, 2, 2),
        "accepted_accuracy": None,
        "missed_cancers": (0, 2, 2),
        "false_alarms": None,
        "cancer_sensitivity": None,
        "cancer_specificity": None,
    }
    assert figures.auroc is figures.calibration_error is None
    assert figures.reliability == ()


def test_the_bar_asks_for_the_figure_and_for_the_worse_end_of_its_interval() -> None:
    def verdicts(cancers: int, normals: int) -> dict[str, str]:
        some = [answered(file("cancer", f"C{n}"), *towards(0)) for n in range(cancers)]
        some += [answered(file("normal", f"N{n}"), *towards(NORMAL)) for n in range(normals)]
        some += [answered(file("normal", "F"), *towards(0))] if normals == 9 else []
        return {mark.name: mark.verdict for mark in judge(measured(some, two=True), BAR)}

    assert set(verdicts(40, 40).values()) == {"reached"}
    assert verdicts(8, 9) == {
        "labelled": "reached",
        "accepted_accuracy": "too few patients to tell",
        "missed_cancers": "too few patients to tell",
        "false_alarms": "missed",
    }
    assert verdicts(40, 0)["false_alarms"] == "not measured"
    assert not any(mark.reached for mark in judge(measured([unreadable(file("normal"))], two=True), BAR))


def test_the_slices_with_a_label_are_handed_to_the_projects_own_figures() -> None:
    answers, labels, patients = to_answers(ANSWERED)
    assert labels.tolist() == [0, 0, 0, 0, NORMAL, NORMAL]
    assert patients.tolist() == [0, 0, 1, 2, 3, 4]
    assert answers.accepted.tolist() == [True, True, True, False, True, True]
    assert answers.possible_cancer.tolist() == [False, False, False, True, False, False]
    assert not answers.rejected.any()
    assert answers.probabilities == pytest.approx(
        np.array([[each.prediction.probabilities[name] for name in CLASSES] for each in ANSWERED if each.labelled])
    )
    assert answers.sets.any(axis=1).all()
