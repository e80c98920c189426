"""Slices are grouped into scans, by a person or by how alike they are."""

import re
from datetime import date

import numpy as np
import pytest

from pipeline.images.scans import BOUNDS, Curated, compare_bounds, join, number_scans
from pipeline.images.slices import Slice
from tests.pipeline.images.slices import slice_of

NONE = Curated(rule="", correlation=0.9, looked_at=date(2026, 1, 2), without_lung=frozenset(), scans={})


def textures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 40, (count, 64, 64))


def levels(texture: np.ndarray) -> np.ndarray:
    return (texture + 120).clip(40, 200).astype(np.uint8)


def between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A texture that correlates by about 0.7 with both."""
    return (one + other) / 2**0.5


def drawn(*pictures: np.ndarray, parts: str = "") -> list[Slice]:
    """Slices in train; `parts` may name another split of each by its letter, r, v or t."""
    splits = {"r": "train", "v": "valid", "t": "test"}
    return [
        slice_of(levels(picture), f"{splits[part]}/normal/{index}.png", sha256=f"sha {index}")
        for index, (picture, part) in enumerate(zip(pictures, parts or "r" * len(pictures), strict=True))
    ]


def scans_of(slices: list[Slice], scans: dict[str, str] | None = None, least: float = 0.6) -> list[int]:
    return [item.scan for item in number_scans(slices, NONE.model_copy(update={"scans": scans or {}}), least)]


def test_slices_are_of_one_scan_through_a_third_slice() -> None:
    left, right, apart = textures(3)
    slices = drawn(left, between(left, right), right, apart)
    assert scans_of(slices) == [0, 0, 0, 1]
    assert scans_of(slices, least=0.95) == [0, 1, 2, 3]


def test_a_slice_that_a_person_has_grouped_keeps_its_scan_whatever_it_looks_like() -> None:
    left, right, apart = textures(3)
    grouped = {"sha 0": "s2", "sha 1": "s1", "sha 3": "s2"}
    assert scans_of(drawn(left, left + 1, right, apart), grouped) == [1, 0, 2, 1]


def test_a_new_slice_joins_the_grouped_scan_that_it_is_most_like() -> None:
    left, right, apart = textures(3)
    new = 0.8 * left + 0.6 * right
    slices = drawn(left, right, new, apart)
    assert scans_of(slices, {"sha 0": "s1", "sha 1": "s2"}, least=0.5) == [0, 1, 0, 2]


def test_a_new_slice_joins_a_grouped_scan_through_another_new_slice() -> None:
    left, right = textures(2)
    assert scans_of(drawn(left, between(left, right), right), {"sha 0": "s1"}) == [0, 0, 0]


def test_test_slices_do_not_join_scans_of_train_and_valid() -> None:
    left, right = textures(2)
    slices = drawn(left, between(left, right), right, right, parts="rtvt")
    first, test, second, copy = scans_of(slices)
    assert first != second
    assert test in {first, second}
    assert copy == second


def test_exact_duplicates_are_of_one_scan_even_if_they_are_blank() -> None:
    grey = np.full((64, 64), 90, np.uint8)
    slices = [slice_of(grey, "train/normal/a.png"), slice_of(grey, "test/normal/b.png"), slice_of(grey + 1)]
    assert scans_of(slices) == [0, 0, 1]


def test_no_slices_have_no_scans() -> None:
    assert number_scans([], NONE, 0.9) == []


def test_the_strongest_link_decides_and_a_weaker_one_never_joins_two_given_scans() -> None:
    correlations = np.array([[1, 0.99, 0.7], [0.99, 1, 0.8], [0.7, 0.8, 1]], np.float32)
    assert join(correlations, np.array([4, 6, -1]), 0.6).tolist() == [4, 6, 6]
    assert join(correlations, np.array([4, 6, -1]), 0.9).tolist()[:2] == [4, 6]
    assert len(set(join(correlations, np.array([-1, -1, -1]), 0.9).tolist())) == 2


def test_bounds_are_compared_by_labels_and_by_scans() -> None:
    left, right, apart = textures(3)
    near = left + 0.3 * apart  # correlates by about 0.96 with the first
    pool = [
        slice_of(levels(picture), f"train/normal/{index}.png", label=label, scan=scan)
        for index, (picture, label, scan) in enumerate([(left, 0, 0), (near, 1, 0), (right, 1, 1), (apart, 1, 1)])
    ]
    found = {each["correlation"]: each for each in compare_bounds(pool)}
    assert tuple(found) == BOUNDS
    assert found[0.9] == {
        "correlation": 0.9,
        "groups": 3,
        "largest": 2,
        "groups_with_several_labels": 1,
        "pairs": 1,
        "one_label": 0.0,
        "one_scan": 1.0,
        "scans_divided": 1,
    }


def test_a_bound_without_pairs_has_nothing_wrong() -> None:
    (found, *_) = compare_bounds([slice_of(levels(texture), scan=index) for index, texture in enumerate(textures(2))])
    assert (found["pairs"], found["one_label"], found["one_scan"]) == (0, 1.0, 1.0)


@pytest.fixture(scope="module")
def curated() -> Curated:
    return Curated.read()


def test_the_curated_file_groups_files_by_neutral_names(curated: Curated) -> None:
    assert len(curated.scans) == 685
    assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in {*curated.scans, *curated.without_lung})
    assert sorted(set(curated.scans.values())) == [f"s{number:03}" for number in range(1, 59)]
    assert curated.without_lung <= curated.scans.keys()
    assert curated.rule.endswith(".")
