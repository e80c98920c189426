from pathlib import Path

import numpy as np
from PIL import Image

from chestct.card import InputSpec
from chestct.image import decode, encode_png
from pipeline.images.contact_sheet import GROUPS, IMAGES, Section, draw
from pipeline.images.manifest import ImageFile
from pipeline.images.slices import Slice, grey_levels


def drawn(folder: Path, *sections: Section) -> Image.Image:
    draw(sections, "Audit", folder / "audit" / "sheet.png")
    with Image.open(folder / "audit" / "sheet.png") as sheet:
        sheet.load()
        return sheet


def slice_of(grey: int, name: str = "a.png") -> Slice:
    pixels = np.full((32, 32, 1), grey, np.uint8)
    pixels[8:24, 8:24] = 255 - grey
    file = ImageFile(path=f"train/normal/{name}", sha256="", bytes=0)
    picture = decode(encode_png(pixels[:, :, 0]), InputSpec(height=32, width=32))
    return Slice(file, 2, *picture, mode="L", format="PNG", greys=grey_levels(pixels), standard=pixels)


def test_each_image_of_a_group_is_on_the_sheet(tmp_path: Path) -> None:
    sheet = np.asarray(drawn(tmp_path, Section("Copies", [[slice_of(10), slice_of(60)], [slice_of(90)]])))
    for grey in (10, 60, 90):
        assert (sheet == grey).sum() > 5000
        assert (sheet == 255 - grey).sum() > 2000


def test_a_long_name_stays_below_its_image(tmp_path: Path) -> None:
    short, long = (drawn(tmp_path, Section("Copies", [[slice_of(10, name)]])) for name in ("a.png", "a" * 200 + ".png"))
    beside = 140  # pixels from the left
    assert np.array_equal(np.asarray(short)[:, beside:], np.asarray(long)[:, beside:])


def test_groups_and_images_beyond_the_limit_are_counted_but_not_drawn(tmp_path: Path) -> None:
    full = drawn(tmp_path, Section("Copies", [[slice_of(10)] * IMAGES] * GROUPS))
    more = drawn(tmp_path, Section("Copies", [[slice_of(10)] * (IMAGES + 5)] * (GROUPS + 5)))
    assert more.size == full.size


def test_an_empty_section_has_only_a_heading(tmp_path: Path) -> None:
    assert drawn(tmp_path, Section("Copies", [])).height < 150
