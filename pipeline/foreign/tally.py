"""Counts what became of foreign slices, by what is known of them, with intervals by patient."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chestct.card import Estimate
from chestct.document import Frozen, JsonFile
from pipeline.foreign.answering import (
    ACCEPTED_CANCER,
    ACCEPTED_NORMAL,
    NOT_CHEST_CT,
    OUTCOMES,
    REFUSED,
    UNREADABLE,
    Answered,
    number_patients,
)
from pipeline.foreign.folders import CANCER, HEALTHY, KINDS, NOT_CHEST, OTHER
from pipeline.images.classes import normal_name
from pipeline.judging.shares import Share, separation

CHEST_CT: Final = (CANCER, HEALTHY, OTHER)

_KEY: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "slices of cancer patients accepted as normal": ((CANCER,), (ACCEPTED_NORMAL,)),
    "normal slices accepted as a cancer": ((HEALTHY,), (ACCEPTED_CANCER,)),
    "slices of another disease accepted as a cancer": ((OTHER,), (ACCEPTED_CANCER,)),
    "chest CT rejected as not a chest CT": (CHEST_CT, (NOT_CHEST_CT,)),
    "other pictures rejected or not readable": ((NOT_CHEST,), (NOT_CHEST_CT, REFUSED, UNREADABLE)),
    "other pictures accepted": ((NOT_CHEST,), (ACCEPTED_CANCER, ACCEPTED_NORMAL)),
}
"""The figures over all sources: of which kinds, and which outcomes count."""


class Group(Frozen):
    """The slices of one kind from one source."""

    source: str
    known: str
    slices: int
    patients: int
    slices_alone: int
    """Slices of which no patient is named. Each counts as a patient, so the intervals may be too narrow."""
    outcomes: dict[str, Share]
    """By OUTCOMES, of all the group's files."""
    labels: dict[str, int]
    """Accepted slices by label."""
    reasons: dict[str, int]
    """Slices by the rule that rejected or referred them. A slice can have several."""
    problems: dict[str, int]
    """Files that can't be read, by reason."""


class Separation(Frozen):
    """How well the probability of any cancer orders slices of cancer patients above normal ones."""

    auroc: Estimate | None
    """None without slices on both sides."""
    cancers: int
    cancer_patients: int
    normals: int
    normal_patients: int
    caveat: str


class Tally(JsonFile):
    """What became of all files."""

    model: str
    model_sha256: str
    """Digest of the graph."""
    digest: str
    """SHA-256 over the sorted (path, SHA-256) of the files."""
    opening: int
    """Number of this opening, 1 for the first."""
    groups: tuple[Group, ...]
    key_figures: dict[str, Share | None]
    """None if there are no such slices."""
    separation: dict[str, Separation]
    """Of `all slices` that could be read, and of the `slices with a label`."""
    disclaimer: str


def count_groups(answered: Sequence[Answered]) -> tuple[Group, ...]:
    """Count what became of each source's and kind's files."""
    patients = number_patients(answered)
    names = sorted({(each.file.source, each.file.known) for each in answered}, key=lambda n: (KINDS.index(n[1]), n[0]))
    groups = []
    for source, known in names:
        chosen = np.array([(each.file.source, each.file.known) == (source, known) for each in answered])
        some = [each for each, wanted in zip(answered, chosen, strict=True) if wanted]
        accepted = [each for each in some if each.outcome in (ACCEPTED_CANCER, ACCEPTED_NORMAL)]
        groups.append(
            Group(
                source=source,
                known=known,
                slices=len(some),
                patients=len(np.unique(patients[chosen])),
                slices_alone=sum(each.file.alone for each in some),
                outcomes=share_outcomes(np.array([each.outcome for each in some]), patients[chosen]),
                labels=_count(str(each.prediction.label) for each in accepted if each.prediction),
                reasons=_count(reason for each in some if each.prediction for reason in each.prediction.reasons),
                problems=_count(each.problem for each in some if each.problem),
            )
        )
    return tuple(groups)


def count_key_figures(answered: Sequence[Answered]) -> dict[str, Share | None]:
    """The figures over all sources that say if the model is dangerous abroad."""
    patients = number_patients(answered)
    known, outcomes = (np.array(names) for names in zip(*((a.file.known, a.outcome) for a in answered), strict=True))
    return {
        name: Share.of(np.isin(outcomes[chosen], counted), patients[chosen])
        for name, (kinds, counted) in _KEY.items()
        for chosen in [np.isin(known, kinds)]
    }


def separate(answered: Sequence[Answered], *, resamples: int, seed: int) -> dict[str, Separation]:
    """AUROC of any cancer against normal, on all slices that could be read, and on those that have a label."""
    found = {}
    for name, some in (
        ("all slices", [each for each in answered if each.prediction]),
        ("slices with a label", [each for each in answered if each.labelled]),
    ):
        some = [each for each in some if each.file.known in (CANCER, HEALTHY)]
        cancer = np.array([each.file.known == CANCER for each in some], bool)
        patients = number_patients(some)
        scores = np.array([any_cancer(each) for each in some])
        numbers = [(int(side.sum()), len(np.unique(patients[side]))) for side in (cancer, ~cancer)]
        found[name] = Separation(
            auroc=separation(scores, cancer, patients, resamples=resamples, seed=seed),
            cancers=numbers[0][0],
            cancer_patients=numbers[0][1],
            normals=numbers[1][0],
            normal_patients=numbers[1][1],
            caveat=_caveat(some),
        )
    return found


def share_outcomes(outcomes: NDArray[np.str_], patients: NDArray[np.int64]) -> dict[str, Share]:
    """The share of each outcome among the `outcomes` [N] of slices of `patients` [N]."""
    return {name: share for name in OUTCOMES if (share := Share.of(outcomes == name, patients))}


def any_cancer(answered: Answered) -> float:
    """The probability of any cancer of a slice that could be read."""
    assert answered.prediction is not None
    return 1 - answered.prediction.probabilities[normal_name()]


def _caveat(some: Sequence[Answered]) -> str:
    """What the sources allow the AUROC to say."""
    cancers, normals = ({each.file.source for each in some if each.file.known == kind} for kind in (CANCER, HEALTHY))
    if not (cancers and normals):
        return ""
    if not cancers & normals:
        return (
            f"The normal slices come from another source ({', '.join(sorted(normals))}) than the cancers "
            f"({', '.join(sorted(cancers))}), so this also measures how the sources differ."
        )
    if cancers == normals:
        return "Each source has both cancers and normal slices."
    return f"Only {', '.join(sorted(cancers & normals))} has both, so this partly measures how the sources differ."


def _count(names: Iterable[str]) -> dict[str, int]:
    """How often each name occurs, the most frequent first."""
    return dict(Counter(names).most_common())
