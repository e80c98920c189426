"""One slice shown in several styles."""

import numpy as np
import pytest
from PIL import Image

from chestct.card import InputSpec
from chestct.standard_picture import AIR, TISSUE, find_body
from pipeline.judging.styles import STYLES, show
from pipeline.network.augmentation import LUNG_UNITS, TISSUE_UNITS, Source, windowed
from tests.chestct.test_standard_picture import draw_slice

SPEC = InputSpec(height=128, width=128)


@pytest.fixture
def source() -> Source:
    picture = draw_slice(air=0, lung=20, tissue=110)
    return Source(picture, find_body(picture))


def level(units: float, centre: float, width: float) -> int:
    return round(min(max((units - centre) / width + 0.5, 0), 1) * 255)


@pytest.mark.parametrize(("centre", "width"), [(-600, 1500), (40, 400), (0, 2000)])
def test_a_window_maps_lung_and_tissue_by_their_hounsfield_units(source: Source, centre: float, width: float) -> None:
    levels = windowed(np.array([20, 110]), source.body, centre, width)
    assert levels.tolist() == [level(LUNG_UNITS, centre, width), level(TISSUE_UNITS, centre, width)]


def test_on_the_square_the_body_fills_four_fifths_of_the_width() -> None:
    picture = draw_slice(width=320)
    square = STYLES["padded_square"](Source(picture, find_body(picture)))
    left, _, right, _ = find_body(square).box
    assert square.width == square.height
    assert right - left == pytest.approx(0.8, abs=0.04)


def test_half_resolution_halves_both_sides(source: Source) -> None:
    assert STYLES["half_resolution"](source).size == (200, 150)


def test_a_mirrored_border_repeats_what_lies_inside() -> None:
    levels = np.arange(200 * 100, dtype=np.uint32).reshape(200, 100).astype(np.uint8)
    shown = STYLES["mirrored_border"](Source(Image.fromarray(levels), find_body(Image.fromarray(levels))))
    assert shown.size == (112, 224)
    assert np.array_equal(np.asarray(shown)[12:-12, :6], levels[:, 1:7][:, ::-1])


@pytest.mark.parametrize("style", sorted(STYLES))
def test_every_style_gives_nearly_the_same_standard_picture(source: Source, style: str) -> None:
    pixels = show(source, style, SPEC).pixels[:, :, 0]
    assert pixels[64, 64] == pytest.approx(TISSUE, abs=8)
    assert pixels[64, 24] == pytest.approx(AIR, abs=8)
