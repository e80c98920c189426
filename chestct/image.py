"""Bytes of an encoded image to the pixels the model sees. Training and serving both decode here and nowhere else."""

from io import BytesIO
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from chestct.card import InputSpec

FORMATS: Final = ("PNG", "JPEG")
MAX_PIXELS: Final = 4096 * 4096
"""The largest picture accepted, in pixels before resizing: a CT slice has 512 x 512, seldom 2048 x 2048.

A picture is decoded whole, in up to four bytes a pixel, so this also bounds the memory a request can take."""

_SIXTEEN_BIT: Final = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I"})


class InvalidImage(ValueError):
    """The bytes are no picture this system can read.

    `code` is one of `empty_image`, `undecodable_image` and `image_too_large`; the message says what was expected and
    what came.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Picture(NamedTuple):
    """A decoded picture: `pixels` uint8 [height, width, 1] as the graph takes them, and its size before resizing."""

    pixels: NDArray[np.uint8]
    width: int
    height: int


def decode(data: bytes, spec: InputSpec) -> Picture:
    """Decode a PNG or JPEG to grey levels 0..255 of the size in `spec`; the aspect ratio is not kept.

    Transparency is ignored, 16-bit grey levels keep their high byte, EXIF orientation is applied. Grey comes before
    resizing (a third cheaper than after), and a JPEG is decoded at the smallest scale that still covers the target.
    The picture's real size is read from its header, so a bomb is refused before it is decompressed.

    Raises InvalidImage for empty data, for anything but a whole PNG or JPEG, and above MAX_PIXELS.
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
    size = (spec.width, spec.height)
    try:
        image.draft("L", size)
        image.load()
        image = ImageOps.exif_transpose(image)
        grey = _high_byte(image) if image.mode in _SIXTEEN_BIT else image.convert("L")
    except Exception as error:  # truncated or corrupt data: OSError, SyntaxError, ValueError, zlib and struct errors
        raise InvalidImage("undecodable_image", f"the image is truncated or corrupt: {error}") from error
    pixels = np.asarray(grey.resize(size, Image.Resampling.BILINEAR))
    return Picture(pixels[:, :, np.newaxis], width, height)


def encode_png(grey: NDArray[np.uint8]) -> bytes:
    """A grey picture uint8 [height, width] as the bytes of a PNG."""
    buffer = BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _high_byte(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
