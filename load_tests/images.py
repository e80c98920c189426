"""Makes the images that load tests and benchmarks send: drawn phantoms, not of any patient."""

import struct
from io import BytesIO
from typing import Final

import numpy as np
from PIL import Image

from pipeline.images.classes import CLASSES
from pipeline.images.phantoms import draw_phantom

SIZE: Final = (414, 282)
"""Width and height of the median picture of the real data set. Its median file has 90 KB, half of them 78 to 112 KB."""
EVERY_JPEG: Final = 8
"""One in this many files is a JPEG. The real data set has fewer."""


def phantom(seed: int = 0) -> bytes:
    """Return a phantom as a PNG file. The class changes with the seed."""
    return _file(_draw(seed), "PNG")


def pictures(count: int) -> list[tuple[str, bytes]]:
    """Return media types and bytes of phantoms that cost as much to decode as real pictures: RGBA PNG and RGB JPEG."""
    files = []
    for seed in range(count):
        picture = _draw(seed).resize(SIZE, Image.Resampling.BICUBIC)
        if seed % EVERY_JPEG == EVERY_JPEG - 1:
            files.append(("image/jpeg", _file(picture.convert("RGB"), "JPEG")))
        else:
            files.append(("image/png", _file(picture.convert("RGBA"), "PNG")))
    return files


def dicom_file(seed: int = 0) -> bytes:
    """Return a phantom as an uncompressed DICOM file. Grey level 0 is -1350 Hounsfield units, each level adds 6."""
    levels = np.asarray(_draw(seed).convert("L"), np.uint16)
    rows, columns = levels.shape
    body = b"".join(
        (
            _element(0x0008, 0x0060, b"CS", b"CT"),
            _element(0x0028, 0x0002, b"US", struct.pack("<H", 1)),
            _element(0x0028, 0x0004, b"CS", b"MONOCHROME2 "),
            _element(0x0028, 0x0010, b"US", struct.pack("<H", rows)),
            _element(0x0028, 0x0011, b"US", struct.pack("<H", columns)),
            _element(0x0028, 0x0100, b"US", struct.pack("<H", 16)),
            _element(0x0028, 0x0101, b"US", struct.pack("<H", 16)),
            _element(0x0028, 0x0102, b"US", struct.pack("<H", 15)),
            _element(0x0028, 0x0103, b"US", struct.pack("<H", 0)),
            _element(0x0028, 0x1052, b"DS", b"-1350 "),
            _element(0x0028, 0x1053, b"DS", b"6 "),
            _element(0x7FE0, 0x0010, b"OW", levels.tobytes()),
        )
    )
    syntax = _element(0x0002, 0x0010, b"UI", b"1.2.840.10008.1.2.1\0")
    size = _element(0x0002, 0x0000, b"UL", struct.pack("<I", len(syntax)))
    return bytes(128) + b"DICM" + size + syntax + body


def _element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """Encode a DICOM element as Explicit VR Little Endian."""
    length = struct.pack("<2xI" if kind == b"OW" else "<H", len(value))
    return struct.pack("<HH", group, number) + kind + length + value


def _draw(seed: int) -> Image.Image:
    return draw_phantom(seed % len(CLASSES), np.random.default_rng(seed))


def _file(picture: Image.Image, kind: str) -> bytes:
    file = BytesIO()
    picture.save(file, format=kind, quality=95)
    return file.getvalue()
