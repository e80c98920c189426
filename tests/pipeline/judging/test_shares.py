"""Shares with intervals by patient."""

import numpy as np
import pytest
from scipy.stats import binomtest

from pipeline.judging.shares import Share, separation


def share(*hits_of_patients: str) -> Share:
    """The share of slices marked `x`; each argument holds a patient's slices."""
    hits = np.array([slice_ == "x" for slices in hits_of_patients for slice_ in slices])
    patients = np.array([patient for patient, slices in enumerate(hits_of_patients) for _ in slices])
    found = Share.of(hits, patients)
    assert found is not None
    return found


def test_with_one_slice_a_patient_the_interval_is_the_exact_binomial_one() -> None:
    found = share(*"x..x......")
    exact = binomtest(2, 10).proportion_ci()
    assert (found.count, found.slices, found.patients, found.value) == (2, 10, 10, 0.2)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(("mark", "expected"), [(".", (0, 0.0975)), ("x", (0.9025, 1))])
def test_if_no_slice_or_all_are_hits_the_interval_is_that_of_the_patients(mark: str, expected: tuple) -> None:
    found = share(*[mark * 5] * 36)
    assert found.value == (mark == "x")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-3)  # 0.025 ** (1 / 36) is 0.9026


def test_one_patient_says_almost_nothing_about_others() -> None:
    found = share("x" * 10 + "." * 30)
    assert (found.value, found.patients) == (0.25, 1)
    assert found.low < 0.01
    assert found.high > 0.95


def test_patients_that_differ_widen_the_interval_and_alike_ones_do_not() -> None:
    alike, apart = share(*["xx.."] * 20), share(*["xxxx", "...."] * 10)
    single = share(*"x." * 40)
    assert alike.value == apart.value == single.value == 0.5
    assert apart.high - apart.low > 1.8 * (single.high - single.low)
    assert alike.high - alike.low == pytest.approx(single.high - single.low, rel=0.1)
    assert apart.low == pytest.approx(0.5 - (apart.high - 0.5))


def test_without_slices_there_is_no_share() -> None:
    assert Share.of(np.zeros(0, bool), np.zeros(0, int)) is None


def test_a_share_in_words() -> None:
    assert str(share(*"xx..")) == "2 of 4 (50.0 %, 6.8 to 93.2)"


def test_separation_counts_pairs_and_halves_ties() -> None:
    scores = np.array([0.9, 0.4, 0.4, 0.1])
    found = separation(scores, np.array([True, True, False, False]), np.arange(4), resamples=200, seed=0)
    assert found is not None
    assert found.value == pytest.approx(3.5 / 4)
    assert 0 <= found.low < found.value < found.high == 1


def test_a_separation_with_one_patient_on_a_side_has_no_interval_and_a_perfect_one_is_not_certain() -> None:
    scores, positive = np.linspace(0, 1, 8), np.arange(8) >= 4
    one = separation(scores, positive, np.array([0, 0, 0, 0, 1, 2, 3, 4]), resamples=50, seed=0)
    perfect = separation(scores, positive, np.arange(8), resamples=50, seed=0)
    assert one is not None
    assert perfect is not None
    assert (one.value, one.low, one.high) == (1, 0, 1)
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1, 0.025 ** (1 / 4), 1))
    assert separation(scores, positive | True, np.arange(8), resamples=50, seed=0) is None
