"""A store's content in forms that other tools read: safetensors files, or a zarr group."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Final

from tqdm import tqdm

from seamscope.activations import _layout as layout
from seamscope.activations import _trust as trust
from seamscope.activations._bits import Array
from seamscope.activations._columns import to_cells
from seamscope.activations._file import as_store_error
from seamscope.activations._joined import Shard
from seamscope.activations._part import Part, reading
from seamscope.activations._partial import new_folder
from seamscope.activations._sinks import Columns, Index, Safetensors, Sink, Tensor, Zarr
from seamscope.activations._store import Store
from seamscope.hooks import SeamscopeError, SpanError, StoreError, choose, expand_sites

Names = str | Iterable[str] | None

FORMS: Final[dict[str, Callable[[Path, Sequence[Tensor]], Sink]]] = {"safetensors": Safetensors, "zarr": Zarr}


def export_store(
    store: Store,
    path: str | os.PathLike[str],
    *,
    form: str = "safetensors",
    conditions: Names = None,
    sites: Names = None,
    spans: Names = None,
    progress: bool = False,
) -> None:
    """Write what a store holds, or some of it, into a new folder that appears when it is complete.

    As `safetensors` it has a file of each condition and site, with the tensors `<span>.values` and `<span>.lengths`,
    a table of each condition's rows as JSON lines, `schema.json`, and `index.json`, which says where everything is.
    As `zarr` it is a group with the layout of our own file, schema and index among its attributes. Memory stays flat,
    and what is read is compared with its checksums.

    Args:
        store: an open store.
        path: the folder.
        form: `safetensors` or `zarr` (needs the package zarr).
        conditions, sites, spans: names or globs such as `lm.*.resid_post`; everything, if there are none.
        progress: show a progress bar.

    Raises:
        SiteError, SpanError, StoreError: for an unknown name, a folder that exists or cannot be written, or a store
            that is damaged. Nothing is left of the folder then.
    """
    make = FORMS[choose("form", form, FORMS, StoreError)]
    names = _matching("condition", conditions, store.conditions, StoreError)
    with closing(Part(store.path)) as whole:
        tensors = _chosen(store, whole, names, sites, spans)
        for part in _parts(whole, store.shards):
            _check_held(part, tensors)
        tables = {name: _table(store, whole, name) for name in names}
        with _appearing(Path(path)) as folder:
            sink = make(folder, tensors)
            for condition, columns in tables.items():
                sink.table(condition, columns)
            total = sum(tensor.nbytes for tensor in tensors)
            with tqdm(total=total, desc="export", unit="B", unit_scale=True, disable=not progress) as bar:
                for tensor, start, block in _stream(_parts(whole, store.shards), tensors):
                    sink.write(tensor, start, block)
                    bar.update(block.nbytes)
            sink.finish(store.schema, _index(sink, tables, tensors))


def _index(sink: Sink, tables: dict[str, Columns], tensors: Sequence[Tensor]) -> Index:
    """Where everything is, by the names that it has in the store."""
    found: Index = {name: {"rows": sink.places(name, columns), "acts": {}} for name, columns in tables.items()}
    for tensor in tensors:
        found[tensor.condition]["acts"].setdefault(tensor.site, {})[tensor.span] = sink.place(tensor)
    return {layout.CONDITIONS: found}


def _matching(what: str, patterns: Names, known: Sequence[str], error: type[SeamscopeError]) -> tuple[str, ...]:
    """Those of the known names that fit a name or glob, in their order; `error` for one that fits none."""
    found: set[str] = set()
    for pattern in known if patterns is None else [patterns] if isinstance(patterns, str) else patterns:
        hits = [name for name in known if fnmatchcase(name, pattern)]
        found.update(hits or [choose(what, pattern, known, error)])
    return tuple(name for name in known if name in found)


def _chosen(store: Store, whole: Part, conditions: Sequence[str], sites: Names, spans: Names) -> list[Tensor]:
    """The tensors of the cells that were asked for."""
    wanted = set(store.sites if sites is None else expand_sites(sites, store.sites))
    at = set(_matching("span", spans, store.spans, SpanError))
    with reading(whole.path):
        found = [
            Tensor(condition, site, span, kind, entry["dtype"], tuple(entry["shape"]))
            for condition in conditions
            for site, span in store.cells(condition)
            for kind in ("values", "lengths")
            if site in wanted and span in at
            for entry in [whole.entries[f"{layout.acts_path(condition, site, span)}/{kind}"]]
        ]
    if not found and store.sites:
        raise StoreError(f"{store.path} has none of these sites at these spans under {', '.join(conditions)}")
    return found


def _table(store: Store, whole: Part, condition: str) -> Columns:
    """The rows of a condition, after they were compared with their checksums."""
    for path in whole.manifest["datasets"]:
        if path.startswith(f"/{layout.CONDITIONS}/{condition}/rows/"):
            for _ in _blocks(whole, path):
                pass
    table = store.rows(condition)
    return {str(name): to_cells(str(name), table[name]) for name in table}


def _parts(whole: Part, shards: Sequence[Shard]) -> Iterator[Part]:
    """The files that hold the activations, one after another."""
    if not shards:
        yield whole
    for shard in shards:
        with closing(shard.open()) as part:
            yield part


def _stream(parts: Iterable[Part], tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, int, Array]]:
    """All bits of the tensors in blocks of bounded size, each with the place where it belongs."""
    filled: Counter[Tensor] = Counter()
    for part in parts:
        for tensor in tensors:
            if tensor.path not in part.entries:  # its rows have no tokens
                filled[tensor] += part.n_rows(tensor.condition) if tensor.kind == "lengths" else 0
                continue
            _check_fits(part, tensor, filled[tensor])
            for block in _blocks(part, tensor.path):
                yield tensor, filled[tensor], block != 0 if tensor.dtype == "bool" else block
                filled[tensor] += len(block)
    short = [tensor.path for tensor in tensors if filled[tensor] != tensor.shape[0]]
    if short:
        raise StoreError(f"the store is damaged: its shards do not hold all of {short[0]!r}")


def _check_held(part: Part, tensors: Sequence[Tensor]) -> None:
    """Raise `StoreError` unless a file holds as much of every tensor as it says, before room is taken for it."""
    for path in [tensor.path for tensor in tensors if tensor.path in part.entries]:
        with reading(part.path):
            part.dataset(path)


def _check_fits(part: Part, tensor: Tensor, start: int) -> None:
    """Raise `StoreError` unless what a file has of a tensor is of its kind, and has room in it."""
    entry = part.entries[tensor.path]
    rows, *feature = entry["shape"]
    if (entry["dtype"], tuple(feature)) != (tensor.dtype, tensor.shape[1:]) or start + rows > tensor.shape[0]:
        raise StoreError(f"{part.path} is damaged: its {tensor.path!r} does not go with the store")
    if tensor.kind == "lengths":
        part.lengths(tensor.condition, (tensor.site, tensor.span))


def _blocks(part: Part, path: str) -> Iterator[Array]:
    """A dataset in pieces of bounded size; at its end, `StoreError` if it differs from its checksum."""
    digest = sha256()
    with reading(part.path):
        for block in trust.blocks(part.dataset(path)):
            digest.update(block.tobytes())
            yield block
        if digest.hexdigest() != part.entries[path].get("sha256"):
            raise StoreError(f"is damaged: dataset {path!r} differs from its checksum")


@contextmanager
def _appearing(final: Path) -> Iterator[Path]:
    """A folder that gets its name when the block has succeeded; otherwise nothing of it is left."""
    if os.path.lexists(final):
        raise StoreError(f"{final} exists already; an export is never written over anything")
    partial = layout.partial_of(final)
    new = [folder for folder in final.parents if not folder.exists()]
    with as_store_error(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            with new_folder(partial):
                yield partial
                os.rename(partial, final)
        except BlockingIOError:
            raise StoreError(f"another process exports to this place: it is writing {partial}") from None
        except FileExistsError:
            raise StoreError(f"{partial} was left by an export that was ended early; delete it") from None
        except BaseException:
            for folder in new:
                with suppress(OSError):
                    folder.rmdir()
            raise
