"""Brings a CT slice to one standard picture, whatever window, crop, aspect, table and border it was shown with.

The body is found on a coarse grid. The picture is cropped to it and put on a square with its aspect ratio kept. Dark
(air or lung) and soft tissue get fixed grey levels, and everything outside of the body gets the level of air.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GRID: Final = 64
"""Rows and columns of the coarse grid on which the body is found."""
AIR: Final = 32
"""Grey level of the lung, and of everything outside of the body, in the standard picture."""
TISSUE: Final = 176
"""Grey level of the soft tissue in the standard picture."""
MARGIN: Final = 1 / 32
"""Air on each side of the body, as a share of the standard picture's side."""

_BODY_FROM: Final = 0.15
"""Position between dark and soft tissue from which on a grid cell is solid. Fat lies above it in any window."""
_THIN: Final = 2
"""Parts of an object that are up to twice as many cells wide are cut off: a table, a bar, an arrow."""
_LUNG_TO: Final = 0.4
"""Position between dark and soft tissue up to which a cell in the body is lung."""
_LEAST_LUNG: Final = 0.03
"""Share of the body's cells that are lung, at least. Otherwise its level is that of the air outside."""
_STRIDE: Final = GRID + 3
"""Cells in a row of bits: the grid, a copy of its edge on each side, and an empty one."""
_LEAST_BODY: Final = 0.08
"""Share of the picture that a body fills at least."""
_LEAST_RANGE: Final = 12
"""Grey levels between dark and soft tissue, at least."""
_OTHER_BODY: Final = 0.4
"""An object of this share of the largest one's cells is another body."""
_MOST_OBJECTS: Final = 400
"""Objects that are looked at, at most. Noise has more."""
_SPECK: Final = 40
"""Cells of the largest object that is too small for a body."""
_FLAT: Final = 12
"""Grey levels between the darkest and the lightest cell of a margin."""


class Body(NamedTuple):
    """The body in a picture, found on the coarse grid."""

    mask: NDArray[np.bool_]
    """[GRID, GRID], the body with its lungs."""
    box: tuple[float, float, float, float]
    """Left, top, right, bottom as shares of the picture's width and height."""
    bodies: int
    """Number of bodies; 0 if none is found, and the mask and the box are then the whole picture."""
    air: float
    """Grey level of the lung, or of the air if there is no lung."""
    tissue: float
    """Grey level of the soft tissue."""


def find_body(grey: Image.Image) -> Body:
    """Find the body in a grey picture of mode L.

    The second look, inside of what the first one found, leaves out air that is lighter than a black surround.
    """
    levels = np.asarray(grey.resize((GRID, GRID), Image.Resampling.BOX))
    whole = np.ones((GRID, GRID), bool)
    air, tissue = _anchors(levels, whole, 0.5)
    if tissue - air < _LEAST_RANGE:
        return Body(whole, (0, 0, 1, 1), 0, air, max(tissue, air + 1))
    solid = levels > air + _BODY_FROM * (tissue - air)
    _clear_light_border(solid, levels)
    first, bodies = _largest(solid)
    inner_air, inner_tissue = _anchors(levels, first, 0.25)
    mask, _ = _largest(first & (levels > inner_air + _BODY_FROM * (inner_tissue - inner_air)))
    if _count(mask) < _LEAST_BODY * GRID * GRID:
        return Body(whole, (0, 0, 1, 1), 0, air, max(tissue, air + 1))
    air, tissue = _refine(np.bincount(levels[mask], minlength=256), air, tissue)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (columns[0] / GRID, rows[0] / GRID, (columns[-1] + 1) / GRID, (rows[-1] + 1) / GRID)
    return Body(mask, box, bodies, air, max(tissue, air + 1))


def _anchors(levels: NDArray[np.uint8], inside: NDArray[np.bool_], share: float) -> tuple[int, int]:
    """The levels of air or lung and of soft tissue: a quantile of the dark cells and the median of the light ones."""
    counts = np.bincount(levels[inside], minlength=256)
    light = _otsu(counts)
    return _quantile(counts[: light + 1], share), light + 1 + _quantile(counts[light + 1 :], 0.5)


def _refine(counts: NDArray[np.int64], air: int, tissue: int) -> tuple[int, int]:
    """The levels of the lung, if there is one, and of the soft tissue without fat as far as the window shows it."""
    lung = counts[: int(air + _LUNG_TO * (tissue - air)) + 1]
    if lung.sum() >= _LEAST_LUNG * counts.sum():
        air = _quantile(lung, 0.25)  # fat that a narrow window shows nearly black is not lung
    soft_from = int(air + _LUNG_TO * (tissue - air)) + 1
    if counts[soft_from:].any():
        tissue = soft_from + _quantile(counts[soft_from:], 0.5)
    return air, tissue


def _largest(solid: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """The largest object, filled and without thin parts, and the number of objects of about its size."""
    objects = sorted(_find_objects(solid), key=_count, reverse=True)
    if not objects:
        return np.zeros_like(solid), 0
    bodies = sum(_count(each) >= _OTHER_BODY * _count(objects[0]) for each in objects)
    return _cut_thin_parts(_fill(objects[0])), bodies


def standardise(grey: Image.Image, body: Body, width: int, height: int) -> NDArray[np.uint8]:
    """The standard picture of a grey picture of mode L, uint8 [height, width]."""
    left, top, right, bottom = (share * edge for share, edge in zip(body.box, grey.size * 2, strict=True))
    scale = (1 - 2 * MARGIN) * min(width / (right - left), height / (bottom - top))
    columns, rows = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    cropped = np.asarray(grey.resize((columns, rows), Image.Resampling.BILINEAR, (left, top, right, bottom)))
    cells = Image.fromarray(body.mask.view(np.uint8) * np.uint8(255))
    left, top, right, bottom = (share * GRID for share in body.box)
    inside = np.asarray(cells.resize((columns, rows), Image.Resampling.BILINEAR, (left, top, right, bottom))) > 96
    picture = np.full((height, width), AIR, np.uint8)
    x, y = (width - columns) // 2, (height - rows) // 2
    np.copyto(picture[y : y + rows, x : x + columns], _table(body)[cropped], where=inside)
    return picture


def _table(body: Body) -> NDArray[np.uint8]:
    """The new grey level of each old one."""
    share = (np.arange(256) - body.air) / max(body.tissue - body.air, 1)
    return np.asarray((AIR + share * (TISSUE - AIR)).clip(0, 255).round(), np.uint8)


def _quantile(counts: NDArray[np.int64], share: float) -> int:
    """The level up to which `share` of all counts lie."""
    sums = counts.cumsum()
    return int(np.searchsorted(sums, share * sums[-1])) if len(sums) else 0


def _otsu(counts: NDArray[np.int64]) -> int:
    """The grey level that divides the levels into two groups with the least variance within them (Otsu, 1979)."""
    below = counts.cumsum().astype(np.float64)
    sums = (counts * np.arange(256)).cumsum()
    between = (sums[-1] * below - sums * below[-1]) ** 2 / np.maximum(below * (below[-1] - below), 1)
    return int(between.argmax())


def _count(cells: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(cells))


def _clear_light_border(solid: NDArray[np.bool_], levels: NDArray[np.uint8]) -> None:
    """Clear the outer rows and columns of one light level: a page's margin or a viewer's frame."""
    for lines, grey in ((solid.copy(), levels), (solid.T.copy(), levels.T)):
        if lines[0].all() or lines[-1].all():
            flat = lines.all(axis=1) & (np.ptp(grey, axis=1) < _FLAT)
            first, last = (GRID if flat.all() else int(each.argmin()) for each in (flat, flat[::-1]))
            target = solid if lines.base is None and grey is levels else solid.T
            target[: first + 1 if first else 0] = False  # the last line is partly margin
            target[GRID - last - 1 if last else GRID :] = False


def _find_objects(solid: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The connected objects of more than a few cells."""
    left, objects = _to_bits(solid), []
    for _ in range(_MOST_OBJECTS):
        if not left:
            break
        part = _flood(left & -left, left)
        left ^= part
        if part.bit_count() > _SPECK:
            objects.append(_to_cells(part))
    return objects


def _flood(seed: int, cells: int) -> int:
    """The cells that are connected with the seed."""
    part = 0
    while seed != part:
        part = seed
        seed = _dilate(part) & cells
    return part


def _dilate(cells: int) -> int:
    return cells | cells << 1 | cells >> 1 | cells << _STRIDE | cells >> _STRIDE


def _cut_thin_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest part that is left without the thin ones."""
    cells = _to_bits(mask)
    core = cells
    for _ in range(_THIN):
        core &= core << 1 & core >> 1 & core << _STRIDE & core >> _STRIDE
    if not core:
        return np.zeros_like(mask)
    parts = []
    while core:
        parts.append(_flood(core & -core, core))
        core ^= parts[-1]
    largest = max(parts, key=int.bit_count)
    for _ in range(_THIN):
        largest = _dilate(largest) & cells
    return _to_cells(largest)


def _to_bits(cells: NDArray[np.bool_]) -> int:
    """The cells as the bits of one number, so that all neighbours are found by shifting.

    The edge is repeated outside, so that erosion does not thin out a body that the picture cuts.
    """
    padded = np.zeros((GRID + 2, _STRIDE), bool)
    padded[:, :-1] = np.pad(cells, 1, mode="edge")
    return int.from_bytes(np.packbits(padded.ravel(), bitorder="little").tobytes(), "little")


def _to_cells(bits: int) -> NDArray[np.bool_]:
    count = (GRID + 2) * _STRIDE
    data = np.frombuffer(bits.to_bytes((count + 7) // 8, "little"), np.uint8)
    return np.unpackbits(data, count=count, bitorder="little").reshape(-1, _STRIDE)[1:-1, 1:-2].view(bool)


def _fill(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what lies between cells of a row and also between cells of a column: the lungs."""
    maximum = np.logical_or.accumulate
    rows = maximum(cells, axis=1) & maximum(cells[:, ::-1], axis=1)[:, ::-1]
    columns = maximum(cells, axis=0) & maximum(cells[::-1], axis=0)[::-1]
    return rows & columns
