"""Drift: the stability index, and when it is more than chance."""

import numpy as np
import pytest

from chestct.watched import count
from pipeline.judging.drift import LEVEL, Drift, compare, independent, stability_index
from pipeline.judging.reference import count_reference

SCANS = np.repeat(np.arange(100), 4)
RNG = np.random.default_rng(5)
REFERENCE = count_reference(
    {
        "input_tissue": RNG.normal(115, 12, 400),
        "input_body": np.repeat(RNG.uniform(0.6, 1, 100), 4),  # the same in all slices of a scan
    },
    SCANS,
)


def drifts(tissue: float, body: list[float], same_scan: float = 0) -> dict[str, Drift]:
    """Compare 50 images, of which `tissue` is the mean level of soft tissue."""
    levels = np.random.default_rng(6).normal(tissue, 12, 50)
    counts = {"input_tissue": count("input_tissue", levels), "input_body": count("input_body", body)}
    return {each.fact: each for each in compare(counts, REFERENCE, same_scan, seed=1)}


def test_the_index_by_hand() -> None:
    by_hand = (0.5 - 0.25) * np.log(2) + (0.5 - 0.75) * np.log(2 / 3)
    assert stability_index(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(by_hand)
    assert by_hand == pytest.approx(0.2747, abs=1e-4)
    assert stability_index(np.array([0.3, 0.7]), np.array([0.3, 0.7])) == 0


def test_an_empty_bin_counts_as_half_a_percent() -> None:
    by_hand = (0.995 - 0.5) * np.log(0.995 / 0.5) + (0.005 - 0.5) * np.log(0.005 / 0.5)
    assert stability_index(np.array([0.995, 0.0]), np.array([0.5, 0.5])) == pytest.approx(by_hand)


def test_slices_of_one_scan_count_as_fewer() -> None:
    assert independent(50, 0, 0.4) == 50
    assert independent(50, 1, 0) == 50
    assert independent(50, 1, 1) == 1
    assert independent(50, 0.06, 0.4) == pytest.approx(50 / (1 + 49 * 0.06 * 1.5 * 0.4))


def test_images_like_the_reference_have_not_drifted_and_others_have() -> None:
    body = np.random.default_rng(7).uniform(0.6, 1, 50).tolist()
    assert not any(each.drifted for each in drifts(115, body).values())
    found = drifts(150, body)
    assert (found["input_tissue"].drifted, found["input_body"].drifted) == (True, False)
    assert found["input_tissue"].psi > 1
    assert found["input_tissue"].images == 50
    assert found["input_tissue"].now.sum() == pytest.approx(1)


def test_one_scan_proves_little_about_what_is_the_same_in_all_its_slices() -> None:
    body = [0.95] * 50
    assert drifts(115, body)["input_body"].drifted
    one = drifts(115, body, same_scan=1)["input_body"]
    assert not one.drifted
    assert one.p > 0.1


def test_a_fact_without_images_is_left_out() -> None:
    counts = {"input_tissue": count("input_tissue", [115.0] * 9), "input_body": count("input_body", [])}
    assert [each.fact for each in compare(counts, REFERENCE, None, seed=1)] == ["input_tissue"]


def test_false_alarms_are_as_rare_as_promised_if_the_images_come_as_the_reference_did() -> None:
    rng = np.random.default_rng(8)
    alarms = 0
    for _ in range(100):
        scans = np.repeat(np.arange(13), 4)[:50]
        values = {"input_tissue": rng.normal(115, 12, 50), "input_body": rng.uniform(0.6, 1, 13)[scans]}
        counts = {name: count(name, each) for name, each in values.items()}
        same = (scans[:, np.newaxis] == scans).sum() - 50
        alarms += any(each.drifted for each in compare(counts, REFERENCE, same / (50 * 49), seed=1))
    assert alarms <= 100 * LEVEL + 3
