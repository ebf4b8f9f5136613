"""Writing a store: batches go to an unfinished file, which gets its name only when it is complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from seamscope.activations import _layout as layout
from seamscope.activations._growing import ActsBuffer, Entries, Growing
from seamscope.activations._rows import RowBuffer
from seamscope.activations._schema import Schema
from seamscope.hooks import Ragged, StoreError, choose


def create_store(path: str | os.PathLike[str], schema: Schema, *, replace_partial: bool = False) -> StoreWriter:
    """Begin a store; use it in a `with` block, at whose end the file appears under its name.

    Until then, and for good if the block raises, it is called `<path>.partial`.

    Raises:
        StoreError: if `path` exists, or if a partial file stands there and `replace_partial` is not given.
    """
    final = Path(path)
    partial = final.with_name(final.name + layout.PARTIAL)
    if final.exists():
        raise StoreError(f"{final} exists already; a store is never overwritten")
    if partial.exists() and not replace_partial:
        raise StoreError(f"{partial} was left by an unfinished run; delete it, or give replace_partial=True")
    return StoreWriter(final, partial, schema.stamped())


class StoreWriter:
    """A store that is being written, made by `create_store`; one writer per file."""

    def __init__(self, final: Path, partial: Path, schema: Schema) -> None:
        self.path, self.schema = final, schema
        self._partial = partial
        self._rows: dict[str, RowBuffer] = {}
        self._acts: dict[str, ActsBuffer] = {}
        self._whole = True
        described = schema.to_json()
        with _as_store_error(partial):
            self._file = h5py.File(partial, "w", rdcc_nbytes=2**21)
            attrs = {"format": np.bytes_(layout.FORMAT), "format_version": layout.FORMAT_VERSION, "complete": 0}
            self._file.attrs.update(attrs)
            self._entries: Entries = self._write_bytes(layout.SCHEMA, described)

    def append(self, condition: str, rows: pd.DataFrame, acts: Mapping[tuple[str, str], Ragged]) -> None:
        """Add a batch of rows with their activations.

        Args:
            condition: one of the schema's.
            rows: one row per item with a text column `id`, unique within the condition; other columns hold
                text or numbers. A column that only some batches have is missing elsewhere.
            acts: by (site, span), one entry per row; the same pairs, types and feature shapes in every batch.

        Raises:
            StoreError: if anything does not fit; then nothing of the batch was written.
        """
        self._require_open()
        choose("condition", condition, self.schema.conditions, StoreError)
        named = {_names(*key): ragged for key, ragged in acts.items()}
        table = self._rows.get(condition, RowBuffer())
        tensors = self._acts.get(condition, ActsBuffer())
        cells = table.check(rows)
        tensors.check(len(rows), named)
        if not len(rows):
            return
        self._rows[condition], self._acts[condition] = table, tensors
        with self._all_or_broken():
            tensors.extend(self._file.require_group(f"{layout.CONDITIONS}/{condition}"), named)
            table.extend(cells)

    def flush(self) -> None:
        """Hand what was written so far to the operating system."""
        self._require_open()
        with self._all_or_broken():
            self._file.flush()

    def close(self) -> None:
        """Complete the file and give it its name; nothing happens if it is closed already."""
        if not self._file:
            return
        if not self._whole:
            self.abandon()
            raise StoreError(f"{self.path}: a write failed, so the file stays {self._partial.name}")
        try:
            with self._all_or_broken():
                self._complete()
        finally:
            self.abandon()
        with _as_store_error(self._partial):
            _sync(self._partial)
            if self.path.exists():
                raise StoreError(f"{self.path} appeared meanwhile; the new file stays {self._partial.name}")
            self._partial.rename(self.path)

    def abandon(self) -> None:
        """Close the file unfinished, under its partial name."""
        if self._file:
            self._file.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __repr__(self) -> str:
        counts = {condition: len(table) for condition, table in self._rows.items()}
        return f"StoreWriter({str(self.path)!r}, rows={counts})"

    def _complete(self) -> None:
        for condition, table in self._rows.items():
            self._entries |= table.write(self._file[layout.CONDITIONS][condition])
            self._entries |= self._acts[condition].entries()
        manifest = json.dumps(self._entries, ensure_ascii=False, indent=1).encode()
        self._write_bytes(layout.MANIFEST, manifest)
        self._file.attrs["manifest_sha256"] = np.bytes_(hashlib.sha256(manifest).hexdigest())
        self._file.attrs["complete"] = 1

    def _write_bytes(self, name: str, content: bytes) -> Entries:
        array = np.frombuffer(content, "|u1")
        dataset = Growing(self._file, name, like=array, dtype="uint8")
        dataset.append(array)
        return dataset.entry()

    def _require_open(self) -> None:
        if not self._file:
            raise StoreError(f"{self.path} is closed")

    @contextmanager
    def _all_or_broken(self) -> Iterator[None]:
        """A write that did not run to its end leaves a file that can no longer be completed."""
        self._whole, before = False, self._whole
        with _as_store_error(self._partial):
            yield
        self._whole = before


def _names(site: object, span: object) -> tuple[str, str]:
    return layout.check_name("site", str(site)), layout.check_name("span", str(span))


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path} cannot be written: {' '.join(str(error).split())}") from error
