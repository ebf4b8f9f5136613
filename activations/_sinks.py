"""Where an export goes: a folder of safetensors files, or a zarr group."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from seamscope.activations import _layout as layout
from seamscope.activations._bits import Array
from seamscope.activations._columns import TEXT, Cell, kind_of, types_of
from seamscope.activations._schema import Schema
from seamscope.hooks import StoreError

Columns = dict[str, list[Cell]]
Index = dict[str, Any]

_CHUNK: Final = 2**22  # bytes of a chunk of a zarr array
_OLDEST_ZARR: Final = (3, 1)  # the oldest that this was tried with
_LONGEST: Final = 100  # characters of a name that becomes a file's
_UNSAFE: Final = re.compile(rb"[^a-z0-9._+-]|\A[._+-]|\.\Z|\Az(?=arr\.json\Z)")  # zarr.json is zarr's own
_SAFETENSORS: Final = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
}


class Tensor(NamedTuple):
    """One dataset of activations: the `values` or the `lengths` of a condition, site and span."""

    condition: str
    site: str
    span: str
    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def path(self) -> str:
        """Where it stands in the store."""
        return f"{layout.acts_path(self.condition, self.site, self.span)}/{self.kind}"

    @property
    def row_bytes(self) -> int:
        return np.dtype(layout.FILE_DTYPES[self.dtype]).itemsize * prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.row_bytes * self.shape[0]


class Sink(Protocol):
    """A folder that is being filled. What is not written of a tensor is zero."""

    def table(self, condition: str, columns: Columns) -> None:
        """Write the rows of a condition."""

    def write(self, tensor: Tensor, start: int, block: Array) -> None:
        """Write some of a tensor, from a place on."""

    def place(self, tensor: Tensor) -> str:
        """Where a reader finds the tensor's span, seen from the folder."""

    def places(self, condition: str, columns: Columns) -> str | dict[str, str]:
        """Where a reader finds the rows."""

    def finish(self, schema: Schema, index: Index) -> None:
        """Write what the export says about itself."""


class Safetensors:
    """Files whose headers, and so all places in them, are known first: room is taken before anything is read."""

    def __init__(self, folder: Path, tensors: Sequence[Tensor]) -> None:
        self._folder = folder
        self._starts: dict[Tensor, int] = {}
        for _, held in groupby(sorted(tensors, key=self.place), self.place):
            self._begin(list(held))

    def _begin(self, held: list[Tensor]) -> None:
        """Write the header of a file; wide types come first, so that all of them are aligned."""
        file = self._folder / self.place(held[0])
        header: dict[str, Any] = {"__metadata__": {"condition": held[0].condition, "site": held[0].site}}
        end = 0
        for each in sorted(held, key=lambda tensor: -np.dtype(layout.FILE_DTYPES[tensor.dtype]).itemsize):
            begin, end = end, end + each.nbytes
            place = {"shape": each.shape, "data_offsets": [begin, end]}
            header[f"{each.span}.{each.kind}"] = {"dtype": _SAFETENSORS[each.dtype], **place}
            self._starts[each] = begin
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(len(text).to_bytes(8, "little") + text)
        for each in held:
            self._starts[each] += 8 + len(text)
        _take_room(file, 8 + len(text) + end)

    def table(self, condition: str, columns: Columns) -> None:
        file = self._folder / self.places(condition, columns)
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="\n") as out:
            for cells in zip(*columns.values(), strict=True):
                out.write(json.dumps(dict(zip(columns, cells, strict=True)), ensure_ascii=False) + "\n")

    def write(self, tensor: Tensor, start: int, block: Array) -> None:
        with (self._folder / self.place(tensor)).open("r+b") as out:
            out.seek(self._starts[tensor] + start * tensor.row_bytes)
            out.write(block.tobytes())

    def place(self, tensor: Tensor) -> str:
        return f"{_folder_of(tensor.condition)}/acts/{safe_name(tensor.site)}.safetensors"

    def places(self, condition: str, columns: Columns) -> str:
        return f"{_folder_of(condition)}/rows.jsonl"

    def finish(self, schema: Schema, index: Index) -> None:
        (self._folder / "schema.json").write_bytes(schema.to_json())
        (self._folder / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=1), encoding="utf-8")


class Zarr:
    """A tree of groups and arrays, chunked by rows."""

    def __init__(self, folder: Path, tensors: Sequence[Tensor]) -> None:
        self._root = _zarr().create_group(folder)
        self._arrays = {each: self._array(each) for each in tensors}

    def _array(self, tensor: Tensor) -> Any:
        kind = "bool" if tensor.dtype == "bool" else layout.FILE_DTYPES[tensor.dtype]
        return self._create(f"{self.place(tensor)}/{tensor.kind}", tensor.dtype, kind, tensor.shape)

    def _create(self, path: str, dtype: str, kind: Any, shape: tuple[int, ...]) -> Any:
        row_bytes = 64 if kind is str else max(1, np.dtype(kind).itemsize * prod(shape[1:]))
        return self._root.create_array(
            path,
            shape=shape,
            dtype=kind,
            chunks=(max(1, min(shape[0], _CHUNK // row_bytes)), *shape[1:]),
            compressors=None,  # activations hardly shrink, and every tool reads them so
            attributes={"dtype": dtype},
            config={"write_empty_chunks": True},  # before 3.1.6, zarr takes -0.0 for empty
        )

    def table(self, condition: str, columns: Columns) -> None:
        for (name, cells), path in zip(columns.items(), self.places(condition, columns).values(), strict=True):
            dtype = kind_of(name, types_of(cells))
            kind: Any = str if dtype == TEXT else "bool" if dtype == "bool" else layout.FILE_DTYPES[dtype]
            gap = {TEXT: "", "float64": np.nan}.get(dtype, 0)
            values = np.array([gap if cell is None else cell for cell in cells], object if kind is str else kind)
            missing = np.array([cell is None for cell in cells], bool)
            self._create(f"{path}/values", dtype, kind, values.shape)[:] = values
            self._create(f"{path}/missing", "bool", "bool", missing.shape)[:] = missing

    def write(self, tensor: Tensor, start: int, block: Array) -> None:
        self._arrays[tensor][start : start + len(block)] = block

    def place(self, tensor: Tensor) -> str:
        return f"{_folder_of(tensor.condition)}/acts/{safe_name(tensor.site)}/{safe_name(tensor.span)}"

    def places(self, condition: str, columns: Columns) -> dict[str, str]:
        return {name: f"{_folder_of(condition)}/rows/{safe_name(name)}" for name in columns}

    def finish(self, schema: Schema, index: Index) -> None:
        self._root.attrs.update({"schema": json.loads(schema.to_json()), "index": index})


def _zarr() -> Any:
    with suppress(ImportError):
        import zarr

        if tuple(int(number) for number in zarr.__version__.split(".")[:2]) >= _OLDEST_ZARR:
            return zarr
    raise StoreError("an export to zarr needs zarr 3.1 or newer: pip install 'seamscope[export]'")


def _folder_of(condition: str) -> str:
    return f"{layout.CONDITIONS}/{safe_name(condition)}"


def _take_room(file: Path, size: int) -> None:
    """Make a file as long as it will be, and see that the disk holds it."""
    os.truncate(file, size)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as out:
            os.posix_fallocate(out.fileno(), 0, size)


def safe_name(name: str) -> str:
    """A name as one that any file system takes: what is not a small letter or a digit is written as %XX.

    `urllib.parse.unquote` gives the name back. One that becomes too long is cut, and ends in "~" and its hash.
    """
    safe = _UNSAFE.sub(lambda found: b"%%%02X" % found[0][0], name.encode()).decode()
    return safe if len(safe) <= _LONGEST else f"{safe[:_LONGEST]}~{sha256(name.encode()).hexdigest()[:16]}"
