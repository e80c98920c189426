"""Random changes of how a slice is shown."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chestct.standard_picture import AIR, TISSUE, find_body, standardise
from pipeline.core.params import Augment
from pipeline.network.augmentation import Source, augment
from tests.chestct.test_standard_picture import draw_slice, likeness

SIDE = 96
NOTHING = Augment(
    flip=False,
    rotation_degrees=0,
    stretch=1,
    crops=0,
    least_field=0.7,
    windows=0,
    window_centre=(-700, 100),
    window_width=(300, 2500),
    clutter=0,
    degrade=0,
)
EVERYTHING = {"flip": True, "rotation_degrees": 15, "stretch": 1.5, "crops": 0.3, "windows": 0.8, "clutter": 0.3}
PICTURE = draw_slice()
SOURCE = Source(PICTURE, find_body(PICTURE))
STANDARD = standardise(PICTURE, SOURCE.body, SIDE, SIDE)


def changed(seed: int = 1, **change: Any) -> NDArray[np.uint8]:
    pixels = augment(SOURCE, NOTHING.model_copy(update=change), SIDE, np.random.default_rng(seed))
    assert (pixels.shape, pixels.dtype) == ((SIDE, SIDE, 1), np.uint8)
    return pixels[:, :, 0]


def aspect(pixels: NDArray[np.uint8]) -> float:
    rows, columns = (np.flatnonzero((pixels != AIR).any(axis=axis)) for axis in (1, 0))
    return float(np.ptp(columns) / np.ptp(rows))


def test_without_changes_the_standard_picture_stays_nearly_the_same() -> None:
    assert min(likeness(changed(seed), STANDARD) for seed in range(10)) > 0.9


def test_a_flip_mirrors_left_to_right_half_of_the_time() -> None:
    mirrored = [
        likeness(changed(seed, flip=True), STANDARD[:, ::-1]) > likeness(changed(seed, flip=True), STANDARD)
        for seed in range(40)
    ]
    assert 10 < sum(mirrored) < 30


def test_a_stretch_changes_the_aspect_ratio_both_ways() -> None:
    ratios = [aspect(changed(seed, stretch=1.5)) / aspect(STANDARD) for seed in range(40)]
    assert 0.6 < min(ratios) < 0.8
    assert 1.25 < max(ratios) < 1.6


@pytest.mark.parametrize("seed", range(10))
def test_a_window_leaves_lung_and_soft_tissue_at_their_levels(seed: int) -> None:
    pixels = changed(seed, windows=1)
    middle = SIDE // 2
    assert pixels[middle, middle] == pytest.approx(TISSUE, abs=6)
    assert pixels[middle, middle - 30] == pytest.approx(AIR, abs=6)


def test_a_window_clips_what_lies_beyond_it() -> None:
    white = draw_slice()
    white.paste(250, (190, 140, 210, 160))  # bone
    source = Source(white, find_body(white))
    settings = NOTHING.model_copy(update={"windows": 1})
    levels = [
        int(augment(source, settings, SIDE, np.random.default_rng(seed))[SIDE // 2, SIDE // 2, 0]) for seed in range(40)
    ]
    assert min(levels) < TISSUE + 20
    assert max(levels) == 255


def test_a_crop_shows_a_part_of_the_body_larger() -> None:
    shares = [(changed(seed, crops=1, least_field=0.5) != AIR).mean() for seed in range(20)]
    assert max(shares) > (STANDARD != AIR).mean()
    assert min(likeness(changed(seed, crops=1, least_field=0.5), STANDARD) for seed in range(20)) < 0.5


def test_a_table_gown_text_or_frame_is_mostly_removed_again() -> None:
    assert np.median([likeness(changed(seed, clutter=1), STANDARD) for seed in range(40)]) > 0.9


def test_a_lower_resolution_and_noise_change_the_pixels() -> None:
    assert sum(likeness(changed(seed, degrade=1), STANDARD) < 0.999 for seed in range(10)) == 10


def test_the_same_seed_gives_the_same_picture() -> None:
    assert np.array_equal(changed(5, **EVERYTHING), changed(5, **EVERYTHING))
    assert not np.array_equal(changed(5, **EVERYTHING), changed(6, **EVERYTHING))
