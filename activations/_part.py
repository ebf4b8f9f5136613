"""One file of a store, opened for reading."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seamscope.activations import _layout as layout
from seamscope.activations import _trust as trust
from seamscope.activations._columns import decode
from seamscope.activations._file import Entry, in_short, seal_of
from seamscope.activations._schema import Schema
from seamscope.hooks import StoreError

Numbers = NDArray[np.int64]
Key = tuple[str, str]  # site, span


class Form(NamedTuple):
    """What the tokens of an activation are: their type, and the shape of one."""

    dtype: str
    feature: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.feature}"


class Part:
    """A finished file, whose datasets are checked whenever they are read; all that goes wrong is a `StoreError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            if not path.is_file():
                raise StoreError("is no file")
            self._file = _opened(path)
        try:
            with reading(path):
                trust.check_header(self._file)
                self.sha256 = str(trust.attribute(self._file, "manifest_sha256"))
        except BaseException:
            self.close()
            raise

    def __bool__(self) -> bool:
        return bool(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @cached_property
    def schema(self) -> Schema:
        """What the file says about itself."""
        with reading(self.path):
            return Schema.from_json(trust.read_text(self._file, layout.SCHEMA))

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the file holds, after its checksum was found right."""
        with reading(self.path):
            return trust.read_manifest(self._file)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Type and shape of every dataset, by its path, virtual ones included."""
        return {**self.manifest["datasets"], **self.manifest["virtual"]}

    @cached_property
    def _index(self) -> tuple[dict[str, list[str]], dict[str, dict[Key, Form]]]:
        with reading(self.path):
            return _index(self.entries)

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns of every condition that has rows."""
        return self._index[0]

    @property
    def cells(self) -> dict[str, dict[Key, Form]]:
        """What every condition has of activations."""
        return self._index[1]

    def n_rows(self, condition: str) -> int:
        """How many rows a condition has."""
        entry = self.entries.get(f"{layout.column_path(condition, 'id')}/missing")
        return 0 if entry is None else int(entry["shape"][0])

    def rows(self, condition: str) -> pd.DataFrame:
        """The table of a condition."""
        with reading(self.path):
            return pd.DataFrame({name: self._column(condition, name) for name in self.columns[condition]})

    def lengths(self, condition: str, key: Key) -> Numbers:
        """How many tokens each row has."""
        path = layout.acts_path(condition, *key)
        with reading(self.path):
            lengths = self._read(f"{path}/lengths").astype(np.int64)
            if (lengths < 0).any() or int(lengths.sum()) != self.entries[f"{path}/values"]["shape"][0]:
                raise StoreError(f"is damaged: the lengths of {path!r} do not fit its values")
        return lengths

    def read_into(self, out: NDArray[Any], condition: str, key: Key, pieces: list[tuple[int, int]]) -> None:
        """Read tokens from start to stop of every piece, end to end into `out`; touches nothing but them."""
        filled = 0
        with reading(self.path):
            data = self.dataset(f"{layout.acts_path(condition, *key)}/values")
            for start, stop in pieces:
                data.read_direct(out, np.s_[start:stop], np.s_[filled : filled + stop - start])
                filled += stop - start

    def dataset(self, path: str) -> h5py.Dataset:
        """A dataset that was found to be plain, and as the manifest says."""
        return trust.plain_dataset(self._file, path, self.entries[path])

    def virtual(self, path: str) -> h5py.Dataset:
        """A virtual dataset, to look at."""
        return trust.virtual_dataset(self._file, path, self.entries[path])

    def check_seal(self) -> None:
        """Raise `StoreError` unless every byte of a sealed file is what it was."""
        with reading(self.path), self.path.open("rb") as file:
            if file.read(layout.SEAL) != seal_of(self.path):
                raise StoreError("is damaged: it differs from the checksum that it begins with")

    def damaged(self) -> Iterator[tuple[str, bool]]:
        """Read every dataset, and tell whether it differs from its checksum.

        Raises `StoreError` for what the manifest does not name, and for what a store never contains.
        """
        with reading(self.path):
            differing = sorted({*trust.walk(self._file)} ^ {*self.entries, f"/{layout.MANIFEST}"})
            if differing:
                raise StoreError(f"dataset {differing[0]!r} stands in only one of file and manifest")
            for path, entry in self.manifest["datasets"].items():
                yield path, trust.checksum(self.dataset(path)) != entry.get("sha256")

    def _column(self, condition: str, name: str) -> pd.Series[Any]:
        path = layout.column_path(condition, name)
        parts = [each for each in ("values", "missing", "lengths") if f"{path}/{each}" in self.entries]
        return decode({each: (self.entries[f"{path}/{each}"]["dtype"], self._read(f"{path}/{each}")) for each in parts})

    def _read(self, path: str) -> NDArray[Any]:
        if path not in self.entries:
            raise StoreError(f"lacks the dataset {path!r}")
        found: NDArray[Any] = self.dataset(path)[()]
        return found


def _index(entries: dict[str, Entry]) -> tuple[dict[str, list[str]], dict[str, dict[Key, Form]]]:
    """Columns and activations of each condition, from the paths of the datasets."""
    columns: dict[str, dict[str, None]] = {}
    cells: dict[str, dict[Key, Form]] = {}
    for path, entry in entries.items():
        match path.split("/"):
            case ["", layout.CONDITIONS, condition, "rows", column, "values" | "missing" | "lengths"]:
                columns.setdefault(condition, {})[column] = None
            case ["", layout.CONDITIONS, condition, "acts", site, span, "values"]:
                form = Form(entry["dtype"], tuple(entry["shape"][1:]))
                cells.setdefault(condition, {})[site, span] = form
            case ["", layout.CONDITIONS, _, "acts", _, _, "lengths"] | ["", layout.SCHEMA]:
                pass
            case _:
                raise StoreError(f"dataset {path!r} is not where a store keeps anything")
    return {condition: list(names) for condition, names in columns.items()}, cells


def _opened(path: Path) -> h5py.File:
    """Open a file, which its writer may keep locked for a moment after it has its name.

    A process that has it open already, with or without locks, must open it in the same way again.
    """
    for _ in range(50):
        with suppress(BlockingIOError):
            for locking in ("best-effort", True, False):
                with suppress(_OtherLocking), _telling_locking():
                    return h5py.File(path, "r", locking=locking)
        sleep(0.01)
    return h5py.File(path, "r", locking="best-effort")


class _OtherLocking(Exception):
    """A file is open in this process with another kind of locks."""


@contextmanager
def _telling_locking() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if "flag values don't match" in str(error):
            raise _OtherLocking from error
        raise


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of every error that it is this file's, in one line."""
    try:
        yield
    except _OfAFile:
        raise
    except StoreError as error:
        raise _OfAFile(f"{path} {error}") from error
    except MemoryError as error:
        raise _OfAFile(f"{path} does not fit into the memory: {error}") from error
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        told = "cannot be read" if getattr(error, "errno", None) else "cannot be read, it is damaged or foreign"
        raise _OfAFile(f"{path} {told}: {in_short(error)}") from error


class _OfAFile(StoreError):
    """An error that names its file already."""
