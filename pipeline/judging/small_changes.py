"""Changes to a picture that are too small to change its label. Stage trust counts the labels that change anyway."""

from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.params import Trust

Pixels = NDArray[np.uint8]
"""uint8 [S, S, 1]"""


def rotate(pixels: Pixels, settings: Trust) -> Pixels:
    """Rotate about the centre; the corners become black."""
    return _grey(Image.fromarray(pixels[:, :, 0]).rotate(settings.rotation_degrees, Image.Resampling.BILINEAR))


def enlarge(pixels: Pixels, settings: Trust) -> Pixels:
    """Zoom in on the centre."""
    height, width, _ = pixels.shape
    x, y = (side * settings.scale / (1 + settings.scale) / 2 for side in (width, height))
    image = Image.fromarray(pixels[:, :, 0])
    return _grey(image.resize((width, height), Image.Resampling.BILINEAR, (x, y, width - x, height - y)))


def compress(pixels: Pixels, settings: Trust) -> Pixels:
    """Encode as JPEG and decode."""
    buffer = BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(buffer, "JPEG", quality=settings.jpeg_quality)
    with Image.open(buffer) as image:
        return _grey(image)


def brighten(pixels: Pixels, settings: Trust) -> Pixels:
    """Raise each grey level by a share of itself."""
    return np.asarray((pixels * (1 + settings.brightness)).clip(0, 255).round(), np.uint8)


CHANGES: Final = (rotate, enlarge, compress, brighten)


def _grey(image: Image.Image) -> Pixels:
    return np.asarray(image)[:, :, np.newaxis]
