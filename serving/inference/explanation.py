"""The explanation of an answer: a heat map for each class, and the pixels that the model saw."""

import base64
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chestct.image import encode_png


def draw(classes: Sequence[str], pixels: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> tuple[dict[str, str], str]:
    """Heat maps by class and the preview, as PNG files of the size of `pixels` in base64.

    `pixels` is uint8 [height, width, 1], and `heatmap` [classes, h, w] in logits. The maps share one scale, so the
    classes can be compared. Black is no evidence for the class, or evidence against it.
    """
    height, width, _ = pixels.shape
    supporting = np.maximum(heatmap, 0)
    scaled = supporting * (255 / max(float(supporting.max()), 1e-6))
    maps = {
        name: _to_png(np.asarray(Image.fromarray(map_).resize((width, height), Image.Resampling.BILINEAR)).round())
        for name, map_ in zip(classes, scaled, strict=True)
    }
    return maps, _to_png(pixels[:, :, 0])


def _to_png(grey: NDArray[np.generic]) -> str:
    return base64.b64encode(encode_png(grey.astype(np.uint8))).decode("ascii")
