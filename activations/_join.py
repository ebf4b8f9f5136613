"""One file that joins several: their tables are copied, their activations stay where they are."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from seamscope.activations import _layout as layout
from seamscope.activations._file import StoreFile, as_store_error
from seamscope.activations._joined import Shard, shards_of
from seamscope.activations._part import Part
from seamscope.activations._partial import Partial
from seamscope.activations._rows import Table
from seamscope.activations._schema import Schema
from seamscope.activations._virtual import Contents
from seamscope.hooks import StoreError

# in what stores that are merged may differ: which items were asked for, as the prompts show, and how they were cut
SELECTS_ITEMS: Final = ("n", "seed", "prompts", "rows", "rows_per_shard")
_MOST: Final = 100_000  # shards that are looked for by name


def join_stores(
    path: str | os.PathLike[str], stores: Sequence[str | os.PathLike[str]], *, replace: bool = False
) -> None:
    """Write the file that joins the rows of several stores; activations stay where they are.

    The joined file finds them relative to its own folder, so all of them move together or not at all. Stores that are
    joined themselves are taken apart; a folder stands for all stores in it. Rows come in the order of the stores.

    Raises:
        StoreError: for stores that do not go together, ids that come twice, shards of one capture that are missing,
            or a file that exists, unless it may be replaced and is none of the stores.
    """
    final = layout.store_path(path)
    if os.path.lexists(final) and not replace:
        raise StoreError(f"{final} exists already; a store is never overwritten")
    joining = _Joining(final)
    for store in stores:
        for shard in _taken_apart(Path(store)):
            joining.add(shard)
    joining.write(replace=replace)


def _taken_apart(path: Path) -> list[Path | Shard]:
    """A store's own shards, or itself; those of all stores of a folder."""
    if path.is_dir():
        files = sorted(path.glob("*.h5"), key=lambda file: (file.stem.isdecimal() and len(file.stem), file.name))
        if not files:
            raise StoreError(f"{path} holds no shards")
        return [shard for file in files for shard in _taken_apart(file)]
    with closing(Part(path)) as part:
        return [*shards_of(part)] or [path]


class _Joining:
    """What a joined file will hold; its parts are opened one at a time, and all that is kept is what it takes."""

    def __init__(self, final: Path) -> None:
        self._final = final
        self._contents = Contents()
        self._tables: dict[str, Table] = {}
        self._shards: list[dict[str, Any]] = []
        self._schemas: dict[bytes, Schema] = {}
        self._counts: dict[bytes, dict[str, int]] = {}  # rows of each condition that the parts of one capture have
        self._paths: dict[bytes, Path] = {}

    def add(self, store: Path | Shard) -> None:
        with closing(Part(store) if isinstance(store, Path) else store.open()) as part:
            if os.path.lexists(self._final) and part.path.samefile(self._final):
                raise StoreError(f"{self._final} is one of the stores to join; give the joined file another name")
            self._add_schema(part)
            file = _relative(part.path, self._final.parent)
            self._contents.add(part, file)
            for condition in part.columns:
                self._add_table(part, condition)
            rows = {condition: part.n_rows(condition) for condition in part.columns}
            size = part.path.stat().st_size
            self._shards.append({"file": file, "bytes": size, "manifest_sha256": part.sha256, "rows": rows})

    def _add_schema(self, part: Part) -> None:
        raw = part.schema.to_json()
        for first, schema in list(self._schemas.items())[: raw not in self._schemas]:
            for difference in schema.differences(part.schema):
                if difference.split(":")[0].split(".")[0] not in SELECTS_ITEMS:
                    raise StoreError(f"{part.path} was captured otherwise than {self._paths[first]}: {difference}")
        self._schemas.setdefault(raw, part.schema)
        self._paths.setdefault(raw, part.path)
        counts = self._counts.setdefault(raw, dict.fromkeys(part.schema.conditions, 0))
        for condition in part.columns:
            counts[condition] = counts.get(condition, 0) + part.n_rows(condition)

    def _add_table(self, part: Part, condition: str) -> None:
        table = self._tables.setdefault(condition, Table())
        try:
            table.extend(table.check(part.rows(condition)))
        except StoreError as error:
            raise StoreError(f"{part.path} does not go with the stores before it: {error}") from error

    def write(self, *, replace: bool) -> None:
        if not self._shards:
            raise StoreError("nothing to join")
        self._check_whole()
        schema = self._schema()
        held = {name: self._tables[name] for name in schema.conditions if name in self._tables}
        with as_store_error(self._final):
            self._final.parent.mkdir(parents=True, exist_ok=True)
            partial = Partial(layout.partial_of(self._final))
        with StoreFile(partial, schema, sealed=True) as file:
            contents = [content for name, table in held.items() for content in table.contents(name)]
            paths = [path for path, _, _ in contents] + self._contents.paths
            file.reserve(sum(array.nbytes for _, _, array in contents) + self._contents.links, paths)
            for content in contents:
                file.add(*content)
            for condition in held:
                for virtual in self._contents.virtual(condition):
                    file.add_virtual(virtual)
            file.finish(self._final, taken="replace" if replace else "refuse", shards=self._shards)

    def _check_whole(self) -> None:
        """Raise `StoreError` if shards of a capture are missing, which says in each of them how many rows it has."""
        for raw, schema in self._schemas.items():
            rows = schema.provenance.get("rows")
            for condition, got in self._counts[raw].items() if type(rows) is int else ():
                if got != rows:
                    folder = self._paths[raw].parent
                    lost = _lost(folder, rows, schema.provenance.get("rows_per_shard"))
                    raise StoreError(f"{folder} has {got} of {rows} rows of {condition}; {lost}")

    def _schema(self) -> Schema:
        """The schema of all; where other items were asked for, all that were."""
        first, *_ = self._schemas.values()
        merged: dict[str, Any] = {}
        for name in SELECTS_ITEMS:
            values = [schema.provenance.get(name) for schema in self._schemas.values()]
            unlike = [value for k, value in enumerate(values) if value not in values[:k]]
            added_up = name in ("n", "rows") and len(values) > 1 and values[0] is not None
            merged |= {name: values} if added_up else {name: unlike} if len(unlike) > 1 else {}
        return dataclasses.replace(first, provenance={**first.provenance, **merged})


def _lost(folder: Path, rows: Any, rows_per_shard: Any) -> str:
    """Which shards a folder lacks, by the names that they have where they were made."""
    if type(rows_per_shard) is not int or rows_per_shard < 1 or rows // rows_per_shard > _MOST:
        return "the rest is missing"
    names = [f"{number:05d}.h5" for number in range(-(-rows // rows_per_shard))]
    lost = [name for name in names if not (folder / name).is_file()]
    told = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
    return f"missing: {told}" if lost else "the rest is missing"


def _relative(path: Path, folder: Path) -> str:
    """The path that leads from a folder to a file, also where folders are links."""
    real, plain = folder.resolve(), os.path.relpath(path, folder)
    if os.path.realpath(real / plain) != os.path.realpath(path):  # there is a link to another place on the way
        plain = os.path.relpath(path.parent.resolve() / path.name, real)
    return Path(plain).as_posix()
