"""The shards of a file that joins several: found, and compared with what it says of them."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from seamscope.activations import _layout as layout
from seamscope.activations._layout import is_text
from seamscope.activations._part import Part, reading
from seamscope.activations._virtual import Contents, shown
from seamscope.hooks import StoreError

_AGAIN: Final = "and the same capture makes it again"


@dataclass(frozen=True)
class Shard:
    """A file whose rows a store joins: its name there, its path, size and checksum, and rows of each condition."""

    name: str
    path: Path
    bytes: int
    sha256: str
    rows: dict[str, int]

    def check(self) -> None:
        """Raise `StoreError` unless a file of that size is there: HDF5 would give zeros in place of a lost one."""
        if not os.path.isfile(self.path):
            told = f"which holds {_counted(self.rows)} of the store"
            raise StoreError(f"{self.path} is missing, {told}; bring it back, or repeat the capture")
        found = self.path.stat().st_size
        if found != self.bytes:
            told = f"it has {found} bytes, and had {self.bytes} when it was joined"
            raise StoreError(f"{self.path} is damaged: {told}; delete it, {_AGAIN}")

    def open(self) -> Part:
        """Open the file; `StoreError` if it is another than the one that was joined."""
        self.check()
        part = Part(self.path)
        try:
            if part.sha256 != self.sha256:
                raise StoreError(f"{self.path} is not the file that was joined: its checksum is another")
            if {condition: part.n_rows(condition) for condition in part.columns} != self.rows:
                raise StoreError(f"{self.path} has not {_counted(self.rows)}, as the joined file says")
        except BaseException:
            part.close()
            raise
        return part


def is_whole(path: Path) -> bool:
    """Whether a store is there with all of its shards; what is wrong with them is told when it is opened."""
    if not path.exists():
        return False
    with closing(Part(path)) as part:
        return all(shard.path.is_file() for shard in _told(part))


def shards_of(part: Part) -> tuple[Shard, ...]:
    """The shards that a file joins, after all were found to be there."""
    shards = _told(part)
    for shard in shards:
        shard.check()
    return shards


def _told(part: Part) -> tuple[Shard, ...]:
    """The shards that a file says it joins, where they should be."""
    found = part.manifest.get("shards", [])
    with reading(part.path):
        if not isinstance(found, list):
            raise StoreError("has a list of shards that is none")
        # beside the file's name, or beside the file itself if that name is a link to it
        folders = (part.path.parent, part.path.resolve().parent)
        places = [tuple(_shard(folder, each) for each in found) for folder in folders]
        shards = next((each for each in places if each and each[0].path.is_file()), places[0])
        counts = {condition: part.n_rows(condition) for condition in part.columns}
        if shards and counts != {name: sum(each.rows.get(name, 0) for each in shards) for name in counts}:
            raise StoreError("has another number of rows than its shards together")
    return shards


def _shard(folder: Path, told: Any) -> Shard:
    match told:
        case {"file": str(file), "bytes": int(size), "manifest_sha256": str(sha256), "rows": dict(rows)}:
            if all(type(count) is int and count >= 0 for count in rows.values()) and "\0" not in file and is_text(file):
                return Shard(file, folder / file, size, sha256, rows)
    raise StoreError("has a shard of which it does not say file, bytes, checksum and rows")


def check_virtual(part: Part, contents: Contents) -> None:
    """Raise `StoreError` unless the virtual datasets show what the shards hold, and nothing else."""
    with reading(part.path):
        if contents.files:
            part.check_seal()
        told = set(part.manifest["virtual"])
        for condition in part.columns if contents.files else ():
            for each in contents.virtual(condition):
                told.discard(each.path)
                if shown(part.virtual(each.path)) != list(each.sources):
                    raise StoreError(f"is damaged: {each.path!r} shows something else than its shards hold")
        if told:
            raise StoreError(f"is damaged: no shard holds {min(told)!r}")


def unfinished(path: Path) -> NoReturn:
    """Say why a store is not there: it never was, or its capture has not come to an end."""
    finished = len(layout.finished_shards(path))
    if not finished:
        raise StoreError("is not there")
    raise StoreError(
        f"is not finished, shards of it are ({finished}): the same command continues it; each of them can be opened "
        f"alone, in {layout.shard_folder(path)}"
    )


def _counted(rows: dict[str, int]) -> str:
    return " and ".join(f"{count} rows of {condition}" for condition, count in rows.items())
