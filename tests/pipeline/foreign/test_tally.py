"""The table of other sources: what became of their slices, and how dangerous that is."""

import pytest

from pipeline.foreign.answering import ACCEPTED_CANCER, ACCEPTED_NORMAL, NOT_CHEST_CT, OUTCOMES, UNFAMILIAR, UNREADABLE
from pipeline.foreign.folders import CANCER, HEALTHY, NOT_CHEST, OTHER
from pipeline.foreign.tally import count_groups, count_key_figures, separate
from tests.pipeline.foreign.answered import answered, file, towards, unreadable

NORMAL = 2
ANSWERED = [
    answered(file(CANCER, "P1", source="a"), *towards(0)),
    answered(file(CANCER, "P1", source="a"), *towards(0)),
    answered(file(CANCER, "P2", source="a"), *towards(NORMAL)),
    answered(file(CANCER, "P3", source="a"), *towards(3), ood_score=0.95),
    answered(file(HEALTHY, "Q1", source="b"), *towards(NORMAL)),
    answered(file(HEALTHY, "Q2", source="b"), *towards(1)),
    answered(file(OTHER, "R1", source="b"), 1, 1, 1, 1),
    answered(file(NOT_CHEST, source="c", name="x"), *towards(0), chest_ct=0, sha256="x"),
    answered(file(NOT_CHEST, source="c", name="y"), *towards(0), sha256="y"),
    unreadable(file(NOT_CHEST, source="c", name="z")),
]


def test_each_source_and_kind_is_counted_by_outcome() -> None:
    groups = {(group.source, group.known): group for group in count_groups(ANSWERED)}
    assert list(groups) == [("a", CANCER), ("b", HEALTHY), ("b", OTHER), ("c", NOT_CHEST)]
    cancers, others = groups["a", CANCER], groups["c", NOT_CHEST]
    assert (cancers.slices, cancers.patients, cancers.slices_alone) == (4, 3, 0)
    counts = {name: share.count for name, share in cancers.outcomes.items() if share.count}
    assert counts == {ACCEPTED_CANCER: 2, ACCEPTED_NORMAL: 1, UNFAMILIAR: 1}
    assert cancers.labels == {"adenocarcinoma": 2, "normal": 1}
    assert cancers.reasons == {"unfamiliar": 1}
    assert (others.slices, others.patients, others.slices_alone) == (3, 3, 3)
    assert others.problems == {"undecodable_image: it is corrupt": 1}
    assert others.outcomes[UNREADABLE].count == others.outcomes[NOT_CHEST_CT].count == 1
    for group in groups.values():
        assert sum(group.outcomes[name].count for name in OUTCOMES) == group.slices


def test_the_figures_that_say_if_it_is_dangerous() -> None:
    found = count_key_figures(ANSWERED)
    counts = {name: (share.count, share.slices) for name, share in found.items() if share}
    assert counts == {
        "slices of cancer patients accepted as normal": (1, 4),
        "normal slices accepted as a cancer": (1, 2),
        "slices of another disease accepted as a cancer": (0, 1),
        "chest CT rejected as not a chest CT": (0, 7),
        "other pictures rejected or not readable": (2, 3),
        "other pictures accepted": (1, 3),
    }
    assert count_key_figures(ANSWERED[:4])["normal slices accepted as a cancer"] is None


def test_separation_is_on_all_slices_and_on_those_with_a_label() -> None:
    found = separate(ANSWERED, resamples=50, seed=0)
    everything, labelled = found["all slices"], found["slices with a label"]
    sides = (everything.cancers, everything.cancer_patients, everything.normals, everything.normal_patients)
    assert sides == (4, 3, 2, 2)
    assert everything.auroc is not None
    assert everything.auroc.value == pytest.approx(
        (3 * 1.5 + 0.5) / 8
    )  # each cancer ties with the normal slice called one
    assert (labelled.cancers, labelled.cancer_patients) == (3, 2)
    assert everything.caveat.startswith("The normal slices come from another source (b) than the cancers (a)")


@pytest.mark.parametrize(
    ("sources", "words"),
    [(("a", "a"), "Each source has both"), (("a", "b", "a"), "Only a has both"), (("a",), "")],
)
def test_what_the_sources_allow_the_auroc_to_say(sources: tuple[str, ...], words: str) -> None:
    """The first source has cancers, the others have normal slices."""
    some = [answered(file(CANCER, "P", source=sources[0]), *towards(0))]
    some += [answered(file(HEALTHY, "Q", source=source), *towards(NORMAL)) for source in sources[1:]]
    found = separate(some, resamples=20, seed=0)["all slices"]
    assert words in found.caveat
    assert bool(words) == bool(found.caveat) == (found.auroc is not None)
