"""Thumbnails of standard pictures: what is compared to tell whether two pictures show one slice or one scan."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chestct.standard_picture import AIR

THUMBNAIL: Final = 64
"""Height and width of the thumbnails, in pixels."""

_LIGHTEST: Final = 200
"""Lighter levels are cut: bone and contrast medium differ more between windows than between patients."""


def thumbnails(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails of standard pictures uint8 [N, S, S, 1] as unit vectors, float32 [N, 64 * 64].

    The body's box is stretched to the whole thumbnail, so the crop and the table of the file do not matter. The product
    of two vectors is their correlation, -1 to 1. The vector of a blank picture is zero: it correlates with nothing, not
    even with itself.
    """
    vectors = np.stack([np.asarray(_shrink(each[:, :, 0]), np.float32).ravel() for each in pixels]).clip(0, _LIGHTEST)
    vectors -= vectors.mean(axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6))


def _shrink(picture: NDArray[np.uint8]) -> Image.Image:
    body = picture != AIR
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    if len(rows):
        picture = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
