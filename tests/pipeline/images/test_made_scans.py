"""Scans that are drawn, or made out of slices: each kind varies, is grey and shows what it should."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from chestct.standard_picture import find_body, standardise
from pipeline.images import drawn_scans, made_scans
from pipeline.images.phantoms import draw_phantom

SIZE = (made_scans.SIDE,) * 2
SLICE = draw_phantom(2, np.random.default_rng(3)).convert("L").resize(SIZE)
STANDARD = standardise(SLICE, find_body(SLICE), *SIZE)
Draw = Callable[[np.random.Generator], Image.Image]
KINDS: dict[str, Draw] = {
    **drawn_scans.SCANS,
    **{kind: lambda rng, make=make: make(STANDARD, rng) for kind, make in made_scans.SCANS.items()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_one_picture_and_another_seed_another(kind: str) -> None:
    one, same, other = (np.asarray(KINDS[kind](np.random.default_rng(seed)).resize((64, 64))) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert np.abs(one.astype(int) - other).mean() > 3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_grey_of_a_usual_size_and_not_flat(kind: str) -> None:
    for seed in range(4):
        image = KINDS[kind](np.random.default_rng(seed))
        assert image.mode == "L"
        assert 100 <= min(image.size) <= max(image.size) <= 600
        assert np.asarray(image).std() > 5


@pytest.mark.parametrize("kind", ["made_heads", "drawn_legs", "drawn_necks"])
def test_air_surrounds_a_head_a_leg_and_a_neck(kind: str) -> None:
    for seed in range(6):
        levels = np.asarray(KINDS[kind](np.random.default_rng(seed)), float)
        corners = np.mean([levels[0, 0], levels[0, -1], levels[-1, 0], levels[-1, -1]])
        assert corners < levels.mean()


def test_an_x_ray_has_a_light_spine_between_dark_lungs() -> None:
    for seed in range(6):
        levels = np.asarray(KINDS["made_x_rays"](np.random.default_rng(seed)).resize((64, 64)), float)
        middle, left, right = (levels[20:32, at : at + 4].mean() for at in (30, 16, 44))
        assert middle > left + 10
        assert middle > right + 10


def test_a_jigsaw_has_the_levels_of_the_slice_elsewhere() -> None:
    mixed = np.asarray(made_scans.make_jigsaw(STANDARD, np.random.default_rng(0)))
    assert np.array_equal(np.sort(mixed, axis=None), np.sort(STANDARD, axis=None))
    assert (mixed != STANDARD).mean() > 0.3
