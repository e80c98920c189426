"""Decodes images to the pixels that the model sees. Training and serving both decode here."""

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
from chestct.encoded_image import EncodedImage
from chestct.exif import UPRIGHT
from chestct.invalid_image import InvalidImage, undecodable
from chestct.unsupported_formats import describe_unsupported

SIGNATURES: Final = (png.SIGNATURE, jpeg.SIGNATURE)
"""First bytes of the files that `decode` reads."""

_SIXTEEN_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})
_GREY: Final = _SIXTEEN_BIT | {"1", "L", "LA"}

_EIGHT_BIT: Final = {"L": "mono", "RGB": "rgb", "RGBA": "rgba"}
"""Pillow's and kornia_rs' names of the PNG modes that both decode to the same pixels, kornia_rs in half the time."""
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
"""Transposition for each EXIF orientation."""

_SIDE: Final = 64
"""Rows and columns that the facts are measured on, sampled from the whole picture. That is enough for means."""
_RING: Final = np.pad(np.zeros((_SIDE - 16, _SIDE - 16), bool), 8, constant_values=True)
_BLACK: Final = 16
_BAND: Final = 4
"""Grey levels that count as one in flat areas, because JPEG shifts levels a little."""


class Facts(NamedTuple):
    """Facts about the original picture, before resizing, for the rules on the input."""

    width: int
    height: int
    colour: float
    """Mean difference of the strongest and the weakest of red, green and blue, in levels of 255; 0 is grey."""
    contrast: float
    """Standard deviation of the grey levels."""
    frame: float
    """Share of the outer eighth on each side that has one grey level other than black."""
    layout: NDArray[np.float64]
    """[LAYOUT, LAYOUT], mean grey levels of the parts of the picture."""
    windowed: bool = False
    """Whether the grey levels come from the Hounsfield units of a DICOM file."""


class Picture(NamedTuple):
    """A decoded picture: `pixels` uint8 [height, width, 1] for the graph, and facts about the original."""

    pixels: NDArray[np.uint8]
    facts: Facts


def decode(data: bytes, spec: InputSpec) -> Picture:
    """Decode a PNG or JPEG to grey levels 0 to 255 of the size in `spec`. The aspect ratio is not kept.

    Transparency is ignored, 16-bit grey levels keep their high byte, and the EXIF orientation is applied. Conversion to
    grey comes before resizing, which is a third cheaper. A JPEG is decoded at the smallest scale that covers the size.
    Raises InvalidImage like `inspect`, and for corrupt pixels.
    """
    return decode_encoded(inspect(data), spec)


def inspect(data: bytes) -> EncodedImage:
    """Read the facts about a PNG or JPEG without decompressing it, so that a bomb is refused at no cost.

    Raises InvalidImage for empty data, for anything but a complete PNG or JPEG, above MAX_SIDE or MAX_PIXELS, and for
    too many parts or scans.
    """
    if not data:
        raise InvalidImage("empty_image", "expected a PNG or JPEG image, got no bytes")
    if data.startswith(png.SIGNATURE):
        return png.read_png(data)
    if data.startswith(jpeg.SIGNATURE):
        return jpeg.read_jpeg(data)
    raise undecodable(f"expected a PNG or JPEG image, got {describe_unsupported(data)}")


def decode_encoded(encoded: EncodedImage, spec: InputSpec) -> Picture:
    """Decode a picture that `inspect` has read. Raises InvalidImage if its pixels are corrupt."""
    try:
        image = _load(encoded, (spec.width, spec.height))
        grey = _to_grey(image)
        facts = _measure(image, grey, encoded.width, encoded.height)
    except MemoryError:
        raise InvalidImage("image_too_large", "the image takes more memory than is allowed") from None
    except Exception as error:  # OSError, SyntaxError, ValueError, zlib and struct errors
        raise undecodable("the image is corrupt: its pixels can't be decoded") from error
    return Picture(_fit(grey, spec), facts)


def from_dicom(levels: NDArray[np.uint8], spec: InputSpec) -> Picture:
    """The picture of grey levels uint8 [height, width] from chestct.dicom, as from `decode`."""
    grey = Image.fromarray(levels)
    return Picture(_fit(grey, spec), _measure(grey, grey, grey.width, grey.height)._replace(windowed=True))


def encode_png(grey: NDArray[np.uint8]) -> bytes:
    """Encode a grey picture, uint8 [height, width], as PNG."""
    buffer = BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _load(encoded: EncodedImage, size: tuple[int, int]) -> Image.Image:
    """Load the pixels, turned upright."""
    data = b"".join(encoded.parts)
    image = _load_plain_png(encoded, data)
    if image is None:
        image = _READERS[encoded.kind](BytesIO(data))
        image.draft(encoded.mode, size)  # Y of YCbCr is the grey picture, Cb and Cr are its colour
        image.load()
    return image if encoded.orientation == UPRIGHT else image.transpose(_TURNS[encoded.orientation])


def _load_plain_png(encoded: EncodedImage, data: bytes) -> Image.Image | None:
    """Load the pixels of a plain PNG with kornia_rs; None for a file that is left to Pillow."""
    if encoded.kind != "PNG" or encoded.bits != 8 or encoded.mode not in _EIGHT_BIT:
        return None
    try:
        levels = decode_image_png_u8(data, (encoded.height, encoded.width), _EIGHT_BIT[encoded.mode])
        return Image.fromarray(levels[:, :, 0] if encoded.mode == "L" else levels)
    except Exception:  # noqa: BLE001 - kornia_rs raises nothing more specific
        return None


def _fit(grey: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resize a picture, in the same way for every kind of file."""
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
    side = _SIDE // 2 if image.mode == "P" else _SIDE
    small = image.resize((side, side), Image.Resampling.NEAREST)
    red, green, blue = np.moveaxis(_sample(small.convert("RGB"), _SIDE // 2), 2, 0)
    strongest = np.maximum(np.maximum(red, green), blue)
    return float((strongest - np.minimum(np.minimum(red, green), blue)).mean())


def _sample(image: Image.Image, side: int) -> NDArray[np.uint8]:
    """Sample [side, side] pixels of the picture without interpolation."""
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "L" else image.convert("L")
