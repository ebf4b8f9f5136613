"""A column of the rows as arrays: numbers as they are, text as UTF-8 bytes with offsets, both with gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from seamscope.activations._bits import Array
from seamscope.activations._layout import FILE_DTYPES, is_text
from seamscope.hooks import StoreError

Cell = str | bool | int | float | None

TEXT = "text"
# The first kind that holds every type of a column is its kind; a column with nothing in it is text.
_KINDS: dict[str, set[type]] = {TEXT: {str}, "bool": {bool}, "int64": {int}, "float64": {int, float}}
_INT64 = 2**63


def to_cells(name: str, values: Iterable[Any]) -> list[Cell]:
    """Plain Python values of a column, None where one is missing; raises `StoreError` for anything else."""
    return [_to_cell(name, value) for value in values]


def _to_cell(name: str, value: Any) -> Cell:
    plain = value.item() if isinstance(value, np.generic) else value
    if plain is None or plain is pd.NA or (isinstance(plain, float) and np.isnan(plain)):
        return None
    if isinstance(plain, str) and is_text(plain):
        return str(plain)
    if isinstance(plain, bool | float):
        return plain
    if isinstance(plain, int) and -_INT64 <= plain < _INT64:
        return int(plain)
    raise StoreError(f"column {name!r} holds {plain!r}: only text, bool, 64-bit integers and floats can be stored")


def encode(name: str, cells: Sequence[Cell]) -> dict[str, tuple[str, Array]]:
    """Parts of a column as they stand in the file, each with its type; only text has `lengths`."""
    kind = kind_of(name, types_of(cells))
    missing = ("bool", np.array([cell is None for cell in cells], dtype="|u1"))
    if kind == TEXT:
        texts = [b"" if cell is None else str(cell).encode() for cell in cells]
        lengths = np.array([len(text) for text in texts], dtype="<i4")
        values = np.frombuffer(b"".join(texts), "|u1")
        return {"values": ("uint8", values), "lengths": ("int32", lengths), "missing": missing}
    gap = np.nan if kind == "float64" else 0
    values = np.array([gap if cell is None else cell for cell in cells], FILE_DTYPES[kind])
    return {"values": (kind, values), "missing": missing}


def types_of(cells: Iterable[Cell]) -> set[type]:
    """Types of the cells that are there."""
    return {type(cell) for cell in cells if cell is not None}


def kind_of(name: str, types: set[type]) -> str:
    """Kind of a column whose cells have these types; raises `StoreError` if they do not go together."""
    for kind, members in _KINDS.items():
        if types <= members:
            return kind
    mixed = " and ".join(sorted(kind.__name__ for kind in types))
    raise StoreError(f"column {name!r} mixes {mixed}")


def decode(parts: dict[str, tuple[str, Array]]) -> pd.Series[Any]:
    """A column as pandas holds it: text with None, or numbers in a nullable type where some are missing."""
    kind, values = parts["values"]
    missing = parts["missing"][1].astype(bool)
    if "lengths" in parts:
        return pd.Series(_texts(values, parts["lengths"][1], missing), dtype=object)
    column = pd.Series(values != 0 if kind == "bool" else values)
    if kind == "float64" or not missing.any():
        return column
    return column.astype("boolean" if kind == "bool" else "Int64").mask(missing)


def _texts(values: Array, lengths: Array, missing: Array) -> list[str | None]:
    blob, ends = values.tobytes(), np.cumsum(lengths, dtype=np.int64).tolist()
    if len(ends) != len(missing) or (lengths < 0).any() or (ends or [0])[-1] != len(blob):
        raise StoreError("is damaged: the lengths of a text column do not fit its bytes")
    pieces = zip([0, *ends], ends, missing.tolist(), strict=False)
    return [None if gone else blob[start:stop].decode() for start, stop, gone in pieces]
