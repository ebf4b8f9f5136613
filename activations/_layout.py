"""Where things stand in a store's file; docs/store_format.md says the same in prose."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from seamscope.hooks import StoreError

FORMAT = "seamscope-store"
FORMAT_VERSION = 2
PARTIAL = ".partial"  # what the name of an unfinished file ends in
SHARDS = ".shards"  # the folder beside `run.h5` is `run.shards`
SCHEMA = "schema"
MANIFEST = "manifest"
SEAL = 512  # bytes before the HDF5 part of a joined file
CONDITIONS = "conditions"

_NUMBERED: Final = re.compile(r"\d{5,}\.h5")

# Type of the activations -> type of the bytes in the file; HDF5 knows neither bfloat16 nor a plain bool.
FILE_DTYPES = {
    "bfloat16": "<u2",
    "float16": "<f2",
    "float32": "<f4",
    "float64": "<f8",
    "bool": "|u1",
    "uint8": "|u1",
    "int8": "|i1",
    "int16": "<i2",
    "int32": "<i4",
    "int64": "<i8",
}


def check_name(what: str, name: object) -> str:
    """Return a name that can be one part of an HDF5 path, or raise `StoreError`."""
    if not isinstance(name, str) or name in {"", ".", ".."} or not {"/", "\0"}.isdisjoint(name):
        raise StoreError(f"{what} {name!r} cannot name a part of a store: it must be text without '/' or NUL")
    if not is_text(name):
        raise StoreError(f"{what} {name!r} is not valid Unicode text (it holds a lone surrogate)")
    return name


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def store_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a store's file, or raise `StoreError` for what cannot be one."""
    place = Path(path)
    if place.name in {"", ".."} or "\0" in place.name or not is_text(place.name):
        raise StoreError(f"{os.fspath(path)!r} cannot be the name of a store")
    return place


def is_tokens(path: str) -> bool:
    """Whether a dataset holds the tokens of an activation: these alone may be compressed."""
    parts = path.split("/")
    return len(parts) == 7 and (parts[1], parts[3], parts[6]) == (CONDITIONS, "acts", "values")


def acts_path(condition: str, site: str, span: str) -> str:
    """Group of one activation: `values` and `lengths`."""
    return f"/{CONDITIONS}/{condition}/acts/{site}/{span}"


def column_path(condition: str, column: str) -> str:
    """Group of one column of the rows: `values`, `missing`, and `lengths` where it holds text."""
    return f"/{CONDITIONS}/{condition}/rows/{column}"


def shard_folder(store: Path) -> Path:
    """Where the shards of a store are."""
    return store.with_suffix(SHARDS)


def shard_file(store: Path, number: int) -> Path:
    """The file of a store's k-th shard."""
    return shard_folder(store) / f"{number:05d}.h5"


def finished_shards(store: Path) -> dict[int, Path]:
    """The shards of a store that are there, by their numbers, in order."""
    files = [file for file in shard_folder(store).glob("*.h5") if _NUMBERED.fullmatch(file.name)]
    return dict(sorted((int(file.stem), file) for file in files))


def partial_of(path: Path) -> Path:
    """The name of a file while it is being written."""
    return path.with_name(path.name + PARTIAL)
