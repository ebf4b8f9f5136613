"""Writing a store: batches are gathered, and become a file when it is complete."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from seamscope.activations import _layout as layout
from seamscope.activations._compression import check_compression
from seamscope.activations._file import StoreFile, Taken, as_store_error
from seamscope.activations._partial import Partial
from seamscope.activations._rows import Gathered
from seamscope.activations._schema import Schema
from seamscope.hooks import Ragged, StoreError, choose


def create_store(
    path: str | os.PathLike[str], schema: Schema, *, compression: str | None = None, replace_partial: bool = False
) -> StoreWriter:
    """Begin a store of one file; use it in a `with` block, at whose end the file appears under its name.

    What is appended is kept in memory until then; `Shards` writes a store that is larger than that. While it is
    written, `<path>.partial` stands there, so that no other writer begins.

    Args:
        path: the file.
        schema: what the store holds.
        compression: `bitshuffle` (with LZ4; needs the package hdf5plugin) or None.
        replace_partial: begin although a partial file was left by a process that ended early.

    Raises:
        StoreError: if `path` exists, or if a partial file stands there and `replace_partial` is not given.
    """
    final, stamped = layout.store_path(path), schema.stamped()
    partial = layout.partial_of(final)
    check_compression(compression)
    if os.path.lexists(final):
        raise StoreError(f"{final} exists already; a store is never overwritten")
    with as_store_error(partial):
        try:
            held = Partial(partial, new=not replace_partial)
        except FileExistsError:
            raise StoreError(
                f"{partial} stands there: another process writes this store, or was ended early; in that case "
                "delete it, or give replace_partial=True"
            ) from None
    return StoreWriter(final, held, stamped, compression=compression)


class StoreWriter:
    """A store of one file that is being written, made by `create_store` or `Shards.create`."""

    def __init__(
        self,
        final: Path,
        partial: Path | Partial,
        schema: Schema,
        *,
        compression: str | None = None,
        made_with: Mapping[str, Any] | None = None,
        rows: int | None = None,
        taken: Taken = "refuse",
    ) -> None:
        self.path, self.schema = final, schema
        self._partial, self._compression, self._taken = partial, compression, taken
        self._made_with, self._expected = dict(made_with or {}), rows
        self._gathered: dict[str, Gathered] = {}
        self._open = True

    def append(
        self,
        condition: str,
        rows: pd.DataFrame,
        acts: Mapping[tuple[str, str], Ragged],
        *,
        places: Sequence[int] | None = None,
        copy: bool = True,
    ) -> None:
        """Add a batch of rows with their activations.

        Args:
            condition: one of the schema's.
            rows: one row per item with a text column `id`, unique within the condition; other columns hold
                text or numbers. A column that only some batches have is missing elsewhere.
            acts: by (site, span), one entry per row, of one type and feature shape in every batch. Rows of a batch
                that lacks a pair have no tokens there.
            places: numbers by which the file sorts the rows of a condition; as they came, if there are none.
            copy: False: the tensors are given away, and are not changed any more until the file is written.

        Raises:
            StoreError: if anything does not fit; then nothing of the batch was added.
        """
        self._require_open()
        choose("condition", condition, self.schema.conditions, StoreError)
        named = {_names(*key): ragged for key, ragged in acts.items()}
        gathered = self._gathered.get(condition, Gathered())
        gathered.add(rows, named, places, copy=copy)
        if len(rows):
            self._gathered[condition] = gathered

    def close(self) -> None:
        """Write the file and give it its name; nothing happens if this was done already."""
        if not self._open:
            return
        self._open = False
        try:
            self._check_rows()
            self._write()
        finally:
            self._remove()

    def abandon(self) -> None:
        """Forget what was appended."""
        self._open = False
        self._remove()

    def _remove(self) -> None:
        if isinstance(self._partial, Partial):
            self._partial.remove()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __repr__(self) -> str:
        counts = {condition: len(gathered) for condition, gathered in self._gathered.items()}
        return f"StoreWriter({str(self.path)!r}, rows={counts})"

    def _check_rows(self) -> None:
        for condition in self.schema.conditions if self._expected is not None else ():
            got = len(self._gathered.get(condition, ()))
            if got != self._expected:
                raise StoreError(f"{self.path.name} needs {self._expected} rows under {condition!r}; it got {got}")

    def _write(self) -> None:
        held = {name: self._gathered[name] for name in self.schema.conditions if name in self._gathered}
        if isinstance(self._partial, Path):
            with as_store_error(self._partial):
                self._partial = Partial(self._partial)
        with StoreFile(self._partial, self.schema, compression=self._compression) as file:
            paths = [path for condition, gathered in held.items() for path in gathered.paths(condition)]
            file.reserve(sum(each.nbytes for each in held.values()), paths)
            for condition, gathered in held.items():
                for path, dtype, array in gathered.contents(condition):
                    file.add(path, dtype, array)
            file.finish(self.path, taken=self._taken, made_with=self._made_with)

    def _require_open(self) -> None:
        if not self._open:
            raise StoreError(f"{self.path} is closed")


def _names(site: object, span: object) -> tuple[str, str]:
    return layout.check_name("site", str(site)), layout.check_name("span", str(span))
