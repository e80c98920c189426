"""Brings a CT slice to one standard picture, whatever window, crop, aspect, table and border it was shown with.

The body is found on a coarse grid. The picture is cropped to it and put on a square with its aspect ratio kept. Dark
(air or lung) and soft tissue get fixed grey levels, and everything outside of the body gets the level of air.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chestct import cells
from chestct.cells import GRID

AIR: Final = 32
"""Grey level of the lung, and of everything outside of the body, in the standard picture."""
TISSUE: Final = 176
"""Grey level of the soft tissue in the standard picture."""
MARGIN: Final = 1 / 32
"""Air on each side of the body, as a share of the standard picture's side."""

_BODY_FROM: Final = 0.15
"""Position between dark and soft tissue from which on a grid cell is solid. Fat lies above it in any window."""
_LUNG_TO: Final = 0.4
"""Position between dark and soft tissue up to which a cell in the body is lung."""
_LEAST_LUNG: Final = 0.03
"""Share of the body's cells that are lung, at least. Otherwise its level is that of the air outside."""
_LEAST_BODY: Final = 0.08
"""Share of the picture that a body fills at least."""
_LEAST_OF_SEVERAL: Final = 0.015
"""Share that the largest of several bodies fills at least. Letters and their lines are smaller or thinner."""
_LEAST_RANGE: Final = 12
"""Grey levels between dark and soft tissue, at least."""
_OTHER_BODY: Final = 0.2
"""An object of this share of the largest one's cells is another body."""
_FLAT: Final = 12
"""Grey levels between the darkest and the lightest cell of a margin."""
_LEVELS: Final = np.arange(256)
_WHOLE: Final = np.ones((GRID, GRID), bool)
_INSIDE: Final = 97
"""Level from which on a point of the enlarged mask is inside of the body; the mask has 0 outside and 255 inside."""


class Body(NamedTuple):
    """The body in a picture, found on the coarse grid."""

    mask: NDArray[np.bool_]
    """[GRID, GRID], the body with its lungs."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the picture's width and height."""
    bodies: int
    """Number of bodies of about one size; 0 if none is found. If there is none, or all are small, the mask and the box
    are the whole picture."""
    air: float
    """Grey level of the lung, or of the air if there is no lung."""
    tissue: float
    """Grey level of the soft tissue."""


def find_body(grey: Image.Image) -> Body:
    """Find the body in a grey picture of mode L.

    The second look, inside of what the first one found, leaves out air that is lighter than a black surround.
    """
    levels = np.asarray(grey.resize((GRID, GRID), Image.Resampling.BOX))
    air, tissue = _anchors(levels.ravel(), 0.5)
    if tissue - air < _LEAST_RANGE:
        return Body(_WHOLE, (0, 0, 1, 1), 0, air, max(tissue, air + 1))
    solid = levels > air + _BODY_FROM * (tissue - air)
    light = cells.from_array(solid)
    if cells.fill_an_edge(light):
        light = cells.from_array(_without_light_border(solid, levels))
    first, bodies = _largest(light)
    inside = cells.to_array(first)
    inner_air, inner_tissue = _anchors(levels[inside], 0.25)
    found, _ = _largest(cells.from_array(inside & (levels > inner_air + _BODY_FROM * (inner_tissue - inner_air))))
    if found.bit_count() < _LEAST_BODY * GRID * GRID:
        seen = bodies if bodies > 1 and found.bit_count() >= _LEAST_OF_SEVERAL * GRID * GRID else 0
        return Body(_WHOLE, (0, 0, 1, 1), seen, air, max(tissue, air + 1))
    mask = cells.to_array(found)
    air, tissue = _refine(levels[mask], air, tissue)
    left, top, right, bottom = (edge / GRID for edge in cells.box(found))
    return Body(mask, (left, top, right, bottom), bodies, air, max(tissue, air + 1))


def standardise(grey: Image.Image, body: Body, width: int, height: int) -> NDArray[np.uint8]:
    """The standard picture of a grey picture of mode L, uint8 [height, width]."""
    left, top, right, bottom = (share * edge for share, edge in zip(body.box, grey.size * 2, strict=True))
    scale = (1 - 2 * MARGIN) * min(width / (right - left), height / (bottom - top))
    columns, rows = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    cropped = grey.resize((columns, rows), Image.Resampling.BILINEAR, (left, top, right, bottom))
    levels = np.frombuffer(cropped.tobytes().translate(_table(body)), np.uint8).reshape(rows, columns)
    picture = np.full((height, width), AIR, np.uint8)
    x, y = (width - columns) // 2, (height - rows) // 2
    np.copyto(picture[y : y + rows, x : x + columns], levels, where=_inside(body, rows, columns))
    return picture


def _table(body: Body) -> bytes:
    """The new grey level of each old one."""
    share = (_LEVELS - body.air) / max(body.tissue - body.air, 1)
    return (AIR + share * (TISSUE - AIR)).clip(0, 255).round().astype(np.uint8).tobytes()


def _inside(body: Body, rows: int, columns: int) -> NDArray[np.bool_]:
    """The points [rows, columns] of the body's box that are inside of the body."""
    mask = Image.fromarray(body.mask.view(np.uint8) * np.uint8(255))
    left, top, right, bottom = (share * GRID for share in body.box)
    return np.asarray(mask.resize((columns, rows), Image.Resampling.BILINEAR, (left, top, right, bottom))) >= _INSIDE


def _largest(solid: int) -> tuple[int, int]:
    """The largest object, filled and without thin parts, and the number of objects of about its size."""
    objects = cells.parts(solid, _OTHER_BODY)
    if not objects:
        return 0, 0
    bodies = sum(each.bit_count() >= _OTHER_BODY * objects[0].bit_count() for each in objects)
    return cells.cut_thin(cells.fill(objects[0])), bodies


def _anchors(levels: NDArray[np.uint8], share: float) -> tuple[int, int]:
    """The levels of air or lung and of soft tissue: a quantile of the dark cells and the median of the light ones.

    The level between dark and light leaves the least variance within the two (Otsu, 1979).
    """
    counts = np.bincount(levels, minlength=256)
    sums, moments = counts.cumsum(), (counts * _LEVELS).cumsum()
    below = sums.astype(np.float64)
    between = (moments[-1] * below - moments * below[-1]) ** 2 / np.maximum(below * (below[-1] - below), 1)
    light = int(between.argmax()) + 1
    return _quantile(sums, 0, light, share), _quantile(sums, light, 256, 0.5)


def _refine(levels: NDArray[np.uint8], air: int, tissue: int) -> tuple[int, int]:
    """The levels of the lung, if there is one, and of the soft tissue without fat as far as the window shows it."""
    sums = np.bincount(levels, minlength=256).cumsum()
    soft = int(air + _LUNG_TO * (tissue - air)) + 1
    if sums[soft - 1] >= _LEAST_LUNG * sums[-1]:
        air = _quantile(sums, 0, soft, 0.25)  # fat that a narrow window shows nearly black is not lung
        soft = int(air + _LUNG_TO * (tissue - air)) + 1
    return air, _quantile(sums, soft, 256, 0.5) if sums[-1] > sums[soft - 1] else tissue


def _quantile(sums: NDArray[np.int64], first: int, end: int, share: float) -> int:
    """The level from `first` to before `end` up to which `share` of their counts lie. `sums` are up to each level."""
    before = int(sums[first - 1]) if first else 0
    counts = int(sums[end - 1]) - before
    return first + int(sums[first:end].searchsorted(before + share * counts))


def _without_light_border(solid: NDArray[np.bool_], levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The solid cells without outer rows and columns of one light level: a page's margin or a viewer's frame."""
    inner = solid.copy()
    for lines, grey, target in ((solid, levels, inner), (solid.T, levels.T, inner.T)):
        flat = lines.all(axis=1) & (np.ptp(grey, axis=1) < _FLAT)
        first, last = (GRID if flat.all() else int(each.argmin()) for each in (flat, flat[::-1]))
        target[: first + 1 if first else 0] = False  # the last line is partly margin
        target[GRID - last - 1 if last else GRID :] = False
    return inner
