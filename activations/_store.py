"""Reading a store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
from numpy.typing import NDArray

from seamscope.activations import _layout as layout
from seamscope.activations import _trust as trust
from seamscope.activations._columns import decode
from seamscope.activations._ragged_io import read_ragged
from seamscope.activations._schema import Schema
from seamscope.hooks import Ragged, SiteError, SpanError, StoreError, choose

Rows = slice | Sequence[int] | Sequence[bool] | NDArray[Any]


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a finished store for reading.

    The file is not trusted: links, virtual or external data, foreign types and sizes that are not there are
    refused before anything is read. Contents are compared with their checksums only by `Store.verify`.

    Raises:
        StoreError: in one line, if the file is missing, foreign, unfinished, newer or damaged.
    """
    place = Path(path)
    if not place.is_file():
        raise StoreError(f"there is no store {place}")
    with _as_store_error(place):
        file = h5py.File(place, "r")
    try:
        return Store(place, file)
    except BaseException:
        file.close()
        raise


class Store:
    """Activations at rest, read-only; `open_store` makes one. Close it, or use it in a `with` block.

    Attributes:
        path: the file.
        schema: what was given to `create_store`, its provenance completed by the store.
        conditions: conditions that have rows, in the schema's order.
        sites: sites that any condition has, in the order in which they were written.
        spans: spans that any condition has, likewise.
    """

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path, self._file = path, file
        with _as_store_error(path):
            trust.check_header(file)
            self._entries = trust.check_manifest(file)
            self.schema = Schema.from_json(file[layout.SCHEMA][()].tobytes())
            self._columns, self._cells = _index(list(self._entries))
        self.conditions = tuple(c for c in self.schema.conditions if c in self._columns)
        pairs = [pair for condition in self.conditions for pair in self._cells.get(condition, [])]
        self.sites = tuple(dict.fromkeys(site for site, _ in pairs))
        self.spans = tuple(dict.fromkeys(span for _, span in pairs))

    @property
    def provenance(self) -> dict[str, Any]:
        """What was given to `create_store`, with `created`, `format_version` and `versions`."""
        return dict(self.schema.provenance)

    def cells(self, condition: str) -> tuple[tuple[str, str], ...]:
        """The (site, span) pairs that one condition has."""
        return tuple(self._cells.get(choose("condition", condition, self.conditions, StoreError), []))

    def rows(self, condition: str) -> pd.DataFrame:
        """The table of rows of one condition, in the order in which they were appended."""
        choose("condition", condition, self.conditions, StoreError)
        with self._reading():
            columns = {name: self._column(condition, name) for name in self._columns[condition]}
            return pd.DataFrame(columns)

    def read(self, site: str, span: str, condition: str, rows: Rows | None = None) -> Ragged:
        """Activations of one cell in their exact type, of all rows or of some.

        Args:
            site: one of `sites`.
            span: one of `spans`.
            condition: one of `conditions`.
            rows: numbers, slice or boolean mask into `rows(condition)`; only their tokens are read.

        Raises:
            SiteError, SpanError, StoreError: if a name is unknown, or the condition has no such cell.
        """
        choose("condition", condition, self.conditions, StoreError)
        choose("site", site, self.sites, SiteError)
        choose("span", span, self.spans, SpanError)
        if (site, span) not in self._cells.get(condition, []):
            raise StoreError(f"{self.path} has no {site} at {span} under {condition}")
        with self._reading():
            group = self._file[layout.acts_path(condition, site, span)]
            dtype = self._entries[group["values"].name]["dtype"]
            return read_ragged(group, dtype, rows)

    def verify(self) -> int:
        """Read everything and compare it with its checksums; gives the number of datasets.

        Raises:
            StoreError: naming the datasets that differ.
        """
        with self._reading():
            sums = {name: trust.checksum(self._file[name]) for name in self._entries}
            damaged = [name for name, entry in self._entries.items() if sums[name] != entry["sha256"]]
            if damaged:
                names = ", ".join(damaged)
                raise StoreError(f"is damaged: {len(damaged)} datasets differ from their checksums: {names}")
        return len(self._entries)

    def close(self) -> None:
        """Close the file; reading ends."""
        self._file.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        held = f"conditions={self.conditions}, {len(self.sites)} sites, spans={self.spans}"
        return f"Store({str(self.path)!r}, {held})"

    def _column(self, condition: str, name: str) -> pd.Series[Any]:
        group = self._file[layout.column_path(condition, name)]
        return decode({part: (self._entries[group[part].name]["dtype"], group[part][()]) for part in group})

    @contextmanager
    def _reading(self) -> Iterator[None]:
        if not self._file:
            raise StoreError(f"{self.path} is closed")
        with _as_store_error(self.path):
            yield


def _index(names: list[str]) -> tuple[dict[str, list[str]], dict[str, list[tuple[str, str]]]]:
    """Columns and (site, span) pairs of each condition, from the paths of the datasets."""
    columns: dict[str, dict[str, None]] = {}
    cells: dict[str, dict[tuple[str, str], None]] = {}
    for name in names:
        match name.split("/")[1:]:
            case [layout.CONDITIONS, condition, "rows", column, "values" | "offsets" | "missing"]:
                columns.setdefault(condition, {})[column] = None
            case [layout.CONDITIONS, condition, "acts", site, span, "values" | "offsets"]:
                cells.setdefault(condition, {})[site, span] = None
            case [layout.SCHEMA]:
                pass
            case _:
                raise StoreError(f"dataset {name!r} has no place in a store")
    return {c: list(v) for c, v in columns.items()}, {c: list(v) for c, v in cells.items()}


@contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    """Name the file in our own errors, and turn the library's into one line of ours."""
    try:
        yield
    except StoreError as error:
        raise StoreError(f"{path} {error}") from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StoreError(f"{path} cannot be read as a store: {' '.join(str(error).split())}") from error
