"""The standard picture of one slice is the same however it is shown."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from chestct.standard_picture import AIR, MARGIN, TISSUE, Body, find_body, standardise

SIDE = 128
Levels = NDArray[np.uint8]


def draw_slice(width: int = 400, height: int = 300, air: int = 0, lung: int = 20, tissue: int = 110) -> Image.Image:
    """A body of 300 x 200 pixels in the middle, with two lungs and a lesion in the right one."""
    image = Image.new("L", (width, height), air)
    draw = ImageDraw.Draw(image)
    x, y = width // 2, height // 2
    draw.ellipse((x - 150, y - 100, x + 150, y + 100), tissue)
    for side in (-1, 1):
        draw.ellipse((x + side * 70 - 50, y - 70, x + side * 70 + 50, y + 70), lung)
    draw.ellipse((x + 60, y - 20, x + 90, y + 10), tissue)
    return image


def standard(image: Image.Image) -> Levels:
    return standardise(image, find_body(image), SIDE, SIDE)


def likeness(one: Levels, other: Levels) -> float:
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


def test_the_body_fills_the_square_but_for_a_margin_with_its_aspect_ratio_kept() -> None:
    picture = standard(draw_slice())
    rows, columns = (np.flatnonzero((picture != AIR).any(axis=axis)) for axis in (1, 0))
    assert np.ptp(columns) + 1 == pytest.approx(SIDE * (1 - 2 * MARGIN), abs=3)
    assert np.ptp(rows) / np.ptp(columns) == pytest.approx(200 / 300, abs=0.04)


@pytest.mark.parametrize(("air", "lung", "tissue"), [(0, 0, 130), (0, 20, 110), (60, 85, 236), (40, 60, 186)])
def test_lung_and_soft_tissue_get_the_same_levels_in_every_window(air: int, lung: int, tissue: int) -> None:
    image = draw_slice(air=air, lung=lung, tissue=tissue)
    body = find_body(image)
    assert (body.bodies, body.air, body.tissue) == (1, lung, tissue)
    picture = standard(image)
    assert picture[SIDE // 2, SIDE // 2 - 40] == AIR
    assert picture[SIDE // 2, SIDE // 2] == TISSUE
    assert likeness(picture, standard(draw_slice())) > 0.9


def test_a_table_below_and_text_in_the_corner_are_removed() -> None:
    image = draw_slice(height=400)
    draw = ImageDraw.Draw(image)
    draw.arc((40, 200, 360, 330), 20, 160, 120, 4)
    draw.text((4, 4), "IM 12", 200)
    assert likeness(standard(image), standard(draw_slice())) > 0.9


@pytest.mark.parametrize("margin", [20, 9, 3])
def test_a_white_margin_is_no_body(margin: int) -> None:
    framed = ImageOps.expand(draw_slice(), margin, 255)
    assert likeness(standard(framed), standard(draw_slice())) > 0.9


def test_a_thin_frame_around_the_picture_is_no_body() -> None:
    framed = draw_slice()
    ImageDraw.Draw(framed).rectangle((2, 2, 397, 297), outline=200, width=3)
    assert likeness(standard(framed), standard(draw_slice())) > 0.9


def test_a_black_surround_and_another_size_change_next_to_nothing() -> None:
    padded = Image.new("L", (700, 700))
    padded.paste(draw_slice(air=60, lung=85, tissue=236), (150, 200))
    assert likeness(standard(padded), standard(draw_slice())) > 0.9
    assert likeness(standard(draw_slice().resize((200, 150))), standard(draw_slice())) > 0.9


def test_a_body_that_the_frame_cuts_is_taken_as_it_is() -> None:
    cut = draw_slice().crop((130, 60, 400, 300))
    assert find_body(cut).bodies == 1
    assert find_body(cut).box[0] == 0


def test_two_bodies_side_by_side_are_counted() -> None:
    sheet = Image.new("L", (800, 300))
    sheet.paste(draw_slice(), (0, 0))
    sheet.paste(draw_slice(), (400, 0))
    assert find_body(sheet).bodies == 2


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_picture_has_no_body_and_still_gives_a_picture(level: int) -> None:
    blank = Image.new("L", (50, 40), level)
    body = find_body(blank)
    assert (body.bodies, body.box) == (0, (0, 0, 1, 1))
    assert standard(blank).shape == (SIDE, SIDE)


def test_any_picture_gives_a_picture_of_the_wanted_size() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 90, 2)
        levels = (rng.random((height, width)) < rng.random()) * rng.integers(0, 256)
        image = Image.fromarray(levels.astype(np.uint8))
        body: Body = find_body(image)
        assert standardise(image, body, 48, 32).shape == (32, 48)
        assert body.tissue > body.air
        left, top, right, bottom = body.box
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1


def sheet(columns: int, rows: int, gap: int) -> Image.Image:
    """Slices side by side and below each other on black."""
    image = Image.new("L", (columns * (400 + gap), rows * (300 + gap)))
    for place in range(columns * rows):
        image.paste(draw_slice(), (place % columns * (400 + gap), place // columns * (300 + gap)))
    return image


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 3)])
def test_bodies_side_by_side_are_counted(columns: int, rows: int) -> None:
    assert find_body(sheet(columns, rows, 20)).bodies == columns * rows


def test_the_smaller_views_beside_a_slice_are_bodies_too() -> None:
    image = Image.new("L", (700, 460))
    image.paste(draw_slice(), (10, 30))
    for y in (30, 240):
        image.paste(draw_slice().resize((240, 180)), (430, y))
    assert find_body(image).bodies == 3


@pytest.mark.parametrize("level", [0, 90, 255])
def test_a_flat_picture_has_no_body(level: int) -> None:
    body = find_body(Image.new("L", (300, 200), level))
    assert (body.bodies, body.box) == (0, (0, 0, 1, 1))
    assert body.mask.all()


def test_arms_beside_the_body_are_no_bodies() -> None:
    image = Image.new("L", (600, 300))
    image.paste(draw_slice(), (100, 0))
    for x in (70, 530):
        ImageDraw.Draw(image).ellipse((x - 35, 110, x + 35, 200), 110)
    assert find_body(image).bodies == 1
