"""The checks of heat maps: body, occlusion and rank correlation."""

import numpy as np
import pytest

from pipeline.judging.heatmaps import body_mask, hide_quarter, mass_inside, rank_correlations


def disc(size: int = 64, radius: float = 20) -> tuple[np.ndarray, np.ndarray]:
    """A grey body with two dark lungs on a background of air, and its mask."""
    y, x = np.mgrid[:size, :size] - size / 2
    body = x**2 + y**2 < radius**2
    lungs = ((abs(x) - 8) ** 2 + y**2) < 25
    return np.where(body & ~lungs, 140, 10).astype(np.uint8)[:, :, np.newaxis], body


def test_the_body_includes_the_lungs():
    pixels, body = disc()
    assert (body_mask(pixels) == body).mean() > 0.98


def test_a_picture_without_contrast_is_all_body():
    assert body_mask(np.full((32, 32, 1), 9, np.uint8)).all()


def test_only_positive_values_of_a_map_count():
    _, body = disc()
    inside, outside = np.full((8, 8), -1.0), np.full((8, 8), -1.0)
    inside[3:5, 3:5] = outside[0, 0] = 1
    assert mass_inside(inside, body) > 0.95
    assert mass_inside(outside, body) < 0.05
    assert mass_inside(np.full((8, 8), -1.0), body) == 1


@pytest.mark.parametrize("most", [True, False])
def test_the_highest_or_lowest_quarter_of_a_map_is_hidden(most):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1) * 3
    heatmap = np.array([[1.0, 2.0], [4.0, 3.0]])
    changed = hide_quarter(pixels, heatmap, most=most) != pixels
    rows = slice(4, 8) if most else slice(0, 4)
    assert changed[rows, 0:4].mean() > 0.9
    assert changed.mean() <= 0.25


def test_rank_correlation_is_spearmans():
    one = np.array([[[1.0, 2.0], [3.0, 4.0]]] * 3)
    other = np.array([[[1.0, 20.0], [30.0, 400.0]], [[4.0, 3.0], [2.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert rank_correlations(one, other) == pytest.approx([1, -1, 0])
