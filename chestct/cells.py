"""Shapes on a coarse grid as the bits of one number, so that a shift finds the neighbours of all cells at once.

Each row has one empty bit at its end, so that a shift by one does not lead into the next row.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

GRID: Final = 64
"""Rows and columns of the grid."""

_STRIDE: Final = GRID + 1
"""Bits of a row."""
_BITS: Final = GRID * _STRIDE
_ROW: Final = (1 << GRID) - 1
_COLUMN: Final = sum(1 << row * _STRIDE for row in range(GRID))
_ALL: Final = _ROW * _COLUMN
_STEPS: Final = tuple(1 << power for power in range(GRID.bit_length() - 1))
"""1, 2, 4 and so on. These steps together cross the grid."""
_FROM: Final = tuple(((_ROW << step) & _ROW) * _COLUMN for step in _STEPS)
"""For each step, the columns that are at least so far from the first one."""
_UP_TO: Final = tuple((_ROW >> step) * _COLUMN for step in _STEPS)
"""For each step, the columns that are at least so far from the last one."""
_EDGES: Final = (_COLUMN, _COLUMN << GRID - 1, _ROW, _ROW << _STRIDE * (GRID - 1))
"""The first and the last column, the first and the last row."""
_SMALL: Final = 3
"""Single steps of a flood before it doubles them, which is slower for a speck."""
_MOST_PARTS: Final = 400
"""Parts that are looked at, at most. Noise has more."""


def from_array(shape: NDArray[np.bool_]) -> int:
    """The cells of a shape [GRID, GRID]."""
    rows = np.zeros((GRID, _STRIDE), bool)
    rows[:, :GRID] = shape
    return int.from_bytes(np.packbits(rows, bitorder="little").tobytes(), "little")


def to_array(cells: int) -> NDArray[np.bool_]:
    """The shape [GRID, GRID] of cells."""
    data = np.frombuffer(cells.to_bytes(_BITS // 8, "little"), np.uint8)
    return np.unpackbits(data, bitorder="little").reshape(GRID, _STRIDE)[:, :GRID].view(bool)


def fill_an_edge(cells: int) -> bool:
    """Whether a shape covers the whole first or last row or column."""
    return any(cells & edge == edge for edge in _EDGES)


def box(cells: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of a shape that is not empty, in cells."""
    top, bottom = ((cells & -cells).bit_length() - 1) // _STRIDE, cells.bit_length() // _STRIDE + 1
    for step in _STEPS:
        cells |= cells >> step * _STRIDE
    row = cells & _ROW
    return (row & -row).bit_length() - 1, top, row.bit_length(), bottom


def parts(cells: int, least: float) -> list[int]:
    """The connected parts of a shape, the largest first. Parts of less than the share `least` of it may be missing."""
    found, most = list[int](), 0
    while cells and cells.bit_count() >= least * most and len(found) < _MOST_PARTS:
        beyond_middle = cells >> _BITS // 2 << _BITS // 2 or cells  # what covers the middle is likely the largest
        part = _flood(beyond_middle & -beyond_middle, cells)
        cells ^= part
        most = max(most, part.bit_count())
        found.append(part)
    return sorted(found, key=lambda part: (-part.bit_count(), part & -part))


def fill(cells: int) -> int:
    """A shape with all that lies between its cells both along a row and along a column, such as lungs."""
    right = left = down = up = cells
    for step, first, last in zip(_STEPS, _FROM, _UP_TO, strict=True):
        right |= right << step & first
        left |= left >> step & last
        down |= down << step * _STRIDE & _ALL
        up |= up >> step * _STRIDE
    return right & left & down & up


def cut_thin(cells: int) -> int:
    """The largest part of a shape that is left without what is up to four cells wide. At the grid's edge, two."""
    first_column, last_column, first_row, last_row = (cells & edge for edge in _EDGES)
    core = cells & (cells << 1 | first_column) & (cells >> 1 | last_column)
    core &= (cells << _STRIDE | first_row) & (cells >> _STRIDE | last_row)
    core &= core << 1 & core >> 1 & core << _STRIDE & core >> _STRIDE
    if not core:
        return 0
    return _grow(_grow(parts(core, 1)[0]) & cells) & cells


def _grow(cells: int) -> int:
    """A shape and its neighbours, which may lie outside of the grid."""
    return cells | cells << 1 | cells >> 1 | cells << _STRIDE | cells >> _STRIDE


def _flood(seed: int, cells: int) -> int:
    """The cells that are connected with the seed."""
    for _ in range(_SMALL):
        part = seed
        seed = _grow(part) & cells
        if seed == part:
            return part
    # After n steps, `left` holds the cells from which a run of 2^n cells leads to the right, and so on.
    runs, left, down, up = list[tuple[int, int, int, int, int]](), cells, cells, cells
    for step in _STEPS:
        far = step * _STRIDE
        runs.append((step, left, far, down, up))
        left &= left >> step
        down &= down << far
        up &= up >> far
    while True:
        for _, _, far, down, up in runs:
            seed |= seed << far & down | seed >> far & up
        seed |= cells ^ cells & cells + seed  # a carry runs to the right end of each run that holds a seed
        for step, left, _, _, _ in runs:
            seed |= seed >> step & left
        if (seed << _STRIDE | seed >> _STRIDE) & cells | seed == seed:
            return seed
