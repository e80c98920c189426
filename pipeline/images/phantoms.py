"""Draws phantoms: chest-CT slices with a lesion for each class. The pipeline can run on them without patients' images.

Only the lesion depends on the class. Habitus, slice level, contrast medium, window, noise, crop and file size are drawn
at random in the same way for every class.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from pipeline.core.params import PhantomCounts
from pipeline.images.canvas import (
    AIR,
    BONE,
    CANVAS,
    FAT,
    LUNG,
    MUSCLE,
    Plane,
    Y,
    ellipse,
    harmonics,
    paint,
    to_pixels,
)
from pipeline.images.classes import CLASSES, class_names


class Lung(NamedTuple):
    """Centre and half axes of a lung. `outward` is the sign of the x direction to the chest wall."""

    x: float
    y: float
    half_width: float
    half_height: float
    outward: int

    def at(self, outward: float, down: float) -> tuple[float, float]:
        """The point at these multiples of the half axes from the centre."""
        return self.x + self.outward * outward * self.half_width, self.y + down * self.half_height


def draw_phantoms(folder: Path, counts: PhantomCounts, seed: int) -> None:
    """Draw `counts` of each class to `folder`/split/class/name.png. The same seed draws the same bytes."""
    jobs = [
        (folder / split / name / f"{index:04}.png", CLASSES.index(name))
        for split, count in counts
        for name in class_names()
        for index in range(count)
    ]
    seeds = np.random.SeedSequence(seed).spawn(len(jobs))
    for (path, label), image_seed in zip(tqdm(jobs, desc="drawing phantoms", unit="image"), seeds, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_phantom(label, np.random.default_rng(image_seed)).save(path, compress_level=3)


def draw_phantom(label: int, rng: np.random.Generator) -> Image.Image:
    """A slice of the class CLASSES[label]: RGBA, RGB or L and 128 to 400 pixels wide, as in the real data set."""
    slice_rng, file_rng, lesion_rng = rng.spawn(3)
    hounsfield, lungs = _draw_slice(slice_rng)
    _LESIONS[label](hounsfield, lungs[int(lesion_rng.integers(2))], lesion_rng)
    return _photograph(hounsfield, file_rng)


def _draw_slice(rng: np.random.Generator) -> tuple[Plane, tuple[Lung, Lung]]:
    hounsfield = np.full((CANVAS, CANVAS), AIR, np.float32)
    width, height = rng.uniform(0.80, 0.95), rng.uniform(0.58, 0.76)
    paint(hounsfield, ellipse(0, 0, width, height, power=2.5), FAT)
    wall = rng.uniform(0.03, 0.11)
    paint(hounsfield, ellipse(0, 0, width - wall, height - wall, power=2.5), MUSCLE)

    gap, rise = rng.uniform(0.14, 0.22), rng.uniform(-0.06, 0.04)
    lung_height = (height - wall) * rng.uniform(0.72, 0.86)
    coarse = Image.fromarray(rng.normal(0, 25, (32, 32)).astype(np.float32))
    texture = np.asarray(coarse.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))
    lungs = []
    for outward in (-1, 1):
        half_width = (width - wall - 0.07 - gap) / 2 * rng.uniform(0.9, 1.0)
        lung = Lung(outward * (gap + half_width), rise, half_width, lung_height * rng.uniform(0.88, 1.0), outward)
        _draw_lung(hounsfield, lung, texture, rng)
        lungs.append(lung)

    _draw_ribs(hounsfield, width - wall, height - wall, rng)
    _draw_mediastinum(hounsfield, height - wall, gap, rng)
    return hounsfield, (lungs[0], lungs[1])


def _draw_lung(hounsfield: Plane, lung: Lung, texture: Plane, rng: np.random.Generator) -> None:
    shape = ellipse(*lung[:4], power=rng.uniform(2.0, 2.6), wobble=harmonics(rng, 4, 0.05))
    dependent = rng.uniform(0, 120) * (Y - lung.y)  # gravity draws blood to the back
    paint(hounsfield, shape, LUNG + rng.uniform(-60, 90) + texture + dependent)

    vessels = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(vessels)
    for _ in range(rng.integers(5, 9)):
        angle = rng.uniform(-1.3, 1.3) + (0 if lung.outward > 0 else np.pi)
        _draw_vessel(pen, *lung.at(-0.75, rng.uniform(-0.2, 0.2)), angle, rng.uniform(2.2, 3.8), rng)
    for _ in range(rng.integers(15, 35)):  # vessels that cross the slice
        x, y = to_pixels(*lung.at(rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8)))
        radius = rng.uniform(0.5, 1.3)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=int(rng.integers(110, 220)))
    mask = gaussian_filter(np.asarray(vessels, np.float32) / 255, 0.7)
    paint(hounsfield, mask * shape, MUSCLE)


def _draw_vessel(
    pen: ImageDraw.ImageDraw, x: float, y: float, angle: float, thickness: float, rng: np.random.Generator
) -> None:
    """Draw a vessel that winds outward, gets thinner and forks."""
    while thickness > 0.7:
        length = rng.uniform(0.05, 0.10)
        end = x + length * np.cos(angle), y + length * np.sin(angle)
        grey = int(min(230, 90 + 40 * thickness))
        pen.line((*to_pixels(x, y), *to_pixels(*end)), fill=grey, width=max(1, round(thickness)))
        (x, y), thickness, angle = end, thickness * rng.uniform(0.68, 0.9), angle + rng.normal(0, 0.22)
        if rng.random() < 0.4:
            _draw_vessel(pen, x, y, angle + rng.choice([-0.7, 0.7]), thickness * 0.75, rng)


def _draw_ribs(hounsfield: Plane, width: float, height: float, rng: np.random.Generator) -> None:
    phase, count = rng.uniform(0, 1), int(rng.integers(9, 14))
    for index in range(count):
        angle = 2 * np.pi * (index + phase + rng.uniform(-0.2, 0.2)) / count
        x, y = (width - 0.035) * np.cos(angle), (height - 0.035) * np.sin(angle)
        tangent = np.arctan2(height * np.cos(angle), -width * np.sin(angle))
        length, thickness = rng.uniform(0.05, 0.11), rng.uniform(0.017, 0.026)
        paint(hounsfield, ellipse(x, y, length, thickness, turn=tangent), BONE + rng.uniform(-200, 200))
        paint(hounsfield, ellipse(x, y, length * 0.7, thickness * 0.45, turn=tangent), 180)


def _draw_mediastinum(hounsfield: Plane, height: float, gap: float, rng: np.random.Generator) -> None:
    """Draw heart or great vessels, aorta, airways, sternum and vertebra. Contrast medium brightens the blood."""
    blood = MUSCLE + rng.choice([0.0, rng.uniform(60, 250)])
    paint(hounsfield, ellipse(0, 0, gap * 1.05, height * 0.95, wobble=harmonics(rng, 3, 0.08)), 0)
    heart = rng.uniform(0, 1)  # 0 above the heart, 1 through its middle
    x, y = 0.04 + 0.12 * heart, -0.12 * height
    size = 0.12 + 0.20 * heart
    paint(hounsfield, ellipse(x, y, size * 1.05, size * 0.9, turn=0.6, wobble=harmonics(rng, 3, 0.06)), MUSCLE)
    paint(hounsfield, ellipse(x + 0.02, y, size * 0.75, size * 0.6, turn=0.6), blood)
    for side in (-1, 1):
        reach = gap * rng.uniform(0.9, 1.2)
        paint(hounsfield, ellipse(side * reach, 0.05, 0.055, 0.075, wobble=harmonics(rng, 3, 0.15)), blood)

    paint(hounsfield, ellipse(0.10, height * 0.42, 0.065, 0.065), blood)
    airway = rng.uniform(0.028, 0.05)
    apart = 0 if heart < 0.35 else rng.uniform(0.07, 0.11)
    for side in (-1, 1):
        paint(hounsfield, ellipse(side * apart, 0.10, airway, airway * rng.uniform(0.8, 1.2)), AIR + 30)

    paint(hounsfield, ellipse(0, -height + 0.06, rng.uniform(0.06, 0.12), 0.03), BONE - 150)
    spine = height * rng.uniform(0.66, 0.74)
    size = rng.uniform(0.10, 0.135)
    for side in (-1, 1):
        paint(hounsfield, ellipse(side * size * 1.2, spine + size, size * 0.8, 0.03, turn=-side * 0.5), BONE - 50)
    paint(hounsfield, ellipse(0, spine + size * 1.7, 0.022, size * 0.7), BONE - 50)
    paint(hounsfield, ellipse(0, spine, size, size * 0.85, power=2.4), BONE + rng.uniform(-150, 200))
    paint(hounsfield, ellipse(0, spine, size * 0.86, size * 0.7, power=2.4), rng.uniform(150, 300))
    paint(hounsfield, ellipse(0, spine + size * 1.05, size * 0.42, size * 0.34), 30)


def _draw_adenocarcinoma(hounsfield: Plane, lung: Lung, rng: np.random.Generator) -> None:
    """Draw a peripheral lesion: a solid nodule with spicules, or ground glass with visible vessels."""
    x, y = lung.at(rng.uniform(0.5, 0.75), rng.uniform(-0.45, 0.45))
    if rng.random() < 0.35:
        size = rng.uniform(0.13, 0.18)
        glass = ellipse(x, y, size, size * rng.uniform(0.75, 1.2), wobble=harmonics(rng, 6, 0.15))
        haze = gaussian_filter(glass, 2.5) * (hounsfield < -300)
        hounsfield += haze * rng.uniform(450, 600)
        core = size * rng.uniform(0.2, 0.4)
        paint(hounsfield, ellipse(x, y, core, core, wobble=harmonics(rng, 5, 0.2)), 0)
        return
    size = rng.uniform(0.095, 0.135)
    spicules = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(spicules)
    centre = to_pixels(x, y)
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(12, 22))):
        reach = size * rng.uniform(1.2, 1.9)
        end = to_pixels(x + reach * np.cos(angle), y + reach * np.sin(angle))
        pen.line((*centre, *end), fill=int(rng.integers(120, 230)), width=int(rng.integers(1, 3)))
    paint(hounsfield, gaussian_filter(np.asarray(spicules, np.float32) / 255, 0.9), MUSCLE)
    paint(hounsfield, ellipse(x, y, size, size * rng.uniform(0.8, 1.2), wobble=harmonics(rng, 9, 0.13)), MUSCLE)


def _draw_large_cell_carcinoma(hounsfield: Plane, lung: Lung, rng: np.random.Generator) -> None:
    """Draw a large solid mass with a lobulated edge and a darker necrosis."""
    x, y = lung.at(rng.uniform(-0.1, 0.45), rng.uniform(-0.35, 0.35))
    size = rng.uniform(0.17, 0.23)
    mass = ellipse(x, y, size, size * rng.uniform(0.85, 1.15), wobble=harmonics(rng, 5, 0.08))
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(5, 10))):
        lobe, reach = size * rng.uniform(0.3, 0.65), size * rng.uniform(0.55, 0.9)
        np.maximum(mass, ellipse(x + reach * np.cos(angle), y + reach * np.sin(angle), lobe, lobe), out=mass)
    mass *= ellipse(lung.x, lung.y, lung.half_width * 1.08, lung.half_height * 1.08)
    paint(hounsfield, mass, MUSCLE + rng.uniform(-20, 30))
    paint(hounsfield, ellipse(x, y, size * 0.5, size * 0.35, turn=rng.uniform(0, 3)) * 0.6, 5)


def _draw_normal(hounsfield: Plane, lung: Lung, rng: np.random.Generator) -> None:
    """Draw no lesion."""


def _draw_squamous_cell_carcinoma(hounsfield: Plane, lung: Lung, rng: np.random.Generator) -> None:
    """Draw a central lesion at the root of the lung: a thick, uneven wall around a cavity of air."""
    x, y = lung.at(rng.uniform(-0.45, -0.15), rng.uniform(-0.3, 0.3))
    size, cavity = rng.uniform(0.13, 0.18), rng.uniform(0.5, 0.65)
    paint(hounsfield, ellipse(x, y, size, size * rng.uniform(0.85, 1.2), wobble=harmonics(rng, 6, 0.1)), MUSCLE)
    x, y = x + rng.uniform(-0.15, 0.15) * size, y + rng.uniform(-0.15, 0.15) * size
    paint(hounsfield, ellipse(x, y, size * cavity, size * cavity, wobble=harmonics(rng, 5, 0.16)), AIR + 40)


_LESIONS: Final[tuple[Callable[[Plane, Lung, np.random.Generator], None], ...]] = (
    _draw_adenocarcinoma,
    _draw_large_cell_carcinoma,
    _draw_normal,
    _draw_squamous_cell_carcinoma,
)


def _photograph(hounsfield: Plane, rng: np.random.Generator) -> Image.Image:
    """Window, rotate slightly, crop, resize and add noise, as a screenshot of a CT viewer does."""
    level, width = rng.uniform(-650, -350), rng.uniform(1100, 1700)
    grey = np.clip((hounsfield - level) / width + 0.5, 0, 1) ** rng.uniform(0.75, 1.3)
    image = Image.fromarray((255 * grey).astype(np.uint8)).rotate(
        rng.uniform(-7, 7), Image.Resampling.BILINEAR, fillcolor=int(255 * grey[0, 0])
    )
    left, right = rng.uniform(0, 0.08, 2) * CANVAS
    top, bottom = rng.uniform(0.06, 0.22, 2) * CANVAS
    target = int(rng.integers(128, 401))
    shape = target, round(target * rng.uniform(0.62, 0.95))
    image = image.resize(shape, Image.Resampling.BICUBIC, box=(left, top, CANVAS - right, CANVAS - bottom))
    noise = gaussian_filter(rng.standard_normal(shape[::-1], np.float32), rng.uniform(0.3, 0.8))
    noisy = np.asarray(image, np.float32) + noise * rng.uniform(4, 14)
    mode = str(rng.choice(["RGBA", "RGB", "L"], p=[0.8, 0.15, 0.05]))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert(mode)
