"""One file that joins several: their tables are copied, their activations stay where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from seamscope.activations import _layout as layout
from seamscope.activations._file import StoreFile, as_store_error
from seamscope.activations._part import Form, Key, Part, reading
from seamscope.activations._rows import Table
from seamscope.activations._schema import Schema
from seamscope.activations._virtual import Source, Virtual, shown
from seamscope.hooks import StoreError

# what stores that are merged may have been asked otherwise: which items, and how they were cut into shards
SELECTS_ITEMS: Final = ("n", "seed", "rows", "rows_per_shard")
_LENGTHS: Final = "int32"


@dataclass(frozen=True)
class Shard:
    """A file whose rows a store joins: where it is, its size and checksum, and how many rows of each condition."""

    path: Path
    bytes: int
    sha256: str
    rows: dict[str, int]

    def check(self) -> None:
        """Raise `StoreError` unless a file of that size is there: HDF5 would give zeros in place of a lost one."""
        if not self.path.is_file():
            raise StoreError(f"{self.path} is missing, which holds {_counted(self.rows)} of the store")
        found = self.path.stat().st_size
        if found != self.bytes:
            raise StoreError(f"{self.path} is damaged: it has {found} bytes, and had {self.bytes} when it was joined")

    def open(self) -> Part:
        """Open the file; `StoreError` if it is another than the one that was joined."""
        self.check()
        part = Part(self.path)
        if part.sha256 != self.sha256:
            part.close()
            raise StoreError(f"{self.path} is not the file that was joined: its checksum is another")
        return part


def shards_of(part: Part) -> tuple[Shard, ...]:
    """The shards that a file joins, after all were found to be there."""
    found = part.manifest.get("shards", [])
    with reading(part.path):
        if not isinstance(found, list):
            raise StoreError("has a list of shards that is none")
        shards = tuple(_shard(part.path.parent, each) for each in found)
        counts = {condition: part.n_rows(condition) for condition in part.columns}
        if shards and counts != {name: sum(each.rows.get(name, 0) for each in shards) for name in counts}:
            raise StoreError("has another number of rows than its shards together")
    for shard in shards:
        shard.check()
    return shards


def _shard(folder: Path, told: Any) -> Shard:
    match told:
        case {"file": str(file), "bytes": int(size), "manifest_sha256": str(sha256), "rows": dict(rows)}:
            if all(type(count) is int and count >= 0 for count in rows.values()) and "\0" not in file:
                return Shard(folder / file, size, sha256, rows)
    raise StoreError("has a shard of which it does not say file, bytes, checksum and rows")


def join_stores(
    path: str | os.PathLike[str], stores: Sequence[str | os.PathLike[str]], *, replace: bool = False
) -> None:
    """Write the file that joins the rows of several stores; activations stay where they are.

    The joined file finds them relative to its own folder, so all of them move together or not at all. Stores that are
    joined themselves are taken apart. Rows come in the order of the stores.

    Raises:
        StoreError: for stores that do not go together, ids that come twice, shards of one capture that are missing,
            or a file that exists, unless it may be replaced.
    """
    final = Path(path)
    if final.exists() and not replace:
        raise StoreError(f"{final} exists already; a store is never overwritten")
    parts = [part for store in stores for part in _taken_apart(Path(store))]
    try:
        if not parts:
            raise StoreError("nothing to join")
        schema = _common(parts)
        with as_store_error(final):
            final.parent.mkdir(parents=True, exist_ok=True)
        partial = layout.partial_of(final)
        with StoreFile(partial, schema) as file:
            for condition in schema.conditions:
                _write_condition(file, final.parent, condition, [part for part in parts if condition in part.columns])
            file.finish(final, replace=replace, shards=[_told(part, final.parent) for part in parts])
    finally:
        for part in parts:
            part.close()


def _taken_apart(path: Path) -> list[Part]:
    """A store's own shards, or itself; all shards of a folder."""
    if path.is_dir():
        files = sorted(path.glob("*.h5"))
        if not files:
            raise StoreError(f"{path} holds no shards")
        return [Part(file) for file in files]
    part = Part(path)
    shards = shards_of(part)
    if not shards:
        return [part]
    part.close()
    return [shard.open() for shard in shards]


def _common(parts: list[Part]) -> Schema:
    """The schema of all; where other items were asked for, all that were."""
    first = parts[0].schema
    allowed = {f"{name}:" for name in SELECTS_ITEMS}
    for part in parts[1:]:
        for difference in first.differences(part.schema):
            if difference.split(" ")[0] not in allowed:
                raise StoreError(f"{part.path} was captured otherwise than {parts[0].path}: {difference}")
    _check_whole(parts)
    merged: dict[str, Any] = {}
    for name in SELECTS_ITEMS:
        values = [part.schema.provenance.get(name) for part in parts]
        unlike = [value for k, value in enumerate(values) if value not in values[:k]]
        merged |= {name: unlike} if len(unlike) > 1 else {}
    return Schema(
        model=first.model, task=first.task, conditions=first.conditions, provenance={**first.provenance, **merged}
    )


def _check_whole(parts: list[Part]) -> None:
    """Raise `StoreError` if shards of a capture are missing, which says in each of them how many rows it has."""
    captures: dict[bytes, list[Part]] = {}
    for part in parts:
        captures.setdefault(part.schema.to_json(), []).append(part)
    for shards in captures.values():
        schema = shards[0].schema
        rows = schema.provenance.get("rows")
        for condition in schema.conditions if type(rows) is int else ():
            got = sum(shard.n_rows(condition) for shard in shards)
            if got != rows:
                raise StoreError(
                    f"{shards[0].path.parent} has {got} of {rows} rows of {condition}; the rest is missing"
                )


def _told(part: Part, folder: Path) -> dict[str, Any]:
    return {
        "file": Path(os.path.relpath(part.path, folder)).as_posix(),
        "bytes": part.path.stat().st_size,
        "manifest_sha256": part.sha256,
        "rows": {condition: part.n_rows(condition) for condition in part.columns},
    }


def _write_condition(file: StoreFile, folder: Path, condition: str, parts: list[Part]) -> None:
    table = Table()
    for part in parts:
        try:
            table.extend(table.check(part.rows(condition)))
        except StoreError as error:
            raise StoreError(f"{part.path} does not go with the stores before it: {error}") from error
    if not len(table):
        return
    for path, dtype, array in table.contents(condition):
        file.add(path, dtype, array)
    for virtual in _virtual(folder, condition, parts):
        file.add_virtual(virtual)


def _virtual(folder: Path, condition: str, parts: list[Part]) -> Iterator[Virtual]:
    """Every activation's values and lengths, end to end; rows of a file that lacks it have no tokens."""
    files = [Path(os.path.relpath(part.path, folder)).as_posix() for part in parts]
    for key, form in _forms(condition, parts).items():
        for name, dtype, feature in (("values", form.dtype, form.feature), ("lengths", _LENGTHS, ())):
            path = f"{layout.acts_path(condition, *key)}/{name}"
            held = [path in part.entries for part in parts]
            sizes = [int(part.entries[path]["shape"][0]) if path in part.entries else 0 for part in parts]
            if name == "lengths":
                sizes = [part.n_rows(condition) for part in parts]
            ends = np.cumsum(sizes).tolist()
            pieces = zip(held, ends, sizes, files, strict=True)
            sources = tuple(Source(end - size, end, file) for there, end, size, file in pieces if there and size)
            yield Virtual(path, dtype, (ends[-1], *feature), sources)


def _forms(condition: str, parts: list[Part]) -> dict[Key, Form]:
    forms: dict[Key, Form] = {}
    for part in parts:
        for key, form in part.cells.get(condition, {}).items():
            if forms.setdefault(key, form) != form:
                raise StoreError(f"{part.path} holds {' at '.join(key)} as {form}; a store before it as {forms[key]}")
    return forms


def check_virtual(part: Part, shards: Sequence[Part]) -> None:
    """Raise `StoreError` unless the virtual datasets show what the shards hold, and nothing else."""
    with reading(part.path):
        told = set(part.manifest["virtual"])
        for condition in part.columns if shards else ():
            held = [shard for shard in shards if condition in shard.columns]
            for each in _virtual(part.path.parent, condition, held):
                told.discard(each.path)
                if shown(part.virtual(each.path)) != list(each.sources):
                    raise StoreError(f"is damaged: {each.path!r} shows something else than its shards hold")
        if told:
            raise StoreError(f"is damaged: no shard holds {min(told)!r}")


def unfinished(path: Path) -> NoReturn:
    """Say why a store is not there: it never was, or its capture has not come to an end."""
    finished = len(list(layout.shard_folder(path).glob("*.h5"))) if layout.shard_folder(path).is_dir() else 0
    if not finished:
        raise StoreError(f"there is no store {path}")
    raise StoreError(
        f"{path} is not finished, only {finished} of its shards are: the same command continues it; each of them can "
        f"be opened alone, in {layout.shard_folder(path)}"
    )


def _counted(rows: dict[str, int]) -> str:
    return " and ".join(f"{count} rows of {condition}" for condition, count in rows.items())
