"""The contact sheet shows each image with its name, in groups."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.images.contact_sheet import GROUPS, IMAGES, Section, draw
from pipeline.images.slices import Slice
from tests.pipeline.images.slices import slice_of


def drawn(folder: Path, *sections: Section) -> Image.Image:
    draw(sections, "Audit", folder / "audit" / "sheet.png")
    with Image.open(folder / "audit" / "sheet.png") as sheet:
        sheet.load()
        return sheet


def square(grey: int, name: str = "a.png") -> Slice:
    pixels = np.full((32, 32), grey, np.uint8)
    pixels[8:24, 8:24] = 255 - grey
    return slice_of(pixels, f"train/normal/{name}", scan=7)


def test_each_image_of_a_group_is_on_the_sheet(tmp_path: Path) -> None:
    sheet = np.asarray(drawn(tmp_path, Section("Copies", [[square(10), square(60)], [square(90)]])))
    for grey in (10, 60, 90):
        assert (sheet == grey).sum() > 5000
        assert (sheet == 255 - grey).sum() > 2000


def test_a_long_name_stays_below_its_image(tmp_path: Path) -> None:
    short, long = (drawn(tmp_path, Section("Copies", [[square(10, name)]])) for name in ("a.png", "a" * 200 + ".png"))
    beside = 140  # pixels from the left
    assert np.array_equal(np.asarray(short)[:, beside:], np.asarray(long)[:, beside:])


def test_groups_beyond_the_limit_are_counted_but_not_drawn(tmp_path: Path) -> None:
    full = drawn(tmp_path, Section("Copies", [[square(10)] * IMAGES] * GROUPS))
    more = drawn(tmp_path, Section("Copies", [[square(10)] * IMAGES] * (GROUPS + 5)))
    assert more.size == full.size


def test_all_images_of_a_large_group_are_drawn_in_several_rows(tmp_path: Path) -> None:
    one, two = (drawn(tmp_path, Section("Scans", [[square(10)] * count])) for count in (IMAGES, IMAGES + 1))
    assert two.height > one.height
    shown = [(np.asarray(sheet) == 245).sum() for sheet in (one, two)]
    assert shown[1] / shown[0] == pytest.approx((IMAGES + 1) / IMAGES, rel=0.01)


def test_an_empty_section_has_only_a_heading(tmp_path: Path) -> None:
    assert drawn(tmp_path, Section("Copies", [])).height < 150
