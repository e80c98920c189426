"""Thumbnails compare the body alone, wherever it is."""

import numpy as np
import pytest
from PIL import Image

from chestct.standard_picture import AIR
from pipeline.images.thumbnails import THUMBNAIL, thumbnails


def body(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A textured body, uint8 [rows, columns]."""
    coarse = np.random.default_rng(seed).integers(60, 200, (8, 8)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((columns, rows), Image.Resampling.BILINEAR))


def on_air(part: np.ndarray, top: int, left: int) -> np.ndarray:
    picture = np.full((128, 128, 1), AIR, np.uint8)
    picture[top : top + part.shape[0], left : left + part.shape[1], 0] = part
    return picture


def test_a_thumbnail_is_a_unit_vector_around_its_mean() -> None:
    (vector,) = thumbnails(on_air(body(80, 100), 20, 10)[np.newaxis])
    assert vector.shape == (THUMBNAIL * THUMBNAIL,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert vector.mean() == pytest.approx(0, abs=1e-5)


def test_only_the_body_is_compared_wherever_and_however_large_it_is() -> None:
    pictures = np.stack([on_air(body(60, 80), 5, 5), on_air(body(90, 120), 30, 4), on_air(body(60, 80, seed=1), 5, 5)])
    vectors = thumbnails(pictures)
    assert vectors[0] @ vectors[1] > 0.99
    assert vectors[0] @ vectors[2] < 0.5


def test_contrast_medium_and_bone_are_cut() -> None:
    dull, bright = body(80, 100).copy(), body(80, 100).copy()
    dull[30:40, 40:60], bright[30:40, 40:60] = 200, 255
    vectors = thumbnails(np.stack([on_air(dull, 20, 10), on_air(bright, 20, 10)]))
    assert vectors[0] @ vectors[1] > 0.999


def test_a_blank_picture_correlates_with_nothing() -> None:
    blank = np.full((2, 64, 64, 1), AIR, np.uint8)
    blank[1] = 90
    vectors = thumbnails(np.concatenate([blank, np.full((1, 64, 64, 1), AIR, np.uint8)]))
    assert np.allclose(vectors @ vectors.T, 0)
