"""A square canvas of Hounsfield units, and shapes that are painted on it."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

CANVAS: Final = 256
"""Side of the canvas, in pixels. Coordinates run from -1 to 1 across it."""

Y, X = (axis.astype(np.float32) for axis in np.mgrid[-1 : 1 : CANVAS * 1j, -1 : 1 : CANVAS * 1j])
"""Coordinates of the pixels, [CANVAS, CANVAS]."""

AIR, LUNG, FAT, MUSCLE, BONE = -1000.0, -850.0, -100.0, 50.0, 500.0
"""Densities in Hounsfield units."""


def paint(hounsfield: Plane, mask: Plane, value: float | Plane) -> None:
    """Blend `value` into `hounsfield`; `mask` is its opacity, 0 to 1."""
    hounsfield += mask * (value - hounsfield)


def ellipse(
    x: float,
    y: float,
    half_width: float,
    half_height: float,
    *,
    power: float = 2.0,
    turn: float = 0.0,
    wobble: tuple[tuple[float, float], ...] = (),
) -> Plane:
    """The mask of an ellipse, float32 [CANVAS, CANVAS]: 1 inside, with an edge two pixels wide.

    A `power` above 2 makes it boxier, and `turn` rotates it, in radians. `wobble` disturbs the outline by waves with
    these amplitudes and phases. The first wave has two periods around the ellipse, and each next one has one more.
    """
    reach = 1.5 * max(half_width, half_height)
    box = tuple(
        slice(max(0, int((centre - reach + 1) / 2 * CANVAS)), max(0, int((centre + reach + 1) / 2 * CANVAS) + 2))
        for centre in (y, x)
    )
    dx, dy = X[box] - np.float32(x), Y[box] - np.float32(y)
    if turn:
        dx, dy = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    radius = (np.abs(dx / half_width) ** power + np.abs(dy / half_height) ** power) ** (1 / power)
    if wobble:
        angle = np.arctan2(dy, dx)
        radius = radius * (1 + sum(a * np.cos(n * angle + phase) for n, (a, phase) in enumerate(wobble, start=2)))
    edge = CANVAS / 4 * min(half_width, half_height)
    mask = np.zeros((CANVAS, CANVAS), np.float32)
    mask[box] = np.clip((1 - radius) * edge + 0.5, 0, 1)
    return mask


def harmonics(rng: np.random.Generator, count: int, amplitude: float) -> tuple[tuple[float, float], ...]:
    """Random waves for the `wobble` of an ellipse; the first of them is the strongest."""
    return tuple((rng.normal(0, amplitude) / (1 + n / 2), rng.uniform(0, 2 * np.pi)) for n in range(count))


def to_pixels(x: float, y: float) -> tuple[float, float]:
    """Column and row of a point."""
    return (x + 1) / 2 * CANVAS, (y + 1) / 2 * CANVAS
