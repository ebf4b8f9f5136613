"""Reading some rows of an activation without touching the others."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from seamscope.activations._bits import to_tensor
from seamscope.hooks import Ragged, StoreError

Numbers = NDArray[np.int64]


def row_numbers(rows: Any, n_rows: int) -> Numbers:
    """Row numbers that a slice, a boolean mask or a list of numbers selects; -1 is the last row."""
    picked = np.arange(n_rows)
    wanted = rows if isinstance(rows, slice) else np.asarray(rows)
    if isinstance(wanted, np.ndarray) and not wanted.size:
        return picked[:0]
    try:
        return np.atleast_1d(picked[wanted])
    except IndexError as error:
        raise StoreError(f"cannot select those of its {n_rows} rows: {error}") from error


def read_ragged(group: h5py.Group, dtype: str, rows: Any = None) -> Ragged:
    """Read all rows or the selected ones, in the given order; neighbours are read in one piece."""
    offsets = group["offsets"][()]
    _check_offsets(group, offsets)
    if rows is None:
        return Ragged(to_tensor(group["values"][()], dtype), torch.from_numpy(np.diff(offsets)))
    wanted = row_numbers(rows, len(offsets) - 1)
    unique, order = np.unique(wanted, return_inverse=True)
    starts, stops = offsets[unique], offsets[unique + 1]
    values = _read_pieces(group["values"], starts, stops)
    ragged = Ragged(to_tensor(values, dtype), torch.from_numpy(stops - starts))
    return ragged if np.array_equal(unique, wanted) else ragged[torch.from_numpy(order)]


def _read_pieces(data: h5py.Dataset, starts: Numbers, stops: Numbers) -> NDArray[Any]:
    values = np.empty((int((stops - starts).sum()), *data.shape[1:]), data.dtype)
    filled = 0
    for start, stop in _merge(starts, stops):
        data.read_direct(values, np.s_[start:stop], np.s_[filled : filled + stop - start])
        filled += stop - start
    return values


def _merge(starts: Numbers, stops: Numbers) -> list[tuple[int, int]]:
    """Half-open pieces (start, stop) with neighbours joined and empty ones left out."""
    held = stops > starts
    starts, stops = starts[held], stops[held]
    if not len(starts):
        return []
    breaks = np.flatnonzero(starts[1:] != stops[:-1])
    first, last = np.r_[0, breaks + 1], np.r_[breaks, len(starts) - 1]
    return list(zip(starts[first].tolist(), stops[last].tolist(), strict=True))


def _check_offsets(group: h5py.Group, offsets: Numbers) -> None:
    fits = offsets.ndim == 1 and len(offsets) > 0 and offsets[0] == 0 and offsets[-1] == len(group["values"])
    if not fits or (np.diff(offsets) < 0).any():
        raise StoreError(f"is damaged: the offsets of {group.name!r} do not fit its values")
