"""The compressed picture in a DICOM file: its codestream, size and bits, read without decoding it."""

import struct
from typing import Final

from chestct.invalid_image import undecodable

_START_OF_FRAME: Final = frozenset({*range(0xFFC0, 0xFFD0), 0xFFF7}) - {0xFFC4, 0xFFC8, 0xFFCC}
_START_OF_CODESTREAM: Final = b"\xff\x4f\xff\x51"
_JP2: Final = b"\0\0\0\x0cjP  \r\n\x87\n"
"""Start of a JP2 file, which holds a JPEG 2000 codestream in a box."""


def check_frame(frame: bytes, size: tuple[int, int], allocated: int) -> tuple[bytes, int]:
    """Check a frame against the header's `size` (rows, columns) and allocated bits.

    Returns its codestream, and the bits of a pixel in a JPEG or JPEG-LS (otherwise 0). Decoders follow the frame's own
    header. If the file's header differs, they crash or fill the memory. Raises InvalidImage and struct.error.
    """
    if frame.startswith(_JP2):
        frame = _unbox(frame)
    bits = 0
    if frame.startswith(_START_OF_CODESTREAM):
        right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
        (components,) = struct.unpack_from(">H", frame, 40)
        rows, columns = bottom - top, right - left
    elif frame.startswith(b"\xff\xd8"):
        bits, rows, columns, components = struct.unpack_from(">BHHB", frame, _find_start_of_frame(frame))
    else:
        raise undecodable("the DICOM file's compressed picture is not of the kind that its transfer syntax names")
    if (rows, columns) != size:
        raise undecodable("the DICOM file's compressed picture has another size than its Rows and Columns say")
    if components != 1 or bits > allocated:
        raise undecodable("the DICOM file's compressed picture has more to a pixel than its header says")
    return frame, bits


def remove_padding(rle: bytes, pixels: int) -> bytes:
    """Cut off a run of one repeated byte after the last segment of an RLE frame of `pixels` pixels.

    pydicom would decode the run, and find more pixels than Rows and Columns say. Raises struct.error for a frame
    without a header.
    """
    if rle[-2:-1] != rle[-1:]:  # a single byte does no harm
        return rle
    (segments,) = struct.unpack_from("<I", rle)
    (at,) = struct.unpack_from("<I", rle, 4 * segments)
    while pixels > 0 and at < len(rle):
        run = rle[at]
        if run < 128:  # run + 1 different pixels
            at, pixels = at + 2 + run, pixels - 1 - run
        elif run > 128:  # 257 - run equal pixels
            at, pixels = at + 2, pixels - 257 + run
        else:
            at += 1
    return rle[:at] if len(set(rle[at:])) == 1 else rle


def _find_start_of_frame(jpeg: bytes) -> int:
    """Position of the bits, rows, columns and components. Raises struct.error if there are none."""
    position = 2
    while True:
        marker, length = struct.unpack_from(">HH", jpeg, position)
        if marker in _START_OF_FRAME:
            return position + 4
        position += 1 if marker == 0xFFFF else 2 + length  # any number of FF may precede a marker


def _unbox(jp2: bytes) -> bytes:
    """The codestream in a JP2 file. Raises struct.error if there is none."""
    position = 0
    while True:
        length, kind = struct.unpack_from(">I4s", jp2, position)
        start = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", jp2, position + 8)
            start = 16
        end = position + max(length, start) if length else len(jp2)
        if kind == b"jp2c":
            return jp2[position + start : end]
        position = end
