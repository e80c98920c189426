"""Bytes of an encoded image to the pixels the model sees. Training and serving both decode here and nowhere else."""

from io import BytesIO
from typing import Final, NamedTuple

import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from chestct import jpeg, png
from chestct.card import LAYOUT, InputSpec
from chestct.encoded_image import BrokenFile, EncodedImage
from chestct.exif import UPRIGHT
from chestct.unsupported_formats import describe_unsupported

SIGNATURES: Final = (png.SIGNATURE, jpeg.SIGNATURE)
"""How the files begin that `decode` reads."""
MAX_SIDE: Final = 8192
MAX_PIXELS: Final = 4096 * 4096
"""The largest picture accepted, in pixels before resizing: a CT slice has 512 x 512, seldom 2048 x 2048.

A picture is decoded whole, in up to four bytes a pixel, so this also bounds the memory a request can take."""

_SIXTEEN_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_GREY: Final = _SIXTEEN_BIT | {"1", "L", "LA"}

_EIGHT_BIT: Final = {"L": "mono", "RGB": "rgb", "RGBA": "rgba"}
"""Modes of a PNG that kornia_rs decodes as Pillow does, in half the time, by its names of them."""
_READERS: Final = {"PNG": PngImageFile, "JPEG": JpegImageFile}
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What each orientation of EXIF asks for."""

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

    Raises InvalidImage as `inspect` does, and for pixels that are corrupt.
    """
    return decode_encoded(inspect(data), spec)


def inspect(data: bytes) -> EncodedImage:
    """Read what a PNG or JPEG says of itself; nothing is decompressed, so a bomb is refused before it costs anything.

    Raises InvalidImage for empty data, for anything but a whole PNG or JPEG, above MAX_SIDE or MAX_PIXELS, and for a
    file of too many parts or scans.
    """
    if not data:
        raise InvalidImage("empty_image", "expected a PNG or JPEG image, got no bytes")
    try:
        if data.startswith(png.SIGNATURE):
            return png.read_png(data, _check_size)
        if data.startswith(jpeg.SIGNATURE):
            return jpeg.read_jpeg(data, _check_size)
    except BrokenFile as error:
        raise InvalidImage("undecodable_image", f"the image {error}") from None
    raise InvalidImage("undecodable_image", f"expected a PNG or JPEG image, got {describe_unsupported(data)}")


def decode_encoded(encoded: EncodedImage, spec: InputSpec) -> Picture:
    """Decode what `inspect` read. Raises InvalidImage where its pixels are corrupt."""
    try:
        image = _load(encoded, (spec.width, spec.height))
        grey = _to_grey(image)
        facts = _measure(image, grey, encoded.width, encoded.height)
    except MemoryError:
        raise InvalidImage("image_too_large", "the image takes more memory than is allowed") from None
    except Exception as error:  # OSError, SyntaxError, ValueError, zlib and struct errors
        raise InvalidImage("undecodable_image", "the image is corrupt: its pixels can't be decoded") from error
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


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InvalidImage(
            "image_too_large",
            f"expected at most {MAX_PIXELS} pixels and {MAX_SIDE} a side, got {width} x {height} = {width * height}",
        )


def _load(encoded: EncodedImage, size: tuple[int, int]) -> Image.Image:
    """The pixels, upright."""
    data = b"".join(encoded.parts)
    image = _load_plain(encoded, data)
    if image is None:
        image = _READERS[encoded.kind](BytesIO(data))
        image.draft(encoded.mode, size)  # Y of YCbCr is the grey picture; the rest tells its colour
        image.load()
    return image if encoded.orientation == UPRIGHT else image.transpose(_TURNS[encoded.orientation])


def _load_plain(encoded: EncodedImage, data: bytes) -> Image.Image | None:
    """The pixels of a plain PNG. Pillow has the word on whatever kornia_rs does not take."""
    if encoded.kind != "PNG" or encoded.bits != 8 or encoded.mode not in _EIGHT_BIT:
        return None
    try:
        levels = decode_image_png_u8(data, (encoded.height, encoded.width), _EIGHT_BIT[encoded.mode])
        return Image.fromarray(levels[:, :, 0] if encoded.mode == "L" else levels)
    except Exception:  # noqa: BLE001 - kornia_rs raises nothing more special
        return None


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


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "L" else image.convert("L")
