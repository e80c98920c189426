"""Difficult pictures from ../shared/cases, each with its right answer."""

import numpy as np
import pytest

from chestct.card import InputSpec
from chestct.image import decode
from tests.pictures import refusal
from tests.server import ROOT

FOLDER = ROOT.parent / "shared/cases/pictures"
SPEC = InputSpec(height=128, width=128)
SAME = (
    *("base.jpg", "jpeg-adobe-transform-0.jpg", "jpeg-rgb-components.jpg", "mpo.jpg", "xmp-orientation-6.jpg"),
    *("png-16-grey.png", "png-bad-crc-text.png", "png-exif-broken.png", "png-interlaced.png", "png-ztxt-bomb.png"),
)
TURNED = (
    *("exif-orientation-6.jpg", "exif-o6-float.jpg"),
    *("exif-o6-xres-negative.jpg", "exif-rational-minus1-by-0.jpg"),
)

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/cases, which is not part of the project")


def pixels(name: str) -> np.ndarray:
    return decode((FOLDER / name).read_bytes(), SPEC).pixels[:, :, 0].astype(int)


@pytest.mark.parametrize("name", SAME)
def test_the_picture_is_read_as_it_is(name: str) -> None:
    assert np.abs(pixels(name) - pixels("base.png")).max() <= 8


@pytest.mark.parametrize("name", TURNED)
def test_the_picture_is_turned_as_its_orientation_says(name: str) -> None:
    upright = np.rot90(pixels(name))
    assert np.abs(upright - pixels("base.png")).mean() < 3  # resized after turning, so not the same pixels


@pytest.mark.parametrize(("name", "named"), [("heic-named.jpg", "HEIC"), ("gzipped.png.gz", "gzip")])
def test_other_formats_are_named(name: str, named: str) -> None:
    code, message = refusal((FOLDER / name).read_bytes())
    assert code == "undecodable_image"
    assert named in message
