"""Reads the segments of a JPEG without decoding its pixels."""

import re
from typing import Final, NamedTuple

from chestct.encoded_image import EncodedImage
from chestct.exif import UPRIGHT, read_orientation
from chestct.invalid_image import InvalidImage, check_size, undecodable

SIGNATURE: Final = b"\xff\xd8\xff"
MAX_SEGMENTS: Final = 1_000
"""Most segments of a file. The largest body holds a third of that in segments of the largest size."""
MAX_SCANS: Final = 64
"""Most scans. A progressive picture has some ten. A scan of thirty bytes may cost a pass over all pixels."""
MAX_SAMPLES: Final = 24 * 4096 * 4096
"""Most samples in all scans, which take 1.6 s at worst. The largest picture in four colours has as many."""
_ARITHMETIC_COST: Final = 5
"""Time of arithmetic coding relative to Huffman's."""

_MARKER: Final = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""Start of a segment. It does not match fill bytes, or stuffed zeros and restarts within compressed pixels."""
_SOI: Final = 0xD8
_EOI: Final = 0xD9
_SOS: Final = 0xDA
_APP0: Final = 0xE0
_APP1: Final = 0xE1
_APP14: Final = 0xEE
_TABLES: Final = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
"""Huffman, arithmetic and quantisation tables, and the restart interval."""
_IGNORED: Final = frozenset({*range(0xE0, 0xF0), 0xFE, 0xDC})
"""Segments of applications, comments, and a number of lines that libjpeg ignores, too."""
_ARITHMETIC: Final = frozenset({0xC9, 0xCA})
_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2}) | _ARITHMETIC
_OTHER_FRAMES: Final = {
    0xC3: "a lossless one",  # libjpeg-turbo writes out of bounds if it scales one down
    0xCB: "a lossless one",
    0xF7: "a JPEG-LS",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE), "a hierarchical one"),
}


class _Frame(NamedTuple):
    width: int
    height: int
    colours: bytes
    """Ids of the colours. Some cameras repeat an id; libjpeg and browsers then go by the order."""
    samples: dict[int, float]
    """Samples of a colour by its id, at its own resolution, times _ARITHMETIC_COST for arithmetic coding."""


def read_jpeg(data: bytes) -> EncodedImage:
    """Keep the parts that the decoder needs, up to the end of the first picture. Drop EXIF, comments and profiles.

    So the decoder gets exactly the scans that were counted here. Raises InvalidImage for a truncated file, for an
    unsupported kind of JPEG, and above MAX_SEGMENTS, MAX_SCANS or MAX_SAMPLES.
    """
    view, kept, kept_from = memoryview(data), [], 0
    frame: _Frame | None = None
    at, previous, scans, samples = 2, _SOI, 0, 0.0
    exif, jfif, transform = b"", False, None
    for _ in range(MAX_SEGMENTS):
        marker, start, end = _find_segment(data, at)
        if start > at and previous != _SOS:  # bytes between two segments, which Pillow would read one by one
            kept.append(view[kept_from:at])
            kept_from = start
        at, previous = end, marker
        if marker in _TABLES:
            continue
        if marker == _EOI:
            break
        if marker == _SOS:
            scans += 1
            samples += _scan_samples(data[start + 4 : end], frame)
            if scans > MAX_SCANS or samples > MAX_SAMPLES:
                few = f"expected a JPEG of at most {MAX_SCANS} scans, fewer if it is large"
                raise undecodable(f"the image is too costly: {few}")
        elif marker in _FRAMES:
            if frame is not None:
                raise undecodable("the image is corrupt: it says its size twice")
            frame = _read_frame(data[start + 4 : end], marker)
        elif marker == _APP0 and not scans and data.startswith(b"JFIF\0", start + 4) and end - start >= 18:
            jfif = True
        elif marker == _APP14 and not scans and data.startswith(b"Adobe", start + 4) and end - start >= 16:
            transform = data[start + 15]
        elif marker in _IGNORED:
            kept.append(view[kept_from:start])
            kept_from = end
            if marker == _APP1 and not scans and not exif and data.startswith(b"Exif\0", start + 4):
                exif = data[start + 10 : end]
        else:
            raise (
                _unsupported(_OTHER_FRAMES[marker]) if marker in _OTHER_FRAMES else undecodable("the image is corrupt")
            )
    else:
        raise undecodable(f"the image has too many parts: expected a JPEG of at most {MAX_SEGMENTS} segments")
    if frame is None or not scans:
        raise undecodable("the image is corrupt: it has no pixels")
    return EncodedImage(
        kind="JPEG",
        width=frame.width,
        height=frame.height,
        orientation=read_orientation(exif) if exif else UPRIGHT,
        samples=round(samples),
        parts=(*kept, view[kept_from:end]),
        mode=_mode(frame.colours, jfif, transform),
        bits=8,
    )


def _find_segment(data: bytes, at: int) -> tuple[int, int, int]:
    """The marker of the next segment, and its start and end."""
    found = _MARKER.search(data, at)
    if found is None:
        raise undecodable("the image is truncated")
    start = found.start()
    marker = data[start + 1]
    if marker == _EOI:
        return marker, start, start + 2
    if start + 4 > len(data):
        raise undecodable("the image is truncated")
    length = data[start + 2] << 8 | data[start + 3]
    end = start + 2 + length
    if end > len(data):
        raise undecodable("the image is truncated or corrupt")
    if length < 2 or marker == _SOI:
        raise undecodable("the image is corrupt")
    return marker, start, end


def _read_frame(body: bytes, marker: int) -> _Frame:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise undecodable("the image is corrupt: its header can't be read")
    bits, colours = body[0], body[5]
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    check_size(width, height)
    if bits != 8 or colours not in (1, 3, 4):
        raise _unsupported(f"one of {bits} bits and {colours} colours")
    ids, across, down = body[6::3], [byte >> 4 for byte in body[7::3]], [byte & 15 for byte in body[7::3]]
    if not width or not height or not all(across) or not all(down):
        raise undecodable("the image is corrupt: its header makes no sense")
    most = width * height * (_ARITHMETIC_COST if marker in _ARITHMETIC else 1) / (max(across) * max(down))
    samples = dict.fromkeys(ids, 0.0)
    for id_, x, y in zip(ids, across, down, strict=True):
        samples[id_] = max(samples[id_], most * x * y)
    return _Frame(width, height, ids, samples)


def _scan_samples(body: bytes, frame: _Frame | None) -> float:
    colours = body[1 : 1 + 2 * body[0] : 2] if body else b""
    if frame is None or not colours or not all(colour in frame.samples for colour in colours):
        raise undecodable("the image is corrupt: a scan is of no colour")
    return sum(frame.samples[colour] for colour in colours)


def _unsupported(what: str) -> InvalidImage:
    return undecodable(
        f"the image is a JPEG of a kind that is not read: expected a baseline or progressive one of 8 bits, got {what}"
    )


def _mode(colours: bytes, jfif: bool, transform: int | None) -> str:
    """Pillow's mode for colours with these ids, by the rules of libjpeg and browsers."""
    if len(colours) != 3:
        return "L" if len(colours) == 1 else "CMYK"
    if jfif or transform:
        return "YCbCr"
    return "RGB" if transform == 0 or colours == b"RGB" else "YCbCr"
