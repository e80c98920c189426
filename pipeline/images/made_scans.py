"""Makes scans that are not chest CT out of the texture of real slices: heads, X-rays, ultrasound and jigsaws.

Shapes are drawn and differ widely. Their texture is that of a magnified piece of a slice, so that a network can't tell
them from real scans by smoothness.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, gaussian_filter1d, uniform_filter

from chestct.standard_picture import TISSUE

Levels = NDArray[np.float64]
Pixels = NDArray[np.uint8]
Make = Callable[[Pixels, np.random.Generator], Image.Image]

SIDE: Final = 256
"""Height and width of the slices and of the canvas, in pixels. Coordinates run from -1 to 1 across it."""

_Y, _X = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
_DEPTH: Final = (_Y + 1) / 2


def make_head(slice_: Pixels, rng: np.random.Generator) -> Image.Image:
    """A head by CT or MR: brain with ventricles within a light or dark skull and skin, or the brain alone."""
    angle, radius = np.arctan2(_Y, _X), np.hypot(_X / rng.uniform(0.55, 0.8), _Y / rng.uniform(0.75, 0.92))
    for wave in (2, 3, 4):
        radius = radius * (1 + rng.normal(0, 0.02) * np.cos(wave * angle + rng.uniform(0, 6)))
    level, is_mr = rng.uniform(25, 190), rng.random() < 0.35
    brain = _brain(slice_, level, radius, rng)
    skin = rng.uniform(0, 0.08)
    inside = 1 - skin - rng.uniform(0.05, 0.16)
    head = np.where(radius < inside, brain, rng.uniform(2, 25) if is_mr else 255)
    head = np.where(radius > 1 - skin, rng.uniform(60, 255) if is_mr else rng.uniform(0.4, 1.1) * level, head)
    if is_mr and rng.random() < 0.4:
        head = np.where(radius < inside, brain, 0)
    if rng.random() < 0.25:  # the base of the skull, with air and bone
        for _ in range(int(rng.integers(4, 14))):
            (x, y), (width, height) = rng.uniform((-0.5, -0.8), (0.5, 0.6)), rng.uniform(0.03, np.array([0.15, 0.2]))
            hole = np.hypot((_X - x) / width, (_Y - y) / height) < 1
            head = np.where(hole & (radius < 1 - skin), rng.choice([3, 250, level * 0.7]), head)
    head = gaussian_filter(np.where(radius < 1, head, rng.uniform(0, 12)), rng.uniform(0.3, 1.2))
    return _to_image(head + rng.standard_normal(head.shape) * rng.uniform(1, 7))


def _brain(slice_: Pixels, level: float, radius: Levels, rng: np.random.Generator) -> Levels:
    spread = level * rng.uniform(0.05, 0.4)
    brain = level + spread * (0.5 * _texture(slice_, rng, 32, 70) + 0.8 * _noise(rng, rng.uniform(0.5, 2)))
    if rng.random() < 0.5:
        folds = np.abs(_noise(rng, rng.uniform(3, 6)))
        brain -= spread * rng.uniform(0.3, 1.2) * (folds < 0.25) * (radius > 0.45)
    if rng.random() < 0.75:
        size = rng.uniform(0.1, 0.35)
        for side in (-1, 1):
            for y in (-size, size):
                shape = np.hypot((_X - side * (0.55 * size + 0.3 * np.abs(_Y))) / (0.25 * size), (_Y - y) / size) < 1
                brain -= level * rng.uniform(0.2, 0.8) * _soft(shape, 1.5)
    brain -= level * rng.uniform(0, 0.6) * _soft(np.abs(_X + 0.01 * np.sin(8 * _Y)) < 0.012, 1)
    if rng.random() < 0.3:
        (x, y), (width, height) = rng.uniform(-0.45, 0.45, 2), rng.uniform(0.1, 0.3, 2)
        tumour = np.hypot((_X - x) / width, (_Y - y) / height) + 0.2 * _noise(rng, 6) < 1
        brain = np.where(tumour, level * rng.uniform(1.3, 2.5), brain)
    return brain


def make_x_ray(slice_: Pixels, rng: np.random.Generator) -> Image.Image:
    """A chest X-ray from the front: dark lungs with ribs across them, spine, heart, collar bones and arms."""
    lungs = np.zeros((SIDE, SIDE))
    for side in (-1, 1):
        x = side * rng.uniform(0.38, 0.46)
        shape = (
            np.abs((_X - x) / rng.uniform(0.3, 0.38)) ** 2.3 + np.abs((_Y + 0.08) / rng.uniform(0.62, 0.8)) ** 2.5 < 1
        )
        above = rng.uniform(0.3, 0.55) + 0.5 * (_X - x) ** 2 > _Y
        lungs = np.maximum(lungs, _soft(shape & above, rng.uniform(2, 5)))
    light = rng.uniform(130, 200) - lungs * rng.uniform(60, 120) + _ribs(rng)
    light += rng.uniform(30, 70) * _soft(np.abs(_X) < rng.uniform(0.07, 0.12), 4)
    heart = np.hypot((_X - 0.15) / rng.uniform(0.25, 0.38), (_Y - 0.3) / rng.uniform(0.25, 0.35)) < 1
    light += rng.uniform(40, 80) * _soft(heart & (_Y < 0.65), 4)
    out = np.abs(_X)
    collar = (np.abs(_Y + 0.78 - 0.15 * (out - 0.4)) < 0.03) & (out > 0.08) & (out < 0.8)
    light += rng.uniform(10, 30) * _soft(collar, 1.2)
    body = (out < 0.93 - 0.25 * np.clip(-_Y - 0.55, 0, 1)) | ((_Y < -0.5) & (out < 0.3))
    light = light * (0.25 + 0.75 * _soft(body, 4)) + _texture(slice_, rng, 60, 160) * rng.uniform(2, 7)
    light = gaussian_filter(light, rng.uniform(0.4, 1)) + rng.standard_normal(light.shape) * rng.uniform(1, 5)
    light = light.mean() + (light - light.mean()) * rng.uniform(0.6, 1.6)
    return _to_image(light, height=rng.uniform(0.85, 1.25))


def _ribs(rng: np.random.Generator) -> Levels:
    """Their light: in front and at the back of either side, lighter along the edges."""
    light, number = np.zeros((SIDE, SIDE)), int(rng.integers(8, 12))
    for side in (-1, 1):
        out = np.clip(side * _X, 0, None)
        seen = (out > 0.08) & (out < 0.85)
        for start in np.linspace(-0.95, 0.75, number):
            back = start - 0.18 * np.sin(2.6 * out) + 0.42 * out
            for middle, strength in ((back, rng.uniform(12, 30)), (start + 0.55 - 0.5 * out, rng.uniform(5, 18))):
                off, width = np.abs(_Y - middle), rng.uniform(0.02, 0.035)
                light += strength * gaussian_filter(
                    seen * (0.55 * (off < width) + 0.6 * (np.abs(off / width - 0.85) < 0.15)), 0.8
                )
    return light


def make_ultrasound(slice_: Pixels, rng: np.random.Generator) -> Image.Image:
    """An ultrasound picture: speckled layers with dark lumps and their shadows, in a fan, a rectangle or in full."""
    layers = gaussian_filter1d(rng.standard_normal(SIDE), rng.uniform(3, 16))
    layers = (layers - layers.min()) / np.ptp(layers)
    warped = (_DEPTH + rng.uniform(0.01, 0.05) * _noise(rng, (8, 24))).clip(0, 0.999)
    light = (
        0.25 + 0.75 * layers[(warped * SIDE).astype(int)] + 0.25 * gaussian_filter(_texture(slice_, rng, 60, 180), 2)
    )
    if rng.random() < 0.5:
        fibres = np.clip(_noise(rng, (rng.uniform(0.7, 2), rng.uniform(6, 16))), 0, 3)
        light += rng.uniform(0.1, 0.6) * fibres * np.exp(-(((_DEPTH - rng.uniform(0.1, 0.7)) / 0.3) ** 2))
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform((-0.6, -0.5), (0.6, 0.5))
        width, height = rng.uniform((0.08, 0.06), (0.4, 0.3))
        lump = np.hypot((_X - x) / width, (_Y - y) / height) * (1 + 0.3 * _noise(rng, 10)) < 1
        light *= 1 - rng.uniform(0.5, 0.95) * _soft(lump, rng.uniform(0.8, 4))
        light *= 1 + rng.uniform(-0.7, 0.7) * _soft((np.abs(_X - x) < 0.8 * width) & (_Y - y > 0), 5)
    wave = rng.standard_normal((2, SIDE, SIDE))
    speckle = np.hypot(*(gaussian_filter(part, (rng.uniform(0.5, 1.2), rng.uniform(0.8, 2.2))) for part in wave))
    light = light.clip(0) * (speckle / speckle.mean()) ** rng.uniform(0.5, 1.2) * np.exp(-_DEPTH * rng.uniform(0, 1.5))
    light = np.log1p(light * rng.uniform(1, 8))
    light *= rng.uniform(120, 230) / max(np.quantile(light, 0.98), 1e-6) * _probe_field(rng)
    image = _to_image(light, height=1 / rng.uniform(0.9, 1.6))
    if rng.random() < 0.5:
        pen = ImageDraw.Draw(image)
        for row in range(int(rng.integers(1, 6))):
            pen.text((4, 4 + 12 * row), "".join(chr(code) for code in rng.integers(48, 91, 9)), 200)
    return image


def _probe_field(rng: np.random.Generator) -> NDArray[np.bool_]:
    """What an ultrasound probe sees."""
    shape = rng.random()
    if shape < 0.35:
        above = rng.uniform(1.1, 2)
        radius, angle = np.hypot(_X, _Y + above), np.abs(np.arctan2(_X, _Y + above))
        near, far = above - 1 + rng.uniform(0, 0.15), above + rng.uniform(0.7, 0.95)
        return np.asarray((radius > near) & (radius < far) & (angle < rng.uniform(0.4, 0.8)))
    if shape < 0.6:
        return np.asarray((np.abs(_X) < rng.uniform(0.5, 0.95)) & (np.abs(_Y) < rng.uniform(0.5, 0.98)))
    return np.ones((SIDE, SIDE), bool)


def make_jigsaw(slice_: Pixels, rng: np.random.Generator) -> Image.Image:
    """The slice in 16 or 64 squares, shuffled: its texture without its shape."""
    number = int(rng.choice([4, 8]))
    size = SIDE // number
    squares = slice_.reshape(number, size, number, size).swapaxes(1, 2).reshape(-1, size, size)
    mixed = squares[rng.permutation(len(squares))].reshape(number, number, size, size).swapaxes(1, 2)
    return Image.fromarray(mixed.reshape(SIDE, SIDE))


SCANS: Final[dict[str, Make]] = {
    "made_heads": make_head,
    "made_x_rays": make_x_ray,
    "made_ultrasound": make_ultrasound,
    "jigsaws_of_ct": make_jigsaw,
}
"""By kind. Each takes a standard picture uint8 [SIDE, SIDE]."""


def _texture(slice_: Pixels, rng: np.random.Generator, least: int, most: int) -> Levels:
    """A magnified, turned square of soft tissue, `least` to `most` pixels wide, with mean 0 and deviation 1."""
    soft = uniform_filter((np.abs(slice_.astype(float) - TISSUE) < 60).astype(np.float32), 40)
    row, column = divmod(int(rng.choice(np.argsort(soft.ravel())[-400:])), SIDE)
    size = int(rng.integers(least, most))
    left, top = column - size // 2, row - size // 2
    square = Image.fromarray(slice_).crop((left, top, left + size, top + size))
    square = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    levels = np.asarray(square.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC), float)
    middle = levels[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4]
    return np.asarray((levels - middle.mean()) / max(middle.std(), 3))


def _noise(rng: np.random.Generator, smoothness: float | tuple[float, float]) -> Levels:
    """Smooth noise with deviation 1."""
    noise = gaussian_filter(rng.standard_normal((SIDE, SIDE)), smoothness)
    return np.asarray(noise / noise.std())


def _soft(shape: NDArray[np.bool_], smoothness: float) -> Levels:
    return np.asarray(gaussian_filter(shape.astype(float), smoothness))


def _to_image(levels: Levels, height: float = 1) -> Image.Image:
    """A grey picture, of which `height` is the ratio to its width."""
    image = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
    return image.resize((SIDE, max(1, round(SIDE * height))), Image.Resampling.BILINEAR)
