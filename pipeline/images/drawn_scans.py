"""Draws scans that are not transverse slices of the chest: of other parts of the body, and coronal ones.

They are schematic, like the phantoms, and differ in size, tilt, noise and window. The probe "is it a chest CT" learns
from them what near misses look like (pipeline.judging.chest_ct).
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.images.canvas import AIR, BONE, CANVAS, FAT, MUSCLE, Plane, X, Y, ellipse, harmonics, paint

Draw = Callable[[np.random.Generator], Image.Image]
_WINDOWS: Final = ((40, 400), (60, 300), (300, 1500), (450, 2000), (-100, 1200), (-500, 1600))
"""Centres and widths in Hounsfield units."""


def draw_abdomen(rng: np.random.Generator) -> Image.Image:
    """An abdomen: liver, spleen, kidneys and bowel between fat and muscle, and no lung."""
    plane, (width, height) = _draw_trunk(rng)
    liver = rng.uniform(0.25, 0.5) * width
    paint(
        plane, ellipse(-width * 0.55, -0.05, liver, height * 0.7, wobble=harmonics(rng, 4, 0.08)), rng.uniform(50, 120)
    )
    paint(plane, ellipse(width * 0.72, 0.1, width * 0.2, height * 0.4, turn=0.3), rng.uniform(50, 130))
    for side in (-1, 1):
        if rng.random() < 0.8:
            paint(plane, ellipse(side * width * 0.42, height * 0.4, 0.1, 0.15, turn=side * 0.4), rng.uniform(30, 220))
    for _ in range(int(rng.integers(4, 12))):
        x, y = rng.uniform(-0.6, 0.75) * width, rng.uniform(-0.75, 0.2) * height
        size = rng.uniform(0.04, 0.11)
        paint(plane, ellipse(x, y, size * rng.uniform(0.8, 1.8), size, turn=rng.uniform(0, 3)), rng.uniform(20, 90))
        if rng.random() < 0.4:
            paint(plane, ellipse(x, y - size * 0.3, size * 0.8, size * 0.5), AIR + 50)
    _draw_spine(plane, height * rng.uniform(0.5, 0.65), rng)
    return _show(plane, rng)


def draw_pelvis(rng: np.random.Generator) -> Image.Image:
    """A pelvis: hip bones, sacrum or heads of the thighs, bladder and rectum."""
    plane, (width, height) = _draw_trunk(rng)
    low = rng.random() < 0.5
    for side in (-1, 1):
        if low:
            paint(plane, ellipse(side * width * 0.58, 0.05, 0.14, 0.13), BONE + 150)
            paint(plane, ellipse(side * width * 0.4, 0.0, 0.05, 0.24, turn=-side * 0.3), BONE + 100)
        else:
            paint(plane, ellipse(side * width * 0.6, 0.1, 0.05, 0.42, turn=side * rng.uniform(0.6, 1.0)), BONE + 100)
    paint(plane, ellipse(0, height * 0.62, rng.uniform(0.12, 0.3), 0.13, wobble=harmonics(rng, 4, 0.1)), BONE - 100)
    size = rng.uniform(0.1, 0.25)
    paint(plane, ellipse(0, -height * 0.25, size * 1.2, size), rng.uniform(0, 40))
    paint(plane, ellipse(0, height * 0.3, 0.08, 0.08), rng.choice([AIR + 50, 30.0]))
    return _show(plane, rng)


def draw_neck(rng: np.random.Generator) -> Image.Image:
    """A neck: a small round section with windpipe, muscles, vessels and spine."""
    plane = np.full((CANVAS, CANVAS), AIR, np.float32)
    width, height = rng.uniform(0.4, 0.75), rng.uniform(0.4, 0.6)
    paint(plane, ellipse(0, 0, width, height, power=2.2, wobble=harmonics(rng, 3, 0.04)), FAT)
    for _ in range(12):
        x, y = rng.uniform(-0.7, 0.7) * width, rng.uniform(-0.5, 0.8) * height
        paint(plane, ellipse(x, y, *rng.uniform(0.06, 0.16, 2), turn=rng.uniform(0, 3)), MUSCLE + rng.uniform(-10, 30))
    for side in (-1, 1):
        paint(plane, ellipse(side * width * 0.4, -0.05, 0.05, 0.06), rng.uniform(50, 300))
    paint(plane, ellipse(0, -height * rng.uniform(0.3, 0.6), 0.07, rng.uniform(0.06, 0.1)), AIR + 30)
    _draw_spine(plane, height * 0.3, rng)
    return _show(plane, rng)


def draw_legs(rng: np.random.Generator) -> Image.Image:
    """One or two legs: round sections of muscle with a ring of bone."""
    plane = np.full((CANVAS, CANVAS), AIR, np.float32)
    size = rng.uniform(0.3, 0.42)
    for x in (-0.45, 0.45) if rng.random() < 0.7 else (0.0,):
        paint(plane, ellipse(x, 0, size, size * rng.uniform(0.9, 1.1)), FAT)
        paint(
            plane,
            ellipse(x, 0, size - 0.05, size - 0.05, wobble=harmonics(rng, 5, 0.05)),
            MUSCLE + _texture(rng, 3, 15),
        )
        bone = rng.uniform(0.07, 0.13)
        paint(plane, ellipse(x, 0.02, bone, bone), BONE + 700)
        paint(plane, ellipse(x, 0.02, bone * 0.5, bone * 0.5), FAT)
    return _show(plane, rng)


def draw_coronal(rng: np.random.Generator) -> Image.Image:
    """A coronal section through the chest: two high lungs above the domes of the diaphragm, shoulders and neck."""
    plane = np.full((CANVAS, CANVAS), AIR, np.float32)
    width = rng.uniform(0.6, 0.75)
    paint(plane, ellipse(0, 0.15, width, 1.2, power=5), FAT)
    paint(plane, ellipse(0, 0.15, width - 0.06, 1.2, power=5), MUSCLE)
    paint(plane, ellipse(0, -0.75, 0.95, 0.22, power=3), MUSCLE)
    paint(plane, ellipse(0, -0.95, 0.22, 0.3, power=4), MUSCLE)
    for side in (-1, 1):
        lung = ellipse(side * width * 0.5, -0.1, width * 0.38, rng.uniform(0.6, 0.7), power=2.4)
        lung *= rng.uniform(0.3, 0.45) + 1.2 * (X - side * width * 0.5) ** 2 > Y
        paint(plane, lung, -850 + _texture(rng, 2, 60))
        for index in range(8):
            paint(plane, ellipse(side * (width - 0.05), -0.6 + 0.16 * index, 0.03, 0.035), BONE)
    paint(plane, ellipse(0.1, 0.25, rng.uniform(0.2, 0.3), 0.25, turn=0.5), rng.uniform(50, 200))
    paint(plane, ellipse(-width * 0.4, 0.75, width * 0.5, 0.35), rng.uniform(60, 110))
    paint(plane, ellipse(0, -0.75, 0.045, 0.3), AIR + 30)
    return _show(plane, rng)


SCANS: Final[dict[str, Draw]] = {
    "drawn_abdomens": draw_abdomen,
    "drawn_pelves": draw_pelvis,
    "drawn_necks": draw_neck,
    "drawn_legs": draw_legs,
    "drawn_coronals": draw_coronal,
}
"""By kind."""


def _draw_trunk(rng: np.random.Generator) -> tuple[Plane, tuple[float, float]]:
    """A trunk of fat within a layer of muscle, and its half axes."""
    plane = np.full((CANVAS, CANVAS), AIR, np.float32)
    width, height = rng.uniform(0.75, 0.95), rng.uniform(0.5, 0.7)
    paint(plane, ellipse(0, 0, width, height, power=2.4), FAT)
    wall = rng.uniform(0.03, 0.16)
    width, height = width - wall, height - wall
    paint(plane, ellipse(0, 0, width, height, power=2.4, wobble=harmonics(rng, 3, 0.02)), MUSCLE)
    paint(plane, ellipse(0, -0.02, width - 0.06, height - 0.08, power=2.4), FAT + _texture(rng, 3, 30))
    return plane, (width - 0.06, height - 0.08)


def _draw_spine(plane: Plane, y: float, rng: np.random.Generator) -> None:
    size = rng.uniform(0.1, 0.14)
    paint(plane, ellipse(0, y, size, size * 0.85, power=2.4), BONE + rng.uniform(-200, 200))
    paint(plane, ellipse(0, y, size * 0.85, size * 0.7, power=2.4), rng.uniform(150, 300))
    paint(plane, ellipse(0, y + size * 1.05, size * 0.42, size * 0.34), 30)
    for side in (-1, 1):
        paint(plane, ellipse(side * size * 1.2, y + size, size * 0.8, 0.03, turn=-side * 0.5), BONE - 50)


def _texture(rng: np.random.Generator, smoothness: float, strength: float) -> Plane:
    noise = gaussian_filter(rng.standard_normal((CANVAS, CANVAS), np.float32), smoothness)
    return np.asarray(noise / noise.std() * strength)


def _show(plane: Plane, rng: np.random.Generator) -> Image.Image:
    """Show Hounsfield units in one of several windows."""
    centre, width = _WINDOWS[int(rng.integers(len(_WINDOWS)))]
    return _to_image(np.clip((plane - centre) / width + 0.5, 0, 1), rng)


def _to_image(light: Plane, rng: np.random.Generator) -> Image.Image:
    """A grey picture of light from 0 to 1, tilted, with noise, 180 to 420 pixels wide."""
    noise = gaussian_filter(rng.standard_normal(light.shape, np.float32), rng.uniform(0.3, 1.0))
    levels = 255 * np.clip(light, 0, 1) + noise * rng.uniform(2, 14)
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    image = image.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    width = int(rng.integers(180, 421))
    return image.resize((width, round(width * rng.uniform(0.85, 1.2))), Image.Resampling.BILINEAR)
