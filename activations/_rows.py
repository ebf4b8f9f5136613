"""What one condition has gathered so far: its table of rows, and the activations of those rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import pandas as pd

from seamscope.activations import _layout as layout
from seamscope.activations._bits import Array, dtype_name, to_array
from seamscope.activations._columns import Cell, encode, kind_of, to_cells, types_of
from seamscope.hooks import Ragged, StoreError

Key = tuple[str, str]  # site, span
Content = tuple[str, str, Array]  # path in the file, type, bits


class Gathered:
    """Rows and activations of one condition, and the order in which the file has them."""

    def __init__(self) -> None:
        self._table, self._acts = Table(), Acts()
        self._places: list[int] = []

    def __len__(self) -> int:
        return len(self._table)

    def add(
        self, rows: pd.DataFrame, acts: Mapping[Key, Ragged], places: Sequence[int] | None, *, copy: bool = True
    ) -> None:
        """Add a batch; raises `StoreError` if anything does not fit, and then adds nothing of it."""
        cells = self._table.check(rows)
        self._acts.check(len(rows), acts)
        before = len(self)
        places = range(before, before + len(rows)) if places is None else places
        if len(places) != len(rows) or len({*self._places, *places}) != before + len(rows):
            raise StoreError(f"{len(rows)} rows need as many places, which no other row has; got {list(places)}")
        self._acts.extend(len(rows), acts, copy=copy)
        self._table.extend(cells)
        self._places.extend(places)

    def paths(self, condition: str) -> list[str]:
        """The datasets that they will be, and perhaps not all of them."""
        columns = [layout.column_path(condition, name) for name in self._table.columns]
        acts = [layout.acts_path(condition, *key) for key in self._acts.forms]
        return [f"{group}/{part}" for group in (*columns, *acts) for part in ("values", "missing", "lengths")]

    @property
    def nbytes(self) -> int:
        """What they will take."""
        table = sum(array.nbytes for _, _, array in self._table.contents(""))
        return table + self._acts.nbytes + 4 * len(self) * len(self._acts.forms)

    def contents(self, condition: str) -> Iterator[Content]:
        """All datasets as they stand in the file."""
        order = sorted(range(len(self)), key=self._places.__getitem__)
        moved = None if order == list(range(len(self))) else order
        yield from self._table.contents(condition, moved)
        yield from self._acts.contents(condition, moved)


class Table:
    """Rows so far, column by column; a column that came late is missing in the rows before it."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Cell]] = {"id": []}
        self._ids: set[Cell] = set()
        self._types: dict[str, set[type]] = {}

    def __len__(self) -> int:
        return len(self.columns["id"])

    def check(self, rows: pd.DataFrame) -> dict[str, list[Cell]]:
        """Cells of a batch by column; raises `StoreError` for what cannot be stored, and changes nothing."""
        if not rows.columns.is_unique or "id" not in rows.columns:
            raise StoreError(f"rows need unique columns and an 'id' among them; got {list(rows.columns)}")
        cells = {layout.check_name("column", name): to_cells(name, rows[name]) for name in rows.columns}
        self._check_ids(cells["id"])
        for name, column in cells.items():
            kind_of(name, self._types.get(name, set()) | types_of(column))
        return cells

    def _check_ids(self, ids: list[Cell]) -> None:
        seen = set(self._ids)
        for name in ids:
            if not isinstance(name, str):
                raise StoreError(f"every row needs a text 'id'; got {name!r}")
            if name in seen:
                raise StoreError(f"id {name!r} comes twice under one condition")
            seen.add(name)

    def extend(self, cells: dict[str, list[Cell]]) -> None:
        """Add a batch that `check` returned."""
        before, added = len(self), len(cells["id"])
        self._ids.update(cells["id"])
        for name, column in cells.items():
            self._types[name] = self._types.get(name, set()) | types_of(column)
        for name in dict.fromkeys(chain(self.columns, cells)):
            self.columns.setdefault(name, [None] * before).extend(cells.get(name, [None] * added))

    def contents(self, condition: str, order: Sequence[int] | None = None) -> Iterator[Content]:
        """Every column as it stands in the file, in another order if one is given."""
        for name, cells in self.columns.items():
            moved = cells if order is None else [cells[row] for row in order]
            for part, (dtype, array) in encode(name, moved).items():
                yield f"{layout.column_path(condition, name)}/{part}", dtype, array


class Acts:
    """Activations so far, on the host; a row that has none of a span has no tokens there."""

    def __init__(self) -> None:
        self._rows = 0
        self.forms: dict[Key, tuple[str, tuple[int, ...]]] = {}
        self._values: dict[Key, list[Array]] = {}
        self._lengths: dict[Key, list[tuple[int, Array]]] = {}  # first row of a batch, and its rows' lengths

    @property
    def nbytes(self) -> int:
        """What the values take, on the host."""
        return sum(piece.nbytes for pieces in self._values.values() for piece in pieces)

    def check(self, rows: int, acts: Mapping[Key, Ragged]) -> None:
        """Raise `StoreError` if a batch does not fit the batches before it; changes nothing."""
        for key, ragged in acts.items():
            what = " ".join(key)
            form = _form(ragged)
            if len(ragged) != rows:
                raise StoreError(f"{what} has {len(ragged)} rows of activations for {rows} rows")
            if 0 in form[1]:
                raise StoreError(f"{what} has empty features of shape {form[1]}")
            if form != self.forms.get(key, form):
                raise StoreError(f"{what} was {self.forms[key]} in an earlier batch and is {form} now")

    def extend(self, rows: int, acts: Mapping[Key, Ragged], *, copy: bool) -> None:
        """Keep a batch that `check` passed, or copies of it."""
        arrays = {key: (to_array(each.values), to_array(each.lengths).astype("<i4")) for key, each in acts.items()}
        copies = {key: (values.copy() if copy else values, lengths) for key, (values, lengths) in arrays.items()}
        for key, (values, lengths) in copies.items():
            self.forms.setdefault(key, _form(acts[key]))
            self._values.setdefault(key, []).append(values)
            self._lengths.setdefault(key, []).append((self._rows, lengths))
        self._rows += rows

    def contents(self, condition: str, order: Sequence[int] | None = None) -> Iterator[Content]:
        """Every activation as it stands in the file, its rows in another order if one is given."""
        for key, (dtype, _) in self.forms.items():
            lengths = np.zeros(self._rows, "<i4")
            for start, piece in self._lengths[key]:
                lengths[start : start + len(piece)] = piece
            values = np.concatenate(self._values[key]) if order is None else self._moved(key, lengths, order)
            group = layout.acts_path(condition, *key)
            yield f"{group}/values", dtype, values
            yield f"{group}/lengths", "int32", lengths if order is None else lengths[list(order)]

    def _moved(self, key: Key, lengths: Array, order: Sequence[int]) -> Array:
        """The tokens of all rows in another order, each of them copied once."""
        moved = lengths[list(order)]
        starts = np.empty(self._rows, np.int64)
        starts[list(order)] = np.cumsum(moved) - moved
        values = np.empty((int(moved.sum()), *self.forms[key][1]), self._values[key][0].dtype)
        for (row, own), piece in zip(self._lengths[key], self._values[key], strict=True):
            shifts = starts[row : row + len(own)] - (np.cumsum(own) - own)
            values[np.arange(len(piece)) + np.repeat(shifts, own)] = piece
        return values


def _form(ragged: Ragged) -> tuple[str, tuple[int, ...]]:
    return dtype_name(ragged.values), tuple(ragged.values.shape[1:])
