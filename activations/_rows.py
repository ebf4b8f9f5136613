"""The table of rows of one condition, gathered while batches come in and written at the end."""

from __future__ import annotations

from itertools import chain

import h5py
import pandas as pd

from seamscope.activations import _layout as layout
from seamscope.activations._columns import Cell, encode, kind_of, to_cells, types_of
from seamscope.activations._growing import Entries, Growing
from seamscope.hooks import StoreError


class RowBuffer:
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

    def write(self, condition: h5py.Group) -> Entries:
        """Write every column below the condition's group; returns manifest entries."""
        entries: Entries = {}
        for name, cells in self.columns.items():
            group = condition.create_group(f"rows/{name}")
            for part, (dtype, array) in encode(name, cells).items():
                dataset = Growing(group, part, like=array, dtype=dtype)
                dataset.append(array)
                entries |= dataset.entry()
        return entries
