"""Builds PNG and JPEG files part by part, so that any part may be wrong."""

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chestct.card import InputSpec
from chestct.image import decode, decode_grey, inspect
from chestct.invalid_image import InvalidImage

SPEC = InputSpec(height=32, width=48)
LEFT, RIGHT = slice(4, 20), slice(28, 44)
"""Columns of a decoded picture, well within the left and the right half."""


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(width: int = 96, height: int = 64) -> Image.Image:
    """Return a gradient from black on the left to white on the right."""
    return Image.fromarray(np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1)))


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Return a PNG chunk. `checksum` replaces the correct one."""
    crc = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def png_header(width: int, height: int, bits: int = 8, colours: int = 0, interlaced: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, interlaced)
    )


def png(header: bytes, compressed: bytes) -> bytes:
    return header + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """Insert chunks after the header."""
    return png[:33] + b"".join(chunks) + png[33:]


def segment(marker: int, body: bytes) -> bytes:
    """Return a JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Insert segments after the start, and after the JFIF segment if there is one."""
    at = 4 + int.from_bytes(jpeg[4:6], "big") if jpeg[3] == 0xE0 else 2
    return jpeg[:at] + b"".join(segments) + jpeg[at:]


def without_jfif(jpeg: bytes) -> bytes:
    return jpeg[:2] + jpeg[4 + int.from_bytes(jpeg[4:6], "big") :]


def repeat_last_scan(jpeg: bytes, times: int) -> bytes:
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * times + jpeg[-2:]


def entry(tag: int, kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    """Return an EXIF entry of 12 bytes. The last four hold the value."""
    return struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")


def exif(*entries: bytes, order: str = "<", rest: bytes = b"\0\0\0\0") -> bytes:
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return head + b"".join(entries) + rest


def orientation(value: int, order: str = "<") -> bytes:
    return entry(0x0112, 3, 1, struct.pack(f"{order}H", value), order)


def grey_levels(data: bytes) -> NDArray[np.int64]:
    """Return the grey levels in a file, int64 [height, width], before they become a standard picture."""
    return np.asarray(decode_grey(inspect(data)), np.int64)


def refusal(data: bytes) -> tuple[str, str]:
    """Return the code and the message of the error for a file that can't be decoded."""
    try:
        decode(data, SPEC)
    except InvalidImage as error:
        return error.code, error.message
    raise AssertionError("it was decoded")
