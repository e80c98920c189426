"""Reads the orientation in a picture's EXIF, the only tag that matters here."""

import struct
from typing import Final

UPRIGHT: Final = 1
_ORIENTATION: Final = 0x0112
_SHORT: Final = 3


def read_orientation(exif: bytes) -> int:
    """The orientation, 1 to 8, in EXIF data from its TIFF header on; 1 if there is none.

    It reads like browsers, so that a picture on the page matches its heat map: it takes the first entry of the first
    directory that is one number of 16 bits. It ignores other entries, however odd they are.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return UPRIGHT
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(entries):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH2x", exif, at + 2 + 12 * entry)
            if (tag, kind, count) == (_ORIENTATION, _SHORT, 1) and 1 <= value <= 8:
                return int(value)
    except struct.error:  # the data ends before its entries
        pass
    return UPRIGHT
