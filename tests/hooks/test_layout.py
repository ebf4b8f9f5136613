"""Places of tokens against pictures in which every cell is painted with its own number."""

from __future__ import annotations

import numpy as np
import pytest

from seamscope.hooks._layout import NOWHERE, chain, grid, with_row_ends


def painted(rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """A picture whose cells carry their numbers, counted row by row."""
    return np.arange(rows * columns).reshape(rows, columns).repeat(height, axis=0).repeat(width, axis=1)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 3), (3, 2), (5, 1)])
@pytest.mark.parametrize("width", [None, 7])
def test_a_grid_cuts_a_picture_into_its_cells_in_reading_order(rows: int, columns: int, width: int | None):
    picture = painted(rows, columns, 4, width or 4)
    places = grid(2, rows=rows, columns=columns, cell=4, width=width)
    assert places.shape == (rows * columns, 5)
    assert places.dtype == np.float64
    for number, (view, left, top, right, bottom) in enumerate(places):
        cell = picture[int(top) : int(bottom), int(left) : int(right)]
        assert view == 2
        assert cell.shape == (4, width or 4)
        assert (cell == number).all()


def test_cells_may_be_fractions_of_a_pixel():
    assert grid(0, rows=1, columns=2, cell=3, width=1.5)[1].tolist() == [0, 1.5, 0, 3, 3]


def test_an_empty_grid_has_no_cells():
    assert grid(0, rows=0, columns=3, cell=8).shape == (0, 5)


def test_a_chain_keeps_the_order_and_copies():
    first, second = grid(0, rows=1, columns=2, cell=8), grid(1, rows=2, columns=1, cell=8)
    chained = chain([second, NOWHERE, first])
    assert np.array_equal(chained[:2], second)
    assert np.isnan(chained[2]).all()
    assert np.array_equal(chained[3:], first)
    chained[:] = -1
    assert np.isnan(NOWHERE).all()
    assert (first >= 0).all()
    assert chain([]).shape == (0, 5)


def test_row_ends_come_after_each_row_and_show_nothing():
    places = grid(1, rows=3, columns=2, cell=8)
    ended = with_row_ends(places, rows=3)
    assert np.isnan(ended[:, 0]).tolist() == [False, False, True] * 3
    assert np.isnan(ended[[2, 5, 8]]).all()
    assert np.array_equal(ended[~np.isnan(ended[:, 0])], places)
    assert np.array_equal(places, grid(1, rows=3, columns=2, cell=8))
