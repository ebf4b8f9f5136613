"""`seamscope capture`: alone, as one of several, or sent to a cluster."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import torch
import typer

from seamscope.hooks import RunError, choose

from . import _options as o
from ._amounts import count_text, size_text, time_text

if TYPE_CHECKING:
    from ._capture import Forecast
    from ._run import Settings
    from ._study import Study

AUTO: Final = "auto"
SLURM: Final = "slurm"
JOBS: Final = 4
# who tells a process which of how many it is, the first that does; SLURM counts from where the user began
RANKS: Final = (
    ("RANK", "WORLD_SIZE", None),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
)

Pool = Annotated[str, typer.Option(help="mean or last: one vector for each object or span; none: every token.")]
Compression = Annotated[str, typer.Option(help="none or bitshuffle (with LZ4): smaller files, slower.")]
RowsPerShard = Annotated[
    int, typer.Option(min=0, help="Items and partners in one file, which is lost as a whole or not at all; 0: chosen.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how much it takes, and write nothing.")]
Part = Annotated[
    str,
    typer.Option(
        "--shard",
        help="i/n: make every n-th shard, from the i-th on, counted from 0; auto: as torchrun or a SLURM array says.",
    ),
]
Submit = Annotated[str | None, typer.Option(help="slurm: run as a job array, and come back at once.")]
Jobs = Annotated[
    int | None, typer.Option(min=1, help=f"How many tasks the job array has; {JOBS}, if not said.", show_default=False)
]
Slurm = Annotated[
    list[str] | None, typer.Option("--slurm", help="KEY=VALUE for SLURM, such as partition=gpu or time=60; repeatable.")
]


def part_of(text: str) -> tuple[int, int]:
    """Which part of how many a process makes: `i/n`, or what its environment says."""
    if text == AUTO:
        for number, count, first in RANKS:
            if number in os.environ and count not in os.environ:
                raise RunError(f"--shard auto: the environment has {number}, but no {count}; say --shard i/n")
            if number in os.environ:
                return _checked(_number(number) - (_number(first) if first else 0), _number(count), text)
        return 0, 1
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None:
        raise RunError(f"--shard is {text!r}; expected i/n, such as 0/4, or auto")
    return _checked(int(match[1]), int(match[2]), text)


def _checked(number: int, count: int, text: str) -> tuple[int, int]:
    if not 0 <= number < count:
        gaps = "; an array must be numbered without gaps" if text == AUTO else ""
        raise RunError(f"--shard {text}: part {number} of {count} does not exist; parts are counted from 0{gaps}")
    return number, count


def _number(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdigit():
        raise RunError(f"--shard auto: the environment variable {name} is {text!r}, which is no number")
    return int(text)


def device_of(device: str) -> str:
    """With several processes on one machine, as torchrun starts them, each takes a GPU of its own."""
    own = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{own}" if device == AUTO and own.isdigit() and torch.cuda.is_available() else device


def run(study: Study, *, part: tuple[int, int], dry_run: bool, as_json: bool) -> None:
    """Make the part's shards, or say what that takes."""
    if dry_run:
        return _foretell(study.plan_capture(part=part).forecast(timed=True), study.run.folder, as_json=as_json)
    if not study.has_store():
        finished, count = study.capture(part=part).finished
        if finished < count:
            if as_json:
                return o.emit({"store": None, "shards": count, "finished": finished})
            return o.show(f"{finished} of {count} shards are finished; other parts make the rest")
    with study.store() as store:
        found: dict[str, Any] = {"store": store.path, "sites": store.sites, "spans": store.spans}
        rows = {condition: store.n_rows(condition) for condition in store.conditions}
        found |= {"rows": rows, "shards": len(store.shards), "bytes": store.nbytes}
    if as_json:
        return o.emit(found)
    shards = f"{count_text(found['shards'], 'shard')}, {size_text(found['bytes'])}"
    counts = ", ".join(f"{count:,} {condition}" for condition, count in rows.items())
    o.show(f"{found['store']}: {counts} rows, {shards}, {len(found['sites'])} sites, spans {', '.join(found['spans'])}")


def check_together(*, submit: str | None, jobs: int | None, slurm: list[str] | None, dry_run: bool, shard: str) -> None:
    """Refuse options that have no meaning together, before anything is done."""
    if submit is None and (jobs is not None or slurm):
        raise RunError("--jobs and --slurm say how to submit; add --submit slurm")
    if submit is not None and (dry_run or shard != AUTO):
        raise RunError(f"--submit makes all parts; leave out {'--dry-run' if dry_run else '--shard'}")


def send(study: Study, where: str, *, jobs: int | None, options: list[str], as_json: bool) -> None:
    """Submit the capture as a job array of as many tasks; each makes its part of the shards."""
    from ._slurm import submit

    jobs = jobs or JOBS
    choose("place to submit to", where, (SLURM,), RunError)
    parameters = dict(_pair(option) for option in options)
    folder = study.run.folder.absolute()
    number = submit(arguments(study.settings, folder), jobs=jobs, folder=folder / SLURM, parameters=parameters)
    if as_json:
        return o.emit({"job": number, "tasks": jobs, "logs": folder / SLURM})
    o.show(f"submitted job {number}, an array of {jobs} tasks; the last one to end joins the shards")
    o.show(f"logs: {folder / SLURM}; the same command without --submit tells how far it is, and continues it here")


def arguments(settings: Settings, out: Path) -> list[str]:
    """The command line of `seamscope capture` that asks for the same."""
    asked: list[str] = []
    for name, value in asdict(settings).items():
        option = f"--{name.replace('_', '-')}"
        if name != "untrained":
            asked += [
                each for part in (value if isinstance(value, tuple) else (value,)) for each in (option, str(part))
            ]
    return [*asked, "--out", str(out)]


def _pair(option: str) -> tuple[str, str]:
    key, sign, value = option.partition("=")
    if not (key and sign):
        raise RunError(f"--slurm {option!r}; expected KEY=VALUE, such as partition=gpu")
    return key.lstrip("-").replace("-", "_"), value


def _foretell(forecast: Forecast, folder: Path, *, as_json: bool) -> None:
    forecast.check(folder)
    if as_json:
        return o.emit(forecast)
    o.show(
        f"{forecast.rows} rows under each condition, in {count_text(forecast.shards, 'shard')} of "
        f"{forecast.rows_per_shard}; {forecast.finished} of them finished\n"
        f"{size_text(forecast.bytes)} to write; {size_text(forecast.free)} are free\n"
        f"about {time_text(forecast.seconds or 0)} on this machine, by one batch; nothing was written"
    )
