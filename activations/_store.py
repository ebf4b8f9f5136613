"""Reading a store, of one file or of several that one joins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from itertools import pairwise
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from seamscope.activations import _layout as layout
from seamscope.activations._bits import to_tensor
from seamscope.activations._joined import Shard, check_virtual, shards_of, unfinished
from seamscope.activations._part import Form, Key, Numbers, Part, reading
from seamscope.activations._virtual import Contents
from seamscope.hooks import Ragged, SiteError, SpanError, StoreError, choose

Rows = slice | Sequence[int] | Sequence[bool] | NDArray[Any]
_OPEN: Final = 64  # shards that are kept open


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open a finished store for reading: its file, or one of its shards.

    A file is not trusted: links, foreign types and sizes that are not there are refused before any data are read,
    and data of other files are read only from shards whose checksums the store knows. Contents are compared with
    their checksums by `Store.verify`.

    Raises:
        StoreError: in one line, if the file is missing, foreign, unfinished, newer or damaged.
    """
    place = layout.store_path(path)
    with reading(place):
        if not place.exists():
            unfinished(place)
    part = Part(place)
    try:
        return Store(part)
    except BaseException:
        part.close()
        raise


class Store:
    """Activations at rest, read-only; `open_store` makes one. Close it, or use it in a `with` block.

    Attributes:
        path: the file.
        schema: what was given when it was created, its provenance completed by the store.
        conditions: conditions that have rows, in the schema's order.
        sites: sites that any condition has, in the order in which they were written.
        spans: spans that any condition has, likewise.
        shards: the files whose rows it joins; none where it is one file.
    """

    def __init__(self, part: Part) -> None:
        self.path, self.schema, self._part = part.path, part.schema, part
        self.shards: tuple[Shard, ...] = shards_of(part)
        self.conditions = tuple(each for each in self.schema.conditions if each in part.columns)
        self._cells: dict[str, dict[Key, Form]] = {each: part.cells.get(each, {}) for each in self.conditions}
        keys = [key for cells in self._cells.values() for key in cells]
        self.sites = tuple(dict.fromkeys(site for site, _ in keys))
        self.spans = tuple(dict.fromkeys(span for _, span in keys))
        self._opened: dict[Path, Part] = {}
        self._lock = Lock()  # a thread must not close the shard that another reads

    @property
    def provenance(self) -> dict[str, Any]:
        """What was given when it was created, with `format_version` and `versions`."""
        return dict(self.schema.provenance)

    @property
    def made_with(self) -> list[dict[str, Any]]:
        """What does not change results beyond rounding, such as the device; several where shards differ in it."""
        found = [self._shard(each).manifest.get("made_with", {}) for each in self.shards or (None,)]
        return [each for k, each in enumerate(found) if each not in found[:k]]

    @property
    def nbytes(self) -> int:
        """How many bytes its files have."""
        return self.path.stat().st_size + sum(shard.bytes for shard in self.shards)

    def cells(self, condition: str) -> tuple[tuple[str, str], ...]:
        """The (site, span) pairs that one condition has."""
        return tuple(self._cells[choose("condition", condition, self.conditions, StoreError)])

    def n_rows(self, condition: str) -> int:
        """How many rows a condition has."""
        return self._part.n_rows(choose("condition", condition, self.conditions, StoreError))

    def rows(self, condition: str) -> pd.DataFrame:
        """The table of rows of one condition, in the order of the store."""
        choose("condition", condition, self.conditions, StoreError)
        self._require_open()
        return self._part.rows(condition)

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
        form = self._form(condition, (site, span))
        wanted = _row_numbers(rows, self.n_rows(condition))
        unique, order = np.unique(wanted, return_inverse=True)
        with self._lock:
            values, lengths = self._tokens(condition, (site, span), form, unique)
        ragged = Ragged(to_tensor(values, form.dtype), torch.from_numpy(lengths))
        return ragged if np.array_equal(unique, wanted) else ragged[torch.from_numpy(order)]

    def stream(self, site: str, span: str, condition: str, *, nbytes: int = 2**27) -> Iterator[tuple[slice, Ragged]]:
        """Activations of one cell, some rows at a time: which rows, and their tokens, of about so many bytes.

        Raises what `read` raises.
        """
        form = self._form(condition, (site, span))
        token = np.dtype(layout.FILE_DTYPES[form.dtype]).itemsize * prod(form.feature)
        lengths = np.concatenate([each.lengths for each in self._plan(condition, (site, span), self._all(condition))])
        block = np.cumsum(lengths * token) // nbytes
        bounds = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(lengths)]
        for start, stop in pairwise(bounds):
            rows = slice(start, stop)
            yield rows, self.read(site, span, condition, rows)

    def _all(self, condition: str) -> Numbers:
        return np.arange(self.n_rows(condition))

    def _tokens(self, condition: str, key: Key, form: Form, unique: Numbers) -> tuple[NDArray[Any], Numbers]:
        """Values and lengths of rows, which are ascending numbers."""
        plans = list(self._plan(condition, key, unique))
        lengths = np.concatenate([each.lengths for each in plans]) if plans else np.zeros(0, np.int64)
        with reading(self.path):
            values = np.empty((int(lengths.sum()), *form.feature), layout.FILE_DTYPES[form.dtype])
        filled = 0
        for each in plans:
            size = int(each.lengths.sum())
            if size:
                part = self._shard(each.shard)
                part.read_into(values[filled : filled + size], condition, key, each.pieces)
            filled += size
        return values, lengths

    def verify(self, *, progress: bool = False) -> int:
        """Read everything and compare it with its checksums; gives the number of datasets.

        Raises:
            StoreError: naming the datasets that differ, and their files.
        """
        self._require_open()
        contents = Contents()
        for shard in self.shards:
            with closing(shard.open()) as part:
                contents.add(part, shard.name)
        check_virtual(self._part, contents)
        damaged: list[str] = []
        count = 0
        with tqdm([None, *self.shards], desc="verify", unit="file", disable=not progress) as bar:
            for each in bar:
                with nullcontext(self._part) if each is None else closing(each.open()) as part:
                    for path, differs in part.damaged():
                        count += 1
                        damaged += [path if each is None else f"{each.path.name}:{path}"] * differs
        if damaged:
            names = ", ".join(damaged[:8]) + (", …" if len(damaged) > 8 else "")
            raise StoreError(f"{self.path} is damaged: {len(damaged)} datasets differ from their checksums: {names}")
        return count

    def close(self) -> None:
        """Close the files; reading ends."""
        for part in (self._part, *self._opened.values()):
            part.close()
        self._opened.clear()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file itself."""
        return open_store, (self.path.absolute(),)

    def __repr__(self) -> str:
        held = f"conditions={self.conditions}, {len(self.sites)} sites, spans={self.spans}"
        return f"Store({str(self.path)!r}, {held})"

    def _form(self, condition: str, key: Key) -> Form:
        choose("condition", condition, self.conditions, StoreError)
        choose("site", key[0], self.sites, SiteError)
        choose("span", key[1], self.spans, SpanError)
        self._require_open()
        if key not in self._cells[condition]:
            raise StoreError(f"{self.path} has no {key[0]} at {key[1]} under {condition}")
        return self._cells[condition][key]

    def _plan(self, condition: str, key: Key, unique: Numbers) -> Iterator[_Reading]:
        """What is read of every file that has some of the rows, which are ascending numbers."""
        begin = 0
        for each in self.shards or (None,):
            stop = begin + (self.n_rows(condition) if each is None else each.rows.get(condition, 0))
            local = unique[np.searchsorted(unique, begin) : np.searchsorted(unique, stop)] - begin
            begin = stop
            if len(local):
                yield self._reading(each, condition, key, local)

    def _reading(self, shard: Shard | None, condition: str, key: Key, local: Numbers) -> _Reading:
        part = self._shard(shard)
        form = part.cells.get(condition, {}).get(key)
        if form is None:
            return _Reading(shard, np.zeros(len(local), np.int64), [])
        if form != self._cells[condition][key]:
            raise StoreError(f"{part.path} holds {key[0]} at {key[1]} as {form}, not as {self._cells[condition][key]}")
        lengths = part.lengths(condition, key)
        if len(lengths) <= local[-1]:
            raise StoreError(f"{part.path} is damaged: {key[0]} at {key[1]} has {len(lengths)} rows only")
        stops = np.cumsum(lengths)
        return _Reading(shard, lengths[local], _merge((stops - lengths)[local], stops[local]))

    def _shard(self, shard: Shard | None) -> Part:
        """A shard, found to be the one that was joined; it stays open until some others were asked for.

        None is the file itself.
        """
        self._require_open()
        if shard is None:
            return self._part
        if shard.path not in self._opened:
            while len(self._opened) >= _OPEN:
                self._opened.pop(next(iter(self._opened))).close()
            self._opened[shard.path] = shard.open()
        return self._opened[shard.path]

    def _require_open(self) -> None:
        if not self._part:
            raise StoreError(f"{self.path} is closed")


class _Reading(NamedTuple):
    """What is read of one file: how many tokens every row has, and the pieces in which they lie."""

    shard: Shard | None
    lengths: Numbers
    pieces: list[tuple[int, int]]


def _row_numbers(rows: Any, n_rows: int) -> Numbers:
    """Row numbers that a slice, a boolean mask or a list of numbers selects; -1 is the last row."""
    numbers = np.arange(n_rows)
    if rows is None:
        return numbers
    try:
        wanted = rows if isinstance(rows, slice) else np.atleast_1d(np.asarray(rows))
        picked: Numbers = numbers[:0] if isinstance(wanted, np.ndarray) and not wanted.size else numbers[wanted]
    except (IndexError, ValueError, TypeError) as error:
        raise StoreError(f"cannot select those of its {n_rows} rows: {error}") from error
    if picked.ndim != 1:
        raise StoreError(f"cannot select those of its {n_rows} rows: they are a table of numbers, not a list")
    return picked


def _merge(starts: Numbers, stops: Numbers) -> list[tuple[int, int]]:
    """Half-open pieces (start, stop) with neighbours joined and empty ones left out."""
    held = stops > starts
    starts, stops = starts[held], stops[held]
    if not len(starts):
        return []
    breaks = np.flatnonzero(starts[1:] != stops[:-1])
    first, last = np.r_[0, breaks + 1], np.r_[breaks, len(starts) - 1]
    return list(zip(starts[first].tolist(), stops[last].tolist(), strict=True))
