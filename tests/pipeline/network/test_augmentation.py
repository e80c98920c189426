import numpy as np
import pytest

from pipeline.core.params import Augment
from pipeline.network.augmentation import augment

NOTHING = Augment(flip=False, rotation_degrees=0, zoom=0, shift=0, gamma=0, contrast=0)
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), dtype=np.uint8)
BLOCK = np.zeros((1, 33, 33, 1), np.uint8)
BLOCK[0, 14:19, 4:9] = 200


def changed(pixels, seed=1, **change):
    return augment(pixels, NOTHING.model_copy(update=change), np.random.default_rng(seed))


def centre(pixels):
    weights = pixels[0, :, :, 0].astype(float)
    rows, columns = np.indices(weights.shape)
    return (rows * weights).sum() / weights.sum(), (columns * weights).sum() / weights.sum()


def test_without_augmentation_the_images_stay_the_same():
    assert np.array_equal(changed(PIXELS), PIXELS)


def test_a_flip_mirrors_left_to_right_half_of_the_time():
    flipped = [np.array_equal(changed(BLOCK, seed, flip=True), BLOCK[:, :, ::-1]) for seed in range(40)]
    kept = [np.array_equal(changed(BLOCK, seed, flip=True), BLOCK) for seed in range(40)]
    assert 10 < sum(flipped) < 30
    assert sum(flipped) + sum(kept) == 40


def test_a_rotation_is_about_the_centre_and_within_its_limit():
    angles = []
    for seed in range(30):
        row, column = centre(changed(BLOCK, seed, rotation_degrees=18))
        assert np.hypot(row - 16, column - 16) == pytest.approx(10, abs=0.5)
        angles.append(np.degrees(np.arctan2(row - 16, 16 - column)))
    assert max(np.abs(angles)) <= 19
    assert min(angles) < -8
    assert max(angles) > 8


def test_a_shift_stays_within_its_share_of_the_side():
    moves = np.array([centre(changed(BLOCK, seed, shift=0.1)) for seed in range(30)]) - centre(BLOCK)
    assert np.abs(moves).max() <= 3.4
    assert np.ptp(moves, axis=0).min() > 3


def test_zoom_changes_the_size_of_things_both_ways():
    areas = [(changed(BLOCK, seed, zoom=0.3) > 100).sum() for seed in range(30)]
    assert min(areas) < 25 < max(areas)


@pytest.mark.parametrize("change", [{"gamma": 0.3}, {"contrast": 0.3}])
def test_grey_levels_change_but_keep_their_order(change):
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    out = changed(ramp, 3, **change).ravel().astype(int)
    assert not np.array_equal(out, ramp.ravel())
    assert (np.diff(out) >= 0).all()


def test_the_same_seed_gives_the_same_pictures():
    everything = {"flip": True, "rotation_degrees": 18, "zoom": 0.1, "shift": 0.1, "gamma": 0.2, "contrast": 0.2}
    assert np.array_equal(changed(PIXELS, 5, **everything), changed(PIXELS, 5, **everything))
    assert not np.array_equal(changed(PIXELS, 5, **everything), changed(PIXELS, 6, **everything))
