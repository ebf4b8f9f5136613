"""What the commands have in common: their options, how errors and results are printed."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import pandas as pd
import torch
import typer

from seamscope.hooks import RunError, SeamscopeError

from ._json import plain
from ._model import task_of
from ._run import check_place

if TYPE_CHECKING:
    from ._comparison import Compared
    from ._verdict import Verdict

P = ParamSpec("P")
R = TypeVar("R")


def _refuse(reason: object) -> typer.Exit:
    """Print what the user can mend as one line; raise what comes back to exit with 2."""
    typer.echo("seamscope: " + " ".join(str(reason).split()), err=True)
    return typer.Exit(2)


def _usable(device: str) -> str:
    """A device that tensors can be put on, before anything is loaded."""
    try:
        torch.empty(0, device="cpu" if device == "auto" else device)
    except (RuntimeError, AssertionError, ValueError) as error:  # AssertionError: torch was built without CUDA
        raise _refuse(f"cannot use device {device!r}; expected auto, cpu, cuda, cuda:1 or mps: {error}") from error
    return device


Model = Annotated[
    str, typer.Option("--model", "-m", help="organism, organism-composing, a checkpoint folder, or a hub id.")
]
OtherModel = Annotated[str | None, typer.Option("--model", "-m", help="The run's model; another is refused.")]
ModelArgument = Annotated[str | None, typer.Argument(help="The same as --model.", metavar="[MODEL]")]
TaskName = Annotated[str, typer.Option("--task", "-t", help="A task (see `seamscope tasks`) or a .jsonl file.")]
OwnTask = Annotated[
    str | None,
    typer.Option(
        "--task",
        "-t",
        help="A task (see `seamscope tasks`) or a .jsonl file; if not said, cards.sum, or that of a planted model.",
        show_default=False,
    ),
]
Count = Annotated[int, typer.Option("--n", "-n", min=2, help="How many items.")]
Profile = Annotated[str, typer.Option(help="small (the organism's canvas and words) or full (448 px).")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="The seed of items, splits and bootstraps.")]
Sites = Annotated[
    list[str] | None, typer.Option("--sites", help="Sites or globs such as 'lm.*.resid_post'; repeatable.")
]
Spans = Annotated[
    list[str] | None,
    typer.Option("--spans", help="objects, image, question, last, reading, ...; repeatable."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The run's folder, runs/TASK by default; the same command continues it."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...", callback=_usable)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[str, typer.Option("--attn-implementation", help="auto (what the model chooses), sdpa or eager.")]
Engine = Annotated[str, typer.Option(help="torch or nnsight, which give the same tensors (docs/engines.md).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Items in one forward pass.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print what the user can mend as one line, and exit with 2; with 130 where the user stopped it."""

    @wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as error:
            if _interrupted(error):
                typer.echo("seamscope: interrupted; what was finished is kept for the same command to go on", err=True)
                raise typer.Exit(130) from error
            if isinstance(error, (SeamscopeError, OSError)):  # a disk that is full, a folder that may not be written
                raise _refuse(error) from error
            raise

    return wrapped


def _interrupted(error: BaseException | None) -> bool:
    """Whether the user stopped it, or it failed while something was tidied up after that."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def asked(
    model: Model = "organism",
    task: OwnTask = None,
    n: Count = 200,
    profile: Profile = "small",
    seed: Seed = 0,
    sites: Sites = None,
    spans: Spans = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attn_implementation: Attention = "auto",
    engine: Engine = "torch",
    batch_size: BatchSize = 64,
) -> dict[str, Any]:
    """The options of every command on a run, by the names of its settings; without those that were not given."""
    given = {**locals(), "sites": sites and tuple(sites), "spans": spans and tuple(spans)}
    own = task_of(model)
    given["task"] = task or own
    if own and task and task != own:
        typer.echo(f"note: {model} was planted for {own}; where it fails on {task}, nobody knows", err=True)
    return {name: value for name, value in given.items() if value is not None}


def also_asked(command: Callable[..., R]) -> Callable[..., R]:
    """Let a command take the options of `asked` too: it gets what was asked as its first argument."""
    shared, own = (
        [each.replace(kind=each.KEYWORD_ONLY) for each in inspect.signature(call, eval_str=True).parameters.values()]
        for call in (asked, command)
    )

    @wraps(command)
    def wrapped(**given: Any) -> R:
        return command(asked(**{each.name: given.pop(each.name) for each in shared}), **given)

    wrapped.__signature__ = inspect.Signature([*shared, *own[1:]])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {}
    return wrapped


def picture_file(file: Path) -> Path:
    """Refuse what no picture can be written to, before any work is done."""
    if file.suffix not in (".png", ".pdf") or file.is_dir():
        raise RunError(f"cannot draw {file}; --out must name a .png or .pdf file")
    check_place(file.parent)
    return file


def on_a_terminal() -> bool:
    """Whether progress bars make sense."""
    return sys.stderr.isatty()


def show(text: str) -> None:
    """Print for a reader."""
    typer.echo(text)


def emit(result: Any) -> None:
    """Print one JSON object; numbers that are not finite become null."""
    typer.echo(json.dumps(plain(result), allow_nan=False))


def gap_table(gap: pd.DataFrame) -> str:
    """The gap table as text: one line per task and subset, percentages with 95 % intervals."""
    head = ["task", "items", "n", *gap.condition.drop_duplicates()]
    rows = [head]
    for (task, subset), table in gap.groupby(["task", "subset"], sort=False):
        cells = {row.condition: row for row in table.itertuples()}
        first = table.iloc[0]
        rows.append([task, subset, str(first.n), *(_percent(cells.get(name)) for name in head[3:])])
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _percent(row: Any) -> str:
    if row is None or row.n == 0:
        return "-"
    between = f" [{100 * row.low:.0f}, {100 * row.high:.0f}]" if math.isfinite(row.low) else ""
    return f"{100 * row.estimate:.0f}{between}"


def verdict_text(verdict: Verdict) -> str:
    """A verdict with its evidence, for a reader."""
    from ._report_verdict import bearing, where
    from ._verdict import named

    place = f" in the {where(verdict)}" if where(verdict) else ""
    whose = f" of {named(verdict.objects)}" if verdict.objects else ""
    also = "".join(f", and also {each.locus} of {named(each.objects)}" for each in verdict.also)
    lines = [
        f"verdict for {verdict.model} on {verdict.task}: {verdict.locus}{whose}{place}{also}, "
        f"confidence {verdict.confidence:.2f}",
        f"  {verdict.summary}",
        "evidence",
    ]
    for row in verdict.evidence:
        beside = "" if row.control is None else f", control {row.control:.2f}"
        place = "" if row.site is None else f" ({row.site}{'' if row.span is None else ' at ' + row.span})"
        found = "not measured"
        if math.isfinite(row.estimate):
            found = f"{row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]"
        lines += [f"  {row.question}", f"    {found}{beside}{place}: {row.measure}; {row.finding}"]
    if verdict.repairs:
        lines.append("repairs, the share of failed answers that come right")
    for repair in verdict.repairs:
        mark = "* " if repair.named else "  "
        control = "" if repair.control is None else f", control {repair.control:.2f}"
        found = f"{repair.restored:.2f} [{repair.low:.2f}, {repair.high:.2f}]{control}"
        lines.append(f"  {mark}{repair.name}: {found}  ({repair.words})")
    lines += [f"  {told}" for told in [bearing(verdict.repairs)] if told]
    return "\n".join([*lines, f"what would overturn it: {verdict.overturn}"])


def compared_table(found: Sequence[Compared]) -> str:
    """Several models, what is known of each, and its verdict, one line each."""
    rows = [
        {
            "model": each.name,
            "planted": "" if each.truth is None else f"{each.truth} {each.place or ''}".strip(),
            "verdict": f"{each.verdict.locus} {each.verdict.place or ''}".strip(),
            "confidence": f"{each.verdict.confidence:.2f}",
        }
        for each in found
    ]
    return pd.DataFrame(rows).to_string(index=False)
