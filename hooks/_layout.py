"""Which part of which view of a picture every token of it stands for, stack by stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    # One row for each token: the number of its view, then left, top, right, bottom in pixels of that view.
    # NaN for a token that shows no place: a class token, the end of a row, padding.
    Places = Float[np.ndarray, "tokens 5"]

NOWHERE = np.full((1, 5), np.nan)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tokens of one picture: in a layer of the tower, as the projector gives them, and in the prompt."""

    vision: Places
    projector: Places
    lm: Places


def grid(view: int, *, rows: int, columns: int, cell: float, width: float | None = None) -> Places:
    """Places of a grid's cells, row by row from the top left; cells are `cell` pixels high and `width` wide."""
    wide = cell if width is None else width
    top, left = (each.ravel() for each in np.mgrid[:rows, :columns])
    edges = (np.full(top.shape, view), left * wide, top * cell, (left + 1) * wide, (top + 1) * cell)
    return np.stack(edges, axis=1).astype(float)


def chain(parts: Sequence[Places]) -> Places:
    """Places one after another."""
    return np.concatenate([np.zeros((0, 5)), *parts])


def with_row_ends(places: Places, *, rows: int) -> Places:
    """Places of a grid with a token after each row that shows nothing."""
    wide = places.reshape(rows, -1, 5)
    ends = np.broadcast_to(NOWHERE, (rows, 1, 5))
    return np.concatenate([wide, ends], axis=1).reshape(-1, 5)
