"""Duplicates are found by pixels and by thumbnails."""

import numpy as np
import pytest

from pipeline.core.errors import DataError
from pipeline.images.duplicates import find_duplicates, require_no_duplicates


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 64, 64, 1)).astype(np.uint8)


def test_an_exact_duplicate_comes_before_the_picture_that_is_most_alike() -> None:
    known = noise(3)
    marked = known[1].copy()
    marked[10, 10:14] = 255
    brighter = (known[[1]] * 0.9 + 20).astype(np.uint8)
    found = find_duplicates(np.concatenate([known[[2]], marked[np.newaxis], brighter, noise(1, seed=1)]), known, 0.98)
    assert found.tolist() == [2, 1, 1, -1]


def test_a_blank_picture_has_only_exact_duplicates() -> None:
    black, grey = np.zeros((1, 64, 64, 1), np.uint8), np.full((1, 64, 64, 1), 90, np.uint8)
    assert find_duplicates(black, np.concatenate([grey, black]), 0.98).tolist() == [1]
    assert find_duplicates(black, grey, 0.98).tolist() == [-1]


def test_an_unexpected_duplicate_is_named() -> None:
    pool = noise(3)
    require_no_duplicates(noise(2, seed=1), ["a", "b"], pool, ["x", "y", "z"], 0.98)
    require_no_duplicates(pool[:0], [], pool, ["x", "y", "z"], 0.98)
    with pytest.raises(DataError, match=r"1 test images .* b = z") as caught:
        require_no_duplicates(np.concatenate([noise(1, seed=1), pool[[2]]]), ["a", "b"], pool, ["x", "y", "z"], 0.98)
    assert caught.value.exit_code == 2
