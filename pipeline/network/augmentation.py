"""Random changes of training images. Each image is resampled once and gets one new table of grey levels."""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.core.params import Augment


def augment(pixels: NDArray[np.uint8], settings: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a changed copy of images uint8 [N, S, S, 1]. Pixels from outside of an image are black."""
    return np.stack([_augment_one(image[:, :, 0], settings, rng) for image in pixels])[..., np.newaxis]


def _augment_one(image: NDArray[np.uint8], settings: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    picture = Image.fromarray(image).transform(
        image.shape[::-1], Image.Transform.AFFINE, _affine(image.shape[0], settings, rng), Image.Resampling.BILINEAR
    )
    return np.take(_grey_table(settings, rng), np.asarray(picture))


def _affine(size: int, settings: Augment, rng: np.random.Generator) -> tuple[float, ...]:
    """Draw coefficients (a, b, c, d, e, f) that map an output pixel to its input: about the centre, then shifted."""
    angle = math.radians(rng.uniform(-settings.rotation_degrees, settings.rotation_degrees))
    scale_x, scale_y = np.exp(rng.uniform(-1, 1, 2) * math.log1p(settings.zoom))
    shift_x, shift_y = rng.uniform(-settings.shift, settings.shift, 2) * size
    mirror = -1 if settings.flip and rng.random() < 0.5 else 1
    a, b = mirror * math.cos(angle) * scale_x, mirror * math.sin(angle) * scale_x
    d, e = -math.sin(angle) * scale_y, math.cos(angle) * scale_y
    centre = size / 2  # Pillow's origin is the corner of the first pixel, not its middle
    return (a, b, centre * (1 - a - b) + shift_x, d, e, centre * (1 - d - e) + shift_y)


def _grey_table(settings: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a table of 256 grey levels: gamma, then contrast about mid-grey."""
    levels = np.linspace(0, 1, 256) ** math.exp(rng.uniform(-settings.gamma, settings.gamma))
    levels = (levels - 0.5) * (1 + rng.uniform(-settings.contrast, settings.contrast)) + 0.5
    return (levels.clip(0, 1) * 255).round().astype(np.uint8)
