"""Reads the chunks of a PNG without decoding its pixels."""

import struct
import zlib
from typing import Final

from chestct.encoded_image import EncodedImage
from chestct.exif import UPRIGHT, read_orientation
from chestct.invalid_image import check_size, undecodable

SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS: Final = 10_000
"""Most chunks of a file, read in some 5 ms. The largest body holds a quarter of that in the usual chunks of 8 KiB."""

_CHUNK: Final = struct.Struct(">I4s")
_HEADER: Final = struct.Struct(">IIBBBBB")
_START: Final = len(SIGNATURE) + _CHUNK.size + _HEADER.size + 4
"""Bytes of the signature and of the header, which is the first chunk."""
_PALETTE: Final = 3
_MODES: Final = {0: "L", 2: "RGB", _PALETTE: "P", 4: "LA", 6: "RGBA"}


def read_png(data: bytes) -> EncodedImage:
    """Keep the header, a palette that is used, and the compressed pixels. Drop every other chunk.

    Transparency is dropped, too: it changes no grey level. Raises InvalidImage for a truncated file, for more than
    MAX_CHUNKS chunks, and for a wrong checksum of a chunk that is kept.
    """
    if len(data) < _START:
        raise undecodable("the image is truncated")
    length, name = _CHUNK.unpack_from(data, len(SIGNATURE))
    if (length, name) != (_HEADER.size, b"IHDR") or not _is_intact(data, len(SIGNATURE), length):
        raise undecodable("the image is corrupt: its header can't be read")
    width, height, bits, colours, *_ = _HEADER.unpack_from(data, len(SIGNATURE) + _CHUNK.size)
    if not width or not height or colours not in _MODES:
        raise undecodable("the image is corrupt: its header makes no sense")
    check_size(width, height)

    view, kept, kept_from = memoryview(data), [], 0
    at, exif, pixels, palette = _START, b"", False, False
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise undecodable("the image is truncated")
        length, name = _CHUNK.unpack_from(data, at)
        end = at + 12 + length
        if end > len(data):
            raise undecodable("the image is truncated or corrupt")
        if name == b"eXIf" and not exif and _is_intact(data, at, length):
            exif = data[at + _CHUNK.size : end - 4]
        pixels = pixels or name == b"IDAT"
        if name in (b"IDAT", b"IEND") or (name == b"PLTE" and colours == _PALETTE and not pixels):
            if not _is_intact(data, at, length):
                raise undecodable(f"the image is corrupt: the checksum of a chunk {name.decode('ascii')} is wrong")
            if name == b"IEND":
                break
            palette = palette or (name == b"PLTE" and length > 0)
        else:
            kept.append(view[kept_from:at])
            kept_from = end
        at = end
    else:
        raise undecodable(f"the image has too many parts: expected a PNG of at most {MAX_CHUNKS} chunks")
    if colours == _PALETTE and not palette:  # Pillow would invent one
        raise undecodable("the image is corrupt: it has no palette")
    mode = _MODES[colours]
    return EncodedImage(
        kind="PNG",
        width=width,
        height=height,
        orientation=read_orientation(exif) if exif else UPRIGHT,
        samples=width * height * len(mode),
        parts=(*kept, view[kept_from:end]),
        mode=mode,
        bits=bits,
    )


def _is_intact(png: bytes, at: int, length: int) -> bool:
    """Whether the checksum of the chunk that starts there is right."""
    end = at + _CHUNK.size + length
    return zlib.crc32(memoryview(png)[at + 4 : end]) == int.from_bytes(png[end : end + 4], "big")
