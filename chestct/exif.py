"""The one thing in a picture's EXIF that decides something: how it is to be turned."""

import struct
from typing import Final

UPRIGHT: Final = 1
_ORIENTATION: Final = 0x0112
_SHORT: Final = 3


def read_orientation(exif: bytes) -> int:
    """EXIF's orientation, 1 to 8, of a TIFF header and what follows it; 1 where none can be read.

    It is read as browsers read it, so that a picture on the page lies under its heat map: the first entry of the first
    directory that holds one number of 16 bits. Other entries are not looked at, however odd they are.
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
    except struct.error:  # it ends before its entries do
        pass
    return UPRIGHT
