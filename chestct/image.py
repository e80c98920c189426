"""Decodes images to the standard picture that the model sees. Training and serving both decode here."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Final, NamedTuple

import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray
from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from chestct import jpeg, png
from chestct.card import LAYOUT, InputSpec
from chestct.encoded_image import EncodedImage
from chestct.exif import UPRIGHT
from chestct.invalid_image import InvalidImage, undecodable
from chestct.standard_picture import Body, find_body, standardise
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
_CORNERS: Final = np.arange(_SIDE**2).reshape(16, 4, 16, 4)[::15, :, ::15].swapaxes(1, 2).reshape(4, 16)
"""Places of the samples in each of the four corners."""
_LIGHT_CORNERS: Final = 3
"""If fewer corners are light, the picture is not inverted: air surrounds the body."""
_NO_NEGATIVE: Final = (np.zeros((LAYOUT, LAYOUT)), 0)
_RING: Final = np.flatnonzero(np.pad(np.zeros((_SIDE - 16, _SIDE - 16), bool), 8, constant_values=True))
_BLOCK: Final = 8
"""Pixels of a side of JPEG's blocks."""
_MIDDLE: Final = 128
"""Pixels of a side of the part that blockiness is measured on."""
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
    bodies: int
    """Number of bodies of about one size, side by side; 0 if no body is found."""
    body: float
    """Share of the picture that the body's box fills."""
    air: float
    """Grey level of the lung, or of air if there is no lung."""
    tissue: float
    """Grey level of the soft tissue."""
    blockiness: float
    """Mean step between neighbours at every eighth column, by that elsewhere, in the picture's middle. JPEG raises it.
    """
    layout: NDArray[np.float64]
    """[LAYOUT, LAYOUT], mean grey levels of the parts of the standard picture."""
    negative: NDArray[np.float64]
    """The same of the picture's negative; all 0 unless so many corners are light that the picture may be inverted."""
    negative_bodies: int
    """Number of bodies in the negative; 0 if it was not measured."""


class Picture(NamedTuple):
    """A decoded picture: the standard picture `pixels` uint8 [height, width, 1] for the graph, and facts about it."""

    pixels: NDArray[np.uint8]
    facts: Facts


def decode(data: bytes, spec: InputSpec) -> Picture:
    """Decode a PNG or JPEG to its standard picture of the size in `spec` (chestct.standard_picture).

    Transparency is ignored, 16-bit grey levels keep their high byte, and the EXIF orientation is applied. Conversion to
    grey comes before resizing, which is a third cheaper. A JPEG is decoded at the smallest scale that covers twice the
    size, because the body may fill only a part of it.
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
    with _as_invalid_image():
        image = _load(encoded, (2 * spec.width, 2 * spec.height))
        return _to_picture(image, _to_grey(image), encoded.width, encoded.height, spec)


def decode_grey(encoded: EncodedImage) -> Image.Image:
    """The whole picture that `inspect` has read, upright, in mode L. Raises InvalidImage if its pixels are corrupt."""
    with _as_invalid_image():
        return _to_grey(_load(encoded, (encoded.width, encoded.height)))


def from_dicom(levels: NDArray[np.uint8], spec: InputSpec) -> Picture:
    """The picture of grey levels uint8 [height, width] from chestct.dicom, as from `decode`."""
    grey = Image.fromarray(levels)
    return _to_picture(grey, grey, grey.width, grey.height, spec)


def encode_png(grey: NDArray[np.uint8]) -> bytes:
    """Encode a grey picture, uint8 [height, width], as PNG."""
    buffer = BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


@contextmanager
def _as_invalid_image() -> Iterator[None]:
    """Turn whatever a decoder raises into InvalidImage."""
    try:
        yield
    except MemoryError:
        raise InvalidImage("image_too_large", "the image takes more memory than is allowed") from None
    except Exception as error:  # OSError, SyntaxError, ValueError, zlib and struct errors
        raise undecodable("the image is corrupt: its pixels can't be decoded") from error


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


def _to_picture(image: Image.Image, grey: Image.Image, width: int, height: int, spec: InputSpec) -> Picture:
    """The standard picture of `grey`, in the same way for every kind of file. `width` and `height` are the file's."""
    body = find_body(grey)
    pixels = standardise(grey, body, spec.width, spec.height)
    return Picture(pixels[:, :, np.newaxis], _measure(image, grey, width, height, body, pixels, spec))


def _measure(
    image: Image.Image,
    grey: Image.Image,
    width: int,
    height: int,
    body: Body,
    pixels: NDArray[np.uint8],
    spec: InputSpec,
) -> Facts:
    levels = _sample(grey, _SIDE)
    bands = np.bincount(levels.take(_RING) // _BAND, minlength=256 // _BAND)
    left, top, right, bottom = body.box
    light = np.count_nonzero(levels.take(_CORNERS).mean(axis=1) > levels.mean())
    negative, negative_bodies = _measure_negative(grey, spec) if light >= _LIGHT_CORNERS else _NO_NEGATIVE
    return Facts(
        width=width,
        height=height,
        colour=0.0 if image.mode in _GREY else _colour(image),
        contrast=float(levels.std()),
        frame=float(bands[_BLACK // _BAND :].max() / len(_RING)),
        bodies=body.bodies,
        body=(right - left) * (bottom - top),
        air=float(body.air),
        tissue=float(body.tissue),
        blockiness=_blockiness(grey),
        layout=_layout(pixels),
        negative=negative,
        negative_bodies=negative_bodies,
    )


def _layout(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean grey levels of the parts of a standard picture [height, width]."""
    parts = _sample(Image.fromarray(pixels), _SIDE).reshape(LAYOUT, _SIDE // LAYOUT, LAYOUT, _SIDE // LAYOUT)
    return np.asarray(parts.mean(axis=(1, 3)))


def _blockiness(grey: Image.Image) -> float:
    """Facts.blockiness; 1 if the picture is too narrow for a block's edge, or has no step elsewhere."""
    left, top = (max(0, (side - _MIDDLE) // 2 // _BLOCK * _BLOCK) for side in grey.size)
    right, bottom = min(left + _MIDDLE, grey.width - 1), min(top + _MIDDLE, grey.height)
    middle, shifted = (grey.crop((left + by, top, right + by, bottom)) for by in (0, 1))
    steps = np.asarray(ImageChops.difference(middle, shifted)).sum(axis=0, dtype=np.uint32)
    at_edges = steps[_BLOCK - 1 :: _BLOCK]
    elsewhere = steps.sum() - at_edges.sum()
    if not len(at_edges) or not elsewhere:
        return 1.0
    return float(at_edges.mean() / (elsewhere / (len(steps) - len(at_edges))))


def _measure_negative(grey: Image.Image, spec: InputSpec) -> tuple[NDArray[np.float64], int]:
    """The layout of the negative's standard picture, and its number of bodies."""
    negative = ImageChops.invert(grey)
    body = find_body(negative)
    return _layout(standardise(negative, body, spec.width, spec.height)), body.bodies


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
