"""Figures of the served model on a site's labelled slices, with intervals by patient, and the bar they must reach."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chestct.card import Estimate, ReliabilityBin
from chestct.document import Frozen
from pipeline.core.params import Bar
from pipeline.foreign.answering import (
    ACCEPTED_CANCER,
    ACCEPTED_NORMAL,
    NOT_CHEST_CT,
    REFERRED,
    REFUSED,
    UNFAMILIAR,
    Answered,
    number_patients,
)
from pipeline.foreign.tally import any_cancer, share_outcomes
from pipeline.images.classes import class_names, normal_name
from pipeline.judging.calibration import Answers
from pipeline.judging.metrics import resample
from pipeline.judging.shares import HIGH, LOW, Share, separation

BINS: Final = 10
"""Bins of equally many slices, by the probability of any cancer."""

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


class SiteFigures(Frozen):
    """Figures of one set of answers."""

    slices: int
    patients: int
    shares: dict[str, Share | None]
    """By MEANINGS. None if there are no such slices."""
    auroc: Estimate | None
    """Any cancer against normal, on the slices with a label. None if a side has none."""
    calibration_error: Estimate | None
    """Expected calibration error of the probability of any cancer, on the slices with a label."""
    reliability: tuple[ReliabilityBin, ...]
    """The same slices: probability of any cancer, and share that is a cancer."""
    table: dict[str, dict[str, int]]
    """By true label: files with each accepted label, and with each other outcome."""
    outcomes: dict[str, dict[str, Share]]
    """By true label: the share of each outcome."""


MEANINGS: Final = {
    "labelled": "slices that get a label, accepted or referred",
    "accepted": "slices whose label is accepted",
    "referred": "slices that are referred with a label",
    "unfamiliar": "slices that are unfamiliar, so referred without a label",
    "rejected": "slices that are rejected",
    "accepted_accuracy": "accepted slices whose label is right",
    "missed_cancers": "slices with cancer that are accepted as normal",
    "false_alarms": "normal slices that are accepted as a cancer",
    "cancer_sensitivity": "slices with cancer and a label that have a cancer's label or the reason possible_cancer",
    "cancer_specificity": "normal slices with a label that have neither",
}
"""The figures that are shares, in words."""
_SMALLER_IS_BETTER: Final = frozenset({"missed_cancers", "false_alarms"})


class Mark(Frozen):
    """A figure beside what the bar demands of it."""

    name: str
    found: Share | None
    value: float
    """What the figure must reach."""
    at_worst: float
    """What the worse end of its interval must reach."""
    reached: bool
    """Whether both are reached."""

    @property
    def sign(self) -> str:
        return "at most" if self.name in _SMALLER_IS_BETTER else "at least"

    @property
    def verdict(self) -> str:
        """`reached`, `missed`, `too few patients to tell` or `not measured`."""
        if self.found is None:
            return "not measured"
        if self.reached:
            return "reached"
        return "too few patients to tell" if _reaches(self.name, self.found.value, self.value) else "missed"


def measure(answered: Sequence[Answered], *, two: bool, resamples: int, seed: int) -> SiteFigures:
    """Measure N answers, at least one. `two`: only cancer and normal are known, and any cancer's label is right."""
    patients = number_patients(answered)
    labels, outcomes = (np.array(names) for names in zip(*((a.file.known, a.outcome) for a in answered), strict=True))
    cancer, labelled = labels != normal_name(), np.array([each.labelled for each in answered])
    accepted = np.isin(outcomes, (ACCEPTED_CANCER, ACCEPTED_NORMAL))
    called = np.array([str(each.prediction.label) if each.prediction else "" for each in answered])
    right = (called != normal_name()) == cancer if two else called == labels
    caught = (called != normal_name()) | np.array([_possible_cancer(each) for each in answered])
    chosen = {
        "labelled": (np.ones_like(cancer), labelled),
        "accepted": (np.ones_like(cancer), accepted),
        "referred": (np.ones_like(cancer), outcomes == REFERRED),
        "unfamiliar": (np.ones_like(cancer), outcomes == UNFAMILIAR),
        "rejected": (np.ones_like(cancer), np.isin(outcomes, (NOT_CHEST_CT, REFUSED))),
        "accepted_accuracy": (accepted, right),
        "missed_cancers": (cancer, outcomes == ACCEPTED_NORMAL),
        "false_alarms": (~cancer, outcomes == ACCEPTED_CANCER),
        "cancer_sensitivity": (cancer & labelled, caught),
        "cancer_specificity": (~cancer & labelled, ~caught),
    }
    scores = np.array([any_cancer(each) for each, wanted in zip(answered, labelled, strict=True) if wanted])
    bins = _bins(scores)
    names = sorted(set(labels.tolist()))
    return SiteFigures(
        slices=len(answered),
        patients=len(np.unique(patients)),
        shares={name: Share.of(hits[rows], patients[rows]) for name, (rows, hits) in chosen.items()},
        auroc=separation(scores, cancer[labelled], patients[labelled], resamples=resamples, seed=seed),
        calibration_error=_calibration_error(scores, cancer[labelled], bins, patients[labelled], resamples, seed),
        reliability=_reliability(scores, cancer[labelled], bins),
        table={name: _count(answered, labels == name) for name in names},
        outcomes={name: share_outcomes(outcomes[labels == name], patients[labels == name]) for name in names},
    )


def judge(figures: SiteFigures, bar: Bar) -> tuple[Mark, ...]:
    """Compare the figures with the bar. A figure that can't be measured does not reach it."""
    marks = []
    for name, (value, at_worst) in bar:
        found = figures.shares[name]
        worse_end = 0.0 if found is None else found.high if name in _SMALLER_IS_BETTER else found.low
        reached = found is not None and _reaches(name, found.value, value) and _reaches(name, worse_end, at_worst)
        marks.append(Mark(name=name, found=found, value=value, at_worst=at_worst, reached=reached))
    return tuple(marks)


def _reaches(name: str, found: float, wanted: float) -> bool:
    return found <= wanted if name in _SMALLER_IS_BETTER else found >= wanted


def to_answers(answered: Sequence[Answered]) -> tuple[Answers, Ints, Ints]:
    """The slices with a label for pipeline.judging.metrics: answers, true classes [N] and patients [N]."""
    found = [(each, each.prediction) for each in answered if each.labelled and each.prediction]
    sets = np.array([[name in prediction.prediction_set for name in class_names()] for _, prediction in found])
    answers = Answers(
        np.array([[prediction.probabilities[name] for name in class_names()] for _, prediction in found]),
        np.array([prediction.decision == "accept" for _, prediction in found]),
        np.zeros(len(found), bool),
        np.zeros(len(found), bool),
        sets,
        np.array([_possible_cancer(each) for each, _ in found]),
    )
    labels = np.array([class_names().index(each.file.known) for each, _ in found])
    return answers, labels, number_patients([each for each, _ in found])


def _possible_cancer(answered: Answered) -> bool:
    return answered.prediction is not None and "possible_cancer" in answered.prediction.reasons


def _count(answered: Sequence[Answered], chosen: Flags) -> dict[str, int]:
    """How many of the chosen files have each accepted label, and each other outcome."""
    counts = Counter[str]()
    for each, wanted in zip(answered, chosen, strict=True):
        if wanted:
            accepted = each.prediction is not None and each.prediction.decision == "accept"
            counts[str(each.prediction.label) if each.prediction and accepted else each.outcome] += 1
    return dict(counts)


def _bins(scores: NDArray[np.floating]) -> Ints:
    """The bin [N] of each score, from the lowest; equal scores share a bin."""
    return np.searchsorted(np.sort(scores), scores) * BINS // max(len(scores), 1)


def _reliability(scores: NDArray[np.floating], cancer: Flags, bins: Ints) -> tuple[ReliabilityBin, ...]:
    return tuple(
        ReliabilityBin(
            confidence=float(scores[of_bin].mean().clip(0, 1)),
            accuracy=float(cancer[of_bin].mean()),
            images=int(of_bin.sum()),
        )
        for of_bin in (bins == each for each in np.unique(bins))
    )


def _calibration_error(
    scores: NDArray[np.floating], cancer: Flags, bins: Ints, patients: Ints, resamples: int, seed: int
) -> Estimate | None:
    """Mean distance of a bin's probability from its share of cancers, weighted by slices. None without slices.

    The interval resamples patients. With one patient it is 0 to 1.
    """
    if not len(scores):
        return None
    of_bins = (scores - cancer)[:, np.newaxis] * (bins[:, np.newaxis] == np.arange(BINS))
    weights = np.concatenate([np.ones((1, len(scores))), resample(patients, resamples, seed)])
    errors = np.abs(weights @ of_bins).sum(axis=1) / weights.sum(axis=1)
    low, high = (float(end) for end in np.quantile(errors[1:], (LOW, HIGH)))
    value = float(errors[0])
    if len(np.unique(patients)) < 2:
        return Estimate(value=value, low=0, high=1)
    return Estimate(value=value, low=min(low, value), high=max(high, value))
