"""Each expected value is what Chromium 156 makes of a picture with that EXIF."""

import struct

import pytest

from chestct.exif import read_orientation
from tests.pictures import entry, exif, orientation

SIX = orientation(6)
RATIONAL = entry(0x011A, 5, 1, b"\xff\xff\xff\xff")  # position of its two numbers, far behind the end
RESOLUTION = entry(0x011A, 10, 1, struct.pack("<I", 26))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        *((exif(orientation(value)), value) for value in range(1, 9)),
        (exif(orientation(6, ">"), order=">"), 6),
        (exif(orientation(0)), 1),
        (exif(orientation(9)), 1),
        (exif(RATIONAL, SIX), 6),
        (exif(SIX, RATIONAL), 6),
        (exif(SIX, RESOLUTION, rest=struct.pack("<iii", 0, -1, 0)), 6),
        (exif(SIX, entry(0x9999, 99, 2**32 - 1, b"")), 6),
        (exif(SIX, rest=b""), 6),
        (exif(SIX, orientation(1)), 6),
        (exif(orientation(1), SIX), 1),
        (exif(entry(0x0112, 1, 1, b"\6")), 1),
        (exif(entry(0x0112, 3, 2, b"\6")), 1),
        (exif(entry(0x0112, 3, 0, b"\6")), 1),
        (exif(entry(0x0112, 4, 1, b"\6")), 1),
        (exif(entry(0x0112, 11, 1, struct.pack("<f", 6))), 1),
        (exif(SIX)[:-5], 1),
        (exif(SIX).replace(b"\1\0", b"\xff\0", 1), 6),
        (b"II+\0" + exif(SIX)[4:], 1),
        (b"Exif\0\0" + exif(SIX), 1),
        (b"II*\0\xff\xff\xff\xff", 1),
        (b"II*\0", 1),
        (b"garbage", 1),
        (b"", 1),
    ],
)
def test_the_orientation_alone_is_read(data, expected):
    assert read_orientation(data) == expected
