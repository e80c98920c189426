"""The reference in the card: shares by bin, and how alike slices of a scan are."""

import numpy as np
import pytest

from chestct.watched import EDGES
from pipeline.judging.reference import count_reference


def test_shares_and_clumping_by_hand() -> None:
    # Two of four pairs within a scan share a bin; by chance 0.5 ** 2 + 2 * 0.25 ** 2 = 0.375 of all pairs would.
    values = {"input_body": np.array([0.65, 0.66, 0.75, 0.85])}
    reference = count_reference(values, np.array([7, 7, 8, 8]))
    fact = reference.facts["input_body"]
    assert (reference.images, reference.same_scan) == (4, pytest.approx(4 / 12))
    assert fact.edges == EDGES["input_body"]
    assert fact.shares == (0.5, 0.25, 0.25, 0, 0, 0, 0)
    assert fact.clumping == pytest.approx((0.5 - 0.375) / (1 - 0.375))


@pytest.mark.parametrize(
    ("values", "scans", "clumping"),
    [
        ([0.6, 0.6, 0.9, 0.9], [0, 0, 1, 1], 1),
        ([0.6, 0.9, 0.6, 0.9], [0, 0, 1, 1], 0),
        ([0.6, 0.9, 0.6, 0.9], [0, 1, 2, 3], 0),
        ([0.6, 0.6, 0.6, 0.6], [0, 0, 1, 1], 0),
    ],
    ids=["alike in each scan", "unlike in each scan", "one slice a scan", "all alike"],
)
def test_clumping_is_between_none_and_all(values: list[float], scans: list[int], clumping: float) -> None:
    reference = count_reference({"input_body": np.array(values)}, np.array(scans))
    assert reference.facts["input_body"].clumping == clumping
