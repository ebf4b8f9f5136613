"""A store that is made shard by shard, by one process or by several, now or later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seamscope.activations import _layout as layout
from seamscope.activations._compression import check_compression
from seamscope.activations._file import as_store_error
from seamscope.activations._join import join_stores
from seamscope.activations._part import Part
from seamscope.activations._partial import remove_left
from seamscope.activations._schema import Schema
from seamscope.activations._writer import StoreWriter
from seamscope.hooks import StoreError


def planned_rows_per_shard(path: str | os.PathLike[str]) -> int | None:
    """How many rows the shards of a store have, if any of them is finished."""
    store = layout.store_path(path)
    with as_store_error(store):
        finished = layout.finished_shards(store)
    if not finished:
        return None
    with closing(_opened(next(iter(finished.values())))) as part:
        found = part.schema.provenance.get("rows_per_shard")
    return found if type(found) is int and found > 0 else None


def fitting_rows_per_shard(row_bytes: float, rows: int) -> int:
    """How many rows a shard should have, of rows that take so many bytes each.

    A shard is in memory until it is written, and so are the pictures of its rows; it is lost as a whole; and each costs
    a little time to join. So they are a 64th of the store, but no less than 2^25 and no more than 2^28 bytes, and 8 to
    256 rows: a power of two, so that sizes that differ a little from one machine to another give the same.
    """
    fitting = int(min(max(row_bytes * rows / 64, 2**25), 2**28) // max(row_bytes, 1))
    return min(256, max(8, 1 << (fitting.bit_length() - 1 if fitting else 0)))


class Shards:
    """The shards of one store, and which of them are still to be made; use it in a `with` block.

    Shard k holds rows k · `rows_per_shard` and those after it, under every condition, and is a store itself. It gets
    its name when it is complete, so it is there as a whole or not at all, and is never made twice. Which process makes
    it, and when, does not show in it.

    Args:
        path: the store; its shards are in the folder of the same name that ends in `.shards`.
        schema: what the store holds. The shards that are there must have been made under the same.
        rows: how many rows every condition will have.
        rows_per_shard: how many of them a shard has, but for the last one.
        part: (i, n): this process makes every n-th shard, from the i-th on.
        compression: as for `create_store`.

    Raises:
        StoreError: if the shards that are there are of another store, or damaged. On entering: if another process
            makes this part.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: Schema,
        *,
        rows: int,
        rows_per_shard: int,
        part: tuple[int, int] = (0, 1),
        compression: str | None = None,
    ) -> None:
        if not (rows > 0 and rows_per_shard > 0):
            raise StoreError(f"a store needs rows, and shards of some: got {rows} and {rows_per_shard}")
        if not 0 <= part[0] < part[1]:
            raise StoreError(f"part {part[0]} of {part[1]} does not exist: parts are counted from 0 to {part[1] - 1}")
        check_compression(compression)
        self.path = layout.store_path(path)
        self.folder = layout.shard_folder(self.path)
        plan = {"rows": rows, "rows_per_shard": rows_per_shard}
        self.schema = replace(schema, provenance={**schema.provenance, **plan}).stamped()
        self.count = -(-rows // rows_per_shard)
        self._rows, self._per_shard, self._part, self._compression = rows, rows_per_shard, part, compression
        self._created = False
        self._lock = FileLock(self.folder / f".{self._own}.lock", timeout=0)
        self._check()

    @property
    def _own(self) -> str:
        return f"{self._part[0]}-of-{self._part[1]}"

    def rows_of(self, number: int) -> range:
        """Which rows a shard holds."""
        begin = number * self._per_shard
        return range(begin, min(begin + self._per_shard, self._rows))

    def finished(self) -> list[int]:
        """Shards that are there, of all parts."""
        return list(self._there())

    def _there(self) -> dict[int, Path]:
        with as_store_error(self.folder):
            return layout.finished_shards(self.path)

    def missing(self) -> list[int]:
        """Shards of this part that are still to be made."""
        there = set(self.finished())
        return [number for number in range(self._part[0], self.count, self._part[1]) if number not in there]

    def create(self, number: int, made_with: Mapping[str, Any] | None = None) -> StoreWriter:
        """Begin a shard. `made_with` notes what does not change results beyond rounding, such as the device."""
        if number not in range(self.count):
            raise StoreError(f"there is no shard {number}: the store has shards 0 to {self.count - 1}")
        self._created = True
        return StoreWriter(
            layout.shard_file(self.path, number),
            self.folder / f".{number:05d}.{self._own}{layout.PARTIAL}",
            self.schema,
            compression=self._compression,
            made_with=made_with,
            rows=len(self.rows_of(number)),
            taken="keep",  # parts cut otherwise may make it too, and make the same
        )

    def join(self) -> bool:
        """Write the file that joins all shards, if all are there; tells whether it is there now."""
        if len(self.finished()) < self.count:
            return False
        with as_store_error(self.path), FileLock(self.folder / ".join.lock"):
            self._check()
            self._tidy()  # before the file has its name, after which nobody looks here any more
            if self._created or not self.path.exists():  # a shard that was lost may be another now, beyond rounding
                join_stores(self.path, [self.folder], replace=True)
        return True

    def _tidy(self) -> None:
        """Remove what killed processes left; one that still makes a shard finds that it is there already."""
        for left in self.folder.glob(f".*{layout.PARTIAL}"):
            left.unlink(missing_ok=True)
        with suppress(BlockingIOError):
            remove_left(layout.partial_of(self.path))

    def __enter__(self) -> Shards:
        with as_store_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout:
                raise StoreError(
                    f"{self.folder}: part {self._part[0]} of {self._part[1]} is being written by another process; "
                    "wait for it, or give each process a part of its own"
                ) from None
            for left in self.folder.glob(f".*.{self._own}{layout.PARTIAL}"):  # by a process that was killed
                left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _check(self) -> None:
        """Refuse what is there if it is not of this store."""
        shards = self._there()
        joined = [self.path] if self.path.exists() else []
        for file in [*joined, *shards.values()]:
            with closing(_opened(file)) as part:
                differences = self.schema.differences(part.schema)
            if differences:
                told = "; ".join(differences[:4]) + ("; …" if len(differences) > 4 else "")
                raise StoreError(f"{file} was captured otherwise ({told}); choose another place, or delete it")
        for number in [number for number in shards if number >= self.count]:
            raise StoreError(f"{shards[number]} does not belong there: the store has shards 0 to {self.count - 1}")


def _opened(file: Path) -> Part:
    try:
        return Part(file)
    except StoreError as error:
        told = "choose another place, or delete it, and the same command makes it again"
        raise StoreError(f"{error}; {told}") from error
