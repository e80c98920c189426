"""Bytes of an encoded image to the pixels the model sees. Training and serving both decode here and nowhere else."""

from io import BytesIO
from typing import Final, NamedTuple

import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from chestct.card import LAYOUT, InputSpec

FORMATS: Final = ("PNG", "JPEG")
MAX_PIXELS: Final = 4096 * 4096
"""The largest picture accepted, in pixels before resizing: a CT slice has 512 x 512, seldom 2048 x 2048.

A picture is decoded whole, in up to four bytes a pixel, so this also bounds the memory a request can take."""

MAX_SCANS: Final = 64
"""Of a JPEG. A progressive one has some ten; each costs a pass over all pixels, and may be but thirty bytes long."""
_SCAN: Final = b"\xff\xda"
"""Its marker. What is compressed has none, a thumbnail has its own few."""

_SIXTEEN_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_GREY: Final = _SIXTEEN_BIT | {"1", "L", "LA"}

_EIGHT_BIT: Final = {"L": "mono", "RGB": "rgb", "RGBA": "rgba"}
"""Modes of a PNG that kornia_rs decodes as Pillow does, in half the time, by its names of them."""
_PLAIN_CHUNKS: Final = frozenset(
    {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"sRGB", b"cHRM", b"iCCP", b"pHYs", b"sBIT", b"bKGD", b"tIME"}
)
"""Parts of a PNG that neither turn it nor say what else its pixels mean."""

_SIDE: Final = 64
"""Facts are measured on so many rows and columns, picked from the whole picture: enough for means, and no pass over
all pixels."""
_RING: Final = np.pad(np.zeros((_SIDE - 16, _SIDE - 16), bool), 8, constant_values=True)
_BLACK: Final = 16
_BAND: Final = 4
"""Grey levels taken for one when flat areas are looked for: JPEG moves a level by a few."""


class InvalidImage(ValueError):
    """The bytes are no picture this system can read.

    `code` is one of `empty_image`, `undecodable_image`, `image_too_large` and, by chestct.dicom, `unsupported_dicom`;
    the message says what was expected and what came.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Facts(NamedTuple):
    """What the rules on the input look at: the picture as it came, before resizing."""

    width: int
    height: int
    colour: float
    """Mean difference of the strongest and the weakest of red, green and blue, in levels of 255; 0 is grey."""
    contrast: float
    """Standard deviation of the grey levels."""
    frame: float
    """Share of the outer eighth on each side that has one and the same grey level, black left out."""
    layout: NDArray[np.float64]
    """[LAYOUT, LAYOUT]: mean grey levels of so many parts of the picture."""
    windowed: bool = False
    """The grey levels were made from a DICOM file's Hounsfield units."""


class Picture(NamedTuple):
    """A decoded picture: `pixels` uint8 [height, width, 1] as the graph takes them, and facts about it as it came."""

    pixels: NDArray[np.uint8]
    facts: Facts


def decode(data: bytes, spec: InputSpec) -> Picture:
    """Decode a PNG or JPEG to grey levels 0..255 of the size in `spec`; the aspect ratio is not kept.

    Transparency is ignored, 16-bit grey levels keep their high byte, EXIF orientation is applied. Grey comes before
    resizing (a third cheaper than after), and a JPEG is decoded at the smallest scale that still covers the target.
    The picture's real size is read from its header, so a bomb is refused before it is decompressed.

    Raises InvalidImage for empty data, for anything but a whole PNG or JPEG, and above MAX_PIXELS or MAX_SCANS.
    """
    if not data:
        raise InvalidImage("empty_image", "expected a PNG or JPEG image, got no bytes")
    try:
        image: Image.Image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InvalidImage(
            "undecodable_image", f"expected a PNG or JPEG image, got {len(data)} bytes that are neither"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(
            "image_too_large", f"expected at most {MAX_PIXELS} pixels, got an image of far more"
        ) from None
    except Exception as error:  # Pillow's readers raise many kinds on broken headers
        raise InvalidImage("undecodable_image", f"the image can't be read: {error}") from error

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InvalidImage(
            "image_too_large", f"expected at most {MAX_PIXELS} pixels, got {width} x {height} = {width * height}"
        )
    if image.format == "JPEG" and (scans := data.count(_SCAN)) > MAX_SCANS:
        raise InvalidImage("undecodable_image", f"expected a JPEG of at most {MAX_SCANS} scans, got {scans}")
    size = (spec.width, spec.height)
    try:
        image = _load(image, data, size)
        grey = _high_byte(image) if image.mode in _SIXTEEN_BIT else image.convert("L")
        facts = _measure(image, grey, width, height)
    except Exception as error:  # truncated or corrupt data: OSError, SyntaxError, ValueError, zlib and struct errors
        raise InvalidImage("undecodable_image", f"the image is truncated or corrupt: {error}") from error
    return Picture(_fit(grey, spec), facts)


def from_dicom(levels: NDArray[np.uint8], spec: InputSpec) -> Picture:
    """Grey levels uint8 [height, width] that chestct.dicom made, as `decode` gives those of a PNG."""
    grey = Image.fromarray(levels)
    return Picture(_fit(grey, spec), _measure(grey, grey, grey.width, grey.height)._replace(windowed=True))


def encode_png(grey: NDArray[np.uint8]) -> bytes:
    """A grey picture uint8 [height, width] as the bytes of a PNG."""
    buffer = BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _load(image: Image.Image, data: bytes, size: tuple[int, int]) -> Image.Image:
    """The pixels of an opened picture, upright. Pillow has the word on whatever is not a plain and whole PNG.

    Whole is judged by the checksum of each chunk, which Pillow skips, not by the one inside the deflate stream.
    """
    if image.format == "PNG" and image.mode in _EIGHT_BIT and _is_plain(data):
        try:
            levels = decode_image_png_u8(data, (image.height, image.width), _EIGHT_BIT[image.mode])
            return Image.fromarray(levels[:, :, 0] if image.mode == "L" else levels)
        except Exception:  # noqa: BLE001 - kornia_rs raises nothing more special, and Pillow says what is wrong
            pass
    image.draft("L" if image.mode == "L" else "YCbCr", size)  # Y is the grey picture; the rest tells its colour
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # else it copies a picture that needs no turning
    return image


def _is_plain(png: bytes) -> bool:
    """Whether a PNG has eight bits a channel and nothing but plain chunks."""
    bits, at = png[24], 8
    while at < len(png):
        length, kind = int.from_bytes(png[at : at + 4], "big"), png[at + 4 : at + 8]
        if kind not in _PLAIN_CHUNKS:
            return False
        at += length + 12
    return bits == 8


def _fit(grey: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """The one way of resizing, whatever kind of file the picture came in."""
    return np.asarray(grey.resize((spec.width, spec.height), Image.Resampling.BILINEAR))[:, :, np.newaxis]


def _measure(image: Image.Image, grey: Image.Image, width: int, height: int) -> Facts:
    levels = _sample(grey, _SIDE)
    bands = np.bincount(levels[_RING] // _BAND, minlength=256 // _BAND)
    side = _SIDE // LAYOUT
    return Facts(
        width=width,
        height=height,
        colour=0.0 if image.mode in _GREY else _colour(image),
        contrast=float(levels.std()),
        frame=float(bands[_BLACK // _BAND :].max() / _RING.sum()),
        layout=levels.reshape(LAYOUT, side, LAYOUT, side).mean(axis=(1, 3)),
    )


def _colour(image: Image.Image) -> float:
    small = image if image.mode == "P" else image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    red, green, blue = np.moveaxis(_sample(small.convert("RGB"), _SIDE // 2), 2, 0)
    strongest = np.maximum(np.maximum(red, green), blue)
    return float((strongest - np.minimum(np.minimum(red, green), blue)).mean())


def _sample(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Pixels picked from the picture, side by side, none mixed."""
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))


def _high_byte(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
