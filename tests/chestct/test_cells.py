"""Compares shapes as bits with the same shapes as arrays, found by SciPy."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from chestct import cells
from chestct.cells import GRID

SQUARE = np.zeros((GRID, GRID), bool)
SQUARE[20:40, 10:50] = True
CROSS = ndimage.generate_binary_structure(2, 1)


def shapes() -> list[NDArray[np.bool_]]:
    """Noise of several densities and coarsenesses, and shapes that the edge cuts."""
    rng = np.random.default_rng(5)
    noise = [
        np.kron(rng.random((GRID // size, GRID // size)) < density, np.ones((size, size), bool))
        for size in (1, 4, 8)
        for density in (0.5, 0.6, 0.8)
    ]
    spiral = np.zeros((GRID, GRID), bool)
    for turn in range(0, GRID // 2, 4):
        spiral[turn, turn : GRID - turn] = spiral[turn : GRID - turn, GRID - 1 - turn] = True
        spiral[GRID - 1 - turn, turn + 4 : GRID - turn] = spiral[turn + 4 : GRID - turn, turn + 4] = True
        spiral[turn + 4, turn : turn + 5] = True
    return [*noise, SQUARE, ~SQUARE, spiral, np.ones((GRID, GRID), bool)]


@pytest.mark.parametrize("shape", shapes())
def test_a_shape_comes_back_as_it_was(shape: NDArray[np.bool_]) -> None:
    assert np.array_equal(cells.to_array(cells.from_array(shape)), shape)
    assert cells.from_array(shape).bit_count() == shape.sum()


@pytest.mark.parametrize("shape", shapes())
def test_the_largest_parts_are_those_of_scipy(shape: NDArray[np.bool_]) -> None:
    labels, count = ndimage.label(shape, CROSS)
    sizes = sorted(np.bincount(labels.ravel())[1:], reverse=True)
    for least in (0.4, 1.0):
        found = cells.parts(cells.from_array(shape), least)
        large = [size for size in sizes if size >= least * sizes[0]]
        assert [part.bit_count() for part in found[: len(large)]] == large
        for part in map(cells.to_array, found):
            (label,) = np.unique(labels[part])
            assert np.array_equal(part, labels == label)
    assert len(cells.parts(cells.from_array(shape), 0)) == min(count, 400)


def test_of_equal_parts_the_first_from_the_top_comes_first() -> None:
    shape = np.zeros((GRID, GRID), bool)
    shape[2:12, 30:40] = shape[40:50, 5:15] = True
    first, second = cells.parts(cells.from_array(shape), 0.4)
    assert (cells.box(first), cells.box(second)) == ((30, 2, 40, 12), (5, 40, 15, 50))


def test_nothing_has_no_parts() -> None:
    assert cells.parts(0, 0.4) == []


@pytest.mark.parametrize("shape", shapes())
def test_the_box_reaches_from_the_first_to_the_last_row_and_column(shape: NDArray[np.bool_]) -> None:
    rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
    assert cells.box(cells.from_array(shape)) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("shape", shapes())
def test_filling_closes_what_has_cells_on_all_four_sides(shape: NDArray[np.bool_]) -> None:
    reach = np.logical_or.accumulate
    rows = reach(shape, axis=1) & reach(shape[:, ::-1], axis=1)[:, ::-1]
    columns = reach(shape, axis=0) & reach(shape[::-1], axis=0)[::-1]
    assert np.array_equal(cells.to_array(cells.fill(cells.from_array(shape))), rows & columns)


def test_thin_parts_are_cut_off() -> None:
    shape = SQUARE.copy()
    shape[28:32, 50:] = shape[40:64, 12:14] = True  # a bar of four cells, and one of two
    cut = cells.to_array(cells.cut_thin(cells.from_array(shape)))
    opened = ndimage.binary_opening(SQUARE, CROSS, iterations=2)
    assert (cut >= opened).all()
    assert cut.sum() - opened.sum() <= 12  # where the bars begin


def test_a_body_that_the_edge_cuts_is_no_thinner_for_it() -> None:
    shape = np.zeros((GRID, GRID), bool)
    shape[:, :40] = True
    cut = cells.to_array(cells.cut_thin(cells.from_array(shape)))
    missing = shape & ~cut
    assert sorted(zip(*np.nonzero(missing), strict=True)) == [(0, 39), (63, 39)]  # its free side has round corners


def test_a_shape_of_thin_parts_alone_is_cut_to_nothing() -> None:
    shape = np.zeros((GRID, GRID), bool)
    shape[30:34] = True
    assert cells.cut_thin(cells.from_array(shape)) == 0


@pytest.mark.parametrize("edge", [np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]])
def test_an_edge_is_full_if_all_its_cells_are(edge: object) -> None:
    shape = SQUARE.copy()
    shape[edge] = True
    assert cells.fill_an_edge(cells.from_array(shape))
    shape[edge][5] = False
    assert not cells.fill_an_edge(cells.from_array(shape))
