"""Random changes of training images: first of how a slice is shown, then the standard picture of the result.

What is changed is what the standard picture can't undo: the window, the crop, the aspect ratio, the resolution, noise
and compression, a table, a gown and text. All classes get the same changes, so that none of them tells the class.
"""

import math
from io import BytesIO
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from chestct.standard_picture import Body, find_body, standardise
from pipeline.core.params import Augment

LUNG_UNITS: Final = -850.0
"""Hounsfield units that the level of the lung is taken for."""
TISSUE_UNITS: Final = 40.0
"""Hounsfield units that the level of soft tissue is taken for."""

_PAD: Final = 1.25
"""Side of the canvas by the longer side of what is shown on it, at most."""


class Source(NamedTuple):
    """A picture as it came, and the body in it."""

    picture: Image.Image
    """Mode L."""
    body: Body


def windowed(levels: NDArray[np.integer], body: Body, centre: float, width: float) -> NDArray[np.uint8]:
    """A table of grey levels in another window, in Hounsfield units.

    The window that the levels were made by is unknown. It is taken for linear between the body's lung and tissue.
    """
    units = LUNG_UNITS + (levels - body.air) * (TISSUE_UNITS - LUNG_UNITS) / (body.tissue - body.air)
    return np.asarray((((units - centre) / width + 0.5) * 255).clip(0, 255).round(), np.uint8)


def augment(source: Source, settings: Augment, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Show the slice otherwise, and return its standard picture, uint8 [side, side, 1]."""
    table = _draw_table(source.body, settings, rng)
    canvas, body_box = _draw_geometry(source, settings, rng)
    canvas = canvas.point(table.tolist())
    black = int(table[0])
    if rng.random() < settings.clutter:
        _draw_clutter(canvas, body_box, black, int(table[round(source.body.tissue)]), rng)
    canvas = _degrade(canvas, settings, rng)
    return standardise(canvas, find_body(canvas), side, side)[..., np.newaxis]


def _draw_table(body: Body, settings: Augment, rng: np.random.Generator) -> NDArray[np.uint8]:
    levels = np.arange(256)
    if rng.random() >= settings.windows:
        return levels.astype(np.uint8)
    centre = rng.uniform(*settings.window_centre)
    width = math.exp(rng.uniform(*np.log(settings.window_width)))
    # Soft tissue that clips to black or lung that clips to white would leave nothing to see.
    centre = min(centre, TISSUE_UNITS + 0.2 * width)
    return windowed(levels, body, centre, width)


def _draw_geometry(
    source: Source, settings: Augment, rng: np.random.Generator
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """The slice mirrored, turned, stretched and cropped on a canvas; and the body's box on it in pixels."""
    picture, body = source.picture, source.body
    left, top, right, bottom = (share * edge for share, edge in zip(body.box, picture.size * 2, strict=True))
    width, height = right - left, bottom - top
    field = 1.0
    if rng.random() < settings.crops:
        field = rng.uniform(settings.least_field, 1)
    pad = rng.uniform(1, _PAD) if field == 1 else 1.0
    stretch = math.exp(rng.uniform(-1, 1) * math.log(settings.stretch))
    seen = max(width * math.sqrt(stretch), height / math.sqrt(stretch))
    zoom = rng.uniform(0.8, 1.25) * 256 / seen  # resolution at which the canvas is drawn
    scale_x, scale_y = zoom * math.sqrt(stretch), zoom / math.sqrt(stretch)
    canvas_size = (
        max(48, round(width * scale_x * field * pad)),
        max(48, round(height * scale_y * field * rng.uniform(1, pad))),
    )
    angle = math.radians(rng.uniform(-settings.rotation_degrees, settings.rotation_degrees))
    mirror = -1 if settings.flip and rng.random() < 0.5 else 1
    free = (1 - field) / 2
    centre_x = left + width * (0.5 + rng.uniform(-free, free))
    centre_y = top + height * (0.5 + rng.uniform(-free, free))
    shift_x = rng.uniform(-1, 1) * max(0.0, canvas_size[0] - width * scale_x) / 2
    shift_y = rng.uniform(-1, 1) * max(0.0, canvas_size[1] - height * scale_y) / 2
    a, b = mirror * math.cos(angle) / scale_x, mirror * math.sin(angle) / scale_x
    d, e = -math.sin(angle) / scale_y, math.cos(angle) / scale_y
    middle_x, middle_y = canvas_size[0] / 2 + shift_x, canvas_size[1] / 2 + shift_y
    coefficients = (a, b, centre_x - a * middle_x - b * middle_y, d, e, centre_y - d * middle_x - e * middle_y)
    canvas = picture.transform(canvas_size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    half_x, half_y = width * scale_x / 2, height * scale_y / 2
    return canvas, (middle_x - half_x, middle_y - half_y, middle_x + half_x, middle_y + half_y)


def _draw_clutter(
    canvas: Image.Image, box: tuple[float, float, float, float], black: int, tissue: int, rng: np.random.Generator
) -> None:
    """Draw a table below the body, a line of gown beside it, text in the corners, or a frame around all."""
    draw = ImageDraw.Draw(canvas)
    width, height = canvas.size
    left, _, right, bottom = box
    level = int(rng.integers(min(black + 8, tissue), max(black + 9, tissue + 1)))
    match rng.integers(4):
        case 0:
            depth = rng.uniform(4, 40)
            for _ in range(int(rng.integers(1, 3))):
                y = bottom + rng.uniform(2, 12)
                draw.arc((left - 20, y - 2 * depth, right + 20, y), 15, 165, level, int(rng.integers(1, 4)))
        case 1:
            x = rng.choice([left - 6, right + 6])
            points = [(x + rng.uniform(-8, 8), y) for y in range(0, height, 24)]
            draw.line(points, level, 1)
        case 2:
            for corner in ((3, 3), (width - 60, 3), (3, height - 14), (width - 60, height - 14)):
                if rng.random() < 0.6:
                    draw.text(corner, "".join(chr(c) for c in rng.integers(48, 91, 8)), level)
        case _:
            draw.rectangle(
                (0, 0, width - 1, height - 1), outline=int(rng.choice([level, 255])), width=int(rng.integers(1, 6))
            )


def _degrade(canvas: Image.Image, settings: Augment, rng: np.random.Generator) -> Image.Image:
    """Lower the resolution, blur, add noise or compress."""
    if rng.random() < settings.degrade:
        share = rng.uniform(0.45, 0.9)
        small = (max(32, round(canvas.width * share)), max(32, round(canvas.height * share)))
        canvas = canvas.resize(small, Image.Resampling.BILINEAR)
    if rng.random() < settings.degrade / 2:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0)))
    if rng.random() < settings.degrade:
        levels = np.asarray(canvas, np.float32)
        levels = levels + rng.standard_normal(levels.shape, np.float32) * rng.uniform(1, 10)
        canvas = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    if rng.random() < settings.degrade / 2:
        buffer = BytesIO()
        canvas.save(buffer, "JPEG", quality=int(rng.integers(40, 95)))
        canvas = Image.open(buffer)
        canvas.load()
    return canvas
