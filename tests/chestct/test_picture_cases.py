"""Difficult pictures from ../shared/cases, each with its right answer."""

import numpy as np
import pytest

from tests.pictures import grey_levels, refusal
from tests.server import ROOT

FOLDER = ROOT.parent / "shared/cases/pictures"
SAME = (
    *("base.jpg", "jpeg-adobe-transform-0.jpg", "jpeg-rgb-components.jpg", "mpo.jpg", "xmp-orientation-6.jpg"),
    *("png-16-grey.png", "png-bad-crc-text.png", "png-exif-broken.png", "png-interlaced.png", "png-ztxt-bomb.png"),
)
TURNED = (
    *("exif-orientation-6.jpg", "exif-o6-float.jpg"),
    *("exif-o6-xres-negative.jpg", "exif-rational-minus1-by-0.jpg"),
)

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/cases, which is not part of the project")


def levels(name: str) -> np.ndarray:
    return grey_levels((FOLDER / name).read_bytes())


@pytest.mark.parametrize("name", SAME)
def test_the_picture_is_read_as_it_is(name: str) -> None:
    assert np.abs(levels(name) - levels("base.png")).max() <= 8


@pytest.mark.parametrize("name", TURNED)
def test_the_picture_is_turned_as_its_orientation_says(name: str) -> None:
    upright = np.rot90(levels(name))
    assert np.abs(upright - levels("base.png")).mean() < 3  # resized after turning, so not the same pixels


@pytest.mark.parametrize(("name", "named"), [("heic-named.jpg", "HEIC"), ("gzipped.png.gz", "gzip")])
def test_other_formats_are_named(name: str, named: str) -> None:
    code, message = refusal((FOLDER / name).read_bytes())
    assert code == "undecodable_image"
    assert named in message
