"""`seamscope store`: look at stored activations, check them, join them, give them to other tools."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from seamscope.activations import SHARDS, Store, export_store, finished_shards, is_whole, join_stores, open_store
from seamscope.hooks import StoreError

from . import _options as o
from ._amounts import count_text, ranges, size_text
from ._study import ACTIVATIONS

store_app = typer.Typer(help="Check, describe, join or export stored activations.", no_args_is_help=True)

_NUMBERED: Final = re.compile(r"((?:[^.]*\.)*?)(0|[1-9][0-9]*)((?:\..*)?)")
_LONGEST: Final = 40  # characters of a value that is shown

Place = Annotated[
    Path, typer.Argument(help="A store's file, one of its shards, or the folder of a run.", show_default=False)
]
Names = list[str] | None


@store_app.command()
@o.one_line_errors
def verify(path: Place, as_json: o.AsJson = False) -> None:
    """Read all of a store and compare it with the checksums taken when it was written.

    Exit code 1: something differs. 2: it cannot be opened: no store, not finished, or without its shards.
    """
    with open_store(file_of(path)) as store:
        found: dict[str, Any] = {"store": store.path, "files": 1 + len(store.shards), "bytes": store.nbytes}
        try:
            found["datasets"] = store.verify(progress=o.on_a_terminal() and not as_json)
            damage = None
        except StoreError as error:
            damage = " ".join(str(error).split())
    if as_json:
        o.emit({**found, "healthy": damage is None, "damage": damage})
    else:
        files, size = count_text(found["files"], "file"), size_text(found["bytes"])
        o.show(damage or f"{store.path}: {files}, {found['datasets']} datasets, {size}: all as they were written")
    if damage is not None:
        raise typer.Exit(1)


@store_app.command()
@o.one_line_errors
def info(path: Place, as_json: o.AsJson = False) -> None:
    """Say what a store holds: model, task, rows, sites, spans, types, size, and how it was made.

    Of a store that is not finished: how many of its shards are there, and what continues it.
    """
    found = describe(file_of(path))
    o.emit(found) if as_json else o.show(_text(found))


@store_app.command()
@o.one_line_errors
def merge(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Stores, folders of runs, or .shards folders.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file that joins them.", show_default=False)],
    as_json: o.AsJson = False,
) -> None:
    """Join stores that were captured alike, but of other items, into one.

    No activations are copied: the new file points to those of the others, so all of them move together or not at all.

    Rows come in the order of the stores; an id may come once only.
    """
    join_stores(out, [path if path.suffix == SHARDS else _existing(file_of(path)) for path in paths])
    with open_store(out) as store:
        rows, shards = {name: store.n_rows(name) for name in store.conditions}, len(store.shards)
    if as_json:
        return o.emit({"store": out, "rows": rows, "shards": shards})
    o.show(f"{out}: {_rows_text(rows)}, {count_text(shards, 'shard')}, which must stay where they are")


@store_app.command()
@o.one_line_errors
def export(
    path: Place,
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder.", show_default=False)],
    to: Annotated[str, typer.Option(help="safetensors, or zarr (needs the package zarr).")] = "safetensors",
    conditions: Annotated[Names, typer.Option(help="Conditions or globs; repeatable. All, if none is given.")] = None,
    sites: Annotated[Names, typer.Option(help="Sites or globs such as 'lm.*.resid_post'; repeatable.")] = None,
    spans: Annotated[Names, typer.Option(help="Spans or globs such as 'image.object.*'; repeatable.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Copy activations, bit for bit, into a folder that other tools read.

    safetensors: conditions/CONDITION/acts/SITE.safetensors, each with the tensors SPAN.values and SPAN.lengths.

    Beside them: conditions/CONDITION/rows.jsonl, schema.json, and index.json, which says where everything is.

    zarr: a group with conditions/CONDITION/acts/SITE/SPAN/values, /lengths, conditions/CONDITION/rows/COLUMN/values.

    Schema and index are its attributes; bfloat16 is there as uint16, as the attribute dtype says.

    values: the tokens of all rows, end to end; lengths: how many of them each row has.

    Names of files have %XX for what is no small letter or digit; the index has the names as they are.
    """
    with open_store(file_of(path)) as store:
        progress = o.on_a_terminal() and not as_json
        export_store(store, out, form=to, conditions=conditions, sites=sites, spans=spans, progress=progress)
    files = [file for file in out.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    if as_json:
        return o.emit({"export": out, "to": to, "files": len(files), "bytes": size})
    o.show(f"{out}: {to}, {count_text(len(files), 'file')}, {size_text(size)}")


def file_of(path: Path) -> Path:
    """The file that a path names: itself, or the store of a run's folder, or that of a folder of shards."""
    if path.suffix == SHARDS:
        return path.with_suffix(Path(ACTIVATIONS).suffix)
    return path / ACTIVATIONS if path.is_dir() else path


def _existing(file: Path) -> Path:
    """Refuse a store that is not there; the reader says why."""
    if not file.exists():
        open_store(file).close()
    return file


def describe(file: Path) -> dict[str, Any]:
    """What a store holds; if it is not finished, what its first shard does, and how many of them there are."""
    finished = list(finished_shards(file).values())
    if not finished or is_whole(file):
        with open_store(file) as store:
            shards = [{"file": each.path, "bytes": each.bytes, "rows": each.rows} for each in store.shards]
            return {"store": file, "finished": True, **_described(store), "shards": shards}
    with open_store(finished[0]) as first:
        found: dict[str, Any] = {"store": file, "finished": False, **_described(first)}
    made = [_shard(each) for each in finished]
    found["rows"] = {name: sum(each["rows"].get(name, 0) for each in made) for name in found["rows"]}
    found["bytes"] = sum(each["bytes"] for each in made)
    return {**found, "shards": made, "planned_shards": _planned(found["provenance"]), "continue": _continuing(file)}


def _described(store: Store) -> dict[str, Any]:
    """All but the files."""
    rows = {name: store.n_rows(name) if name in store.conditions else 0 for name in store.schema.conditions}
    cells = [(site, span, name) for name in store.conditions for site, span in store.cells(name)]
    types = [str(store.read(*cell, rows=[]).values.dtype).removeprefix("torch.") for cell in cells]
    return {
        "model": store.schema.model,
        "task": store.schema.task,
        "rows": rows,
        "sites": store.sites,
        "spans": store.spans,
        "types": list(dict.fromkeys(types)),
        "bytes": store.nbytes,
        "made_with": store.made_with,
        "provenance": store.provenance,
    }


def _shard(file: Path) -> dict[str, Any]:
    with open_store(file) as shard:
        return {"file": file, "bytes": shard.nbytes, "rows": {name: shard.n_rows(name) for name in shard.conditions}}


def _planned(provenance: Mapping[str, Any]) -> int | None:
    """How many shards a store will have, as each of them says."""
    rows, of_each = (provenance.get(name) for name in ("rows", "rows_per_shard"))
    return -(-rows // of_each) if type(rows) is int and type(of_each) is int and of_each > 0 else None


def _continuing(file: Path) -> str | None:
    """The command that makes the rest of a store, if its run says so."""
    from ._run import SETTINGS_FILE, Settings, settings_of

    if file.name != ACTIVATIONS or not (file.parent / SETTINGS_FILE).exists():
        return None
    asked, usual = asdict(settings_of(file.parent)), asdict(Settings())
    words = ["seamscope", "capture"]
    for name, value in asked.items():
        given = () if value == usual[name] else value if isinstance(value, tuple) else (value,)
        words += [word for each in given for word in ("--" + name.replace("_", "-"), str(each))]
    return shlex.join([*words, "--out", str(file.parent)])


def collapsed(names: Sequence[str]) -> list[str]:
    """Names that differ in one number only, as one: `lm.0..3,7.resid_post`."""
    numbers: dict[tuple[str, str], list[int]] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        numbers.setdefault((match[1], match[3]) if match else (name, ""), []).extend([int(match[2])] if match else [])
    return [before + ranges(held, to="..", then=",") + after for (before, after), held in numbers.items()]


def _text(found: Mapping[str, Any]) -> str:
    """A description for a reader."""
    shards = count_text(len(found["shards"]), "shard")
    files = f"{shards} and the file that joins them" if found["shards"] else "one file"
    lines = {
        "model": found["model"],
        "task": found["task"],
        "rows": _rows_text(found["rows"]) + _beyond(found),
        "sites": _listed(found["sites"]),
        "spans": _listed(found["spans"]),
        "types": ", ".join(found["types"]),
        "size": f"{size_text(found['bytes'])} in {files if found['finished'] else shards}",
        "made with": "; ".join(filter(None, map(_pairs, found["made_with"]))),
        "provenance": _pairs(found["provenance"], said=("model", "task")) + "; all of it with --json",
    }
    if not found["finished"]:
        of = "" if found["planned_shards"] is None else f"of {found['planned_shards']} "
        command = found["continue"] or "the command that began it"
        lines["not finished"] = f"{len(found['shards'])} {of}shards are there; what continues it: {command}"
    return "\n".join([str(found["store"]), *(f"{name:13} {text}" for name, text in lines.items() if text)])


def _rows_text(rows: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {name}" for name, count in rows.items())


def _beyond(found: Mapping[str, Any]) -> str:
    """Of which store a file is a shard, if it is one."""
    whole = found["provenance"].get("rows", 0)
    alone = not found["shards"] and whole not in (0, *found["rows"].values())
    return f"; one shard of a store of {whole}" if alone else ""


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(collapsed(names))}"


def _plain(value: Any) -> str:
    """A value as text; of several stores that were joined, one after another."""
    if not isinstance(value, list):
        return str(value)
    return "+".join(map(str, value)) if all(isinstance(each, int) for each in value) else " " * (_LONGEST + 1)


def _pairs(content: Mapping[str, Any], said: Sequence[str] = ()) -> str:
    """What has a short value, as text, but for what was said before."""
    plain = {name: _plain(value) for name, value in content.items() if not isinstance(value, dict)}
    return ", ".join(f"{name} {text}" for name, text in plain.items() if name not in said and len(text) <= _LONGEST)
