"""`seamscope tasks`: list the tasks, and look at their items."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import _options as o

tasks_app = typer.Typer(help="List the tasks, or look at one.", invoke_without_command=True)


@tasks_app.callback()
@o.one_line_errors
def list_tasks(
    context: typer.Context,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Say which profile suits this model.")] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="This task, or .jsonl file, only.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """List the tasks."""
    from . import tasks

    if context.invoked_subcommand is not None:
        return
    found = {name: tasks.get(name).summary for name in ([task] if task else tasks.DATA_SETS)}
    if task is None:
        found["PATH.jsonl"] = "your own records: image, question, intermediate, answer"
    if model is not None:
        found["--profile"] = "small" if model.startswith("organism") else "full"
    if as_json:
        return o.emit(found)
    o.show("\n".join(f"{name:15} {summary}" for name, summary in found.items()))


@tasks_app.command("show")
@o.one_line_errors
def show_task(
    name: Annotated[str, typer.Argument(help="A task's name, or a .jsonl file.")],
    profile: o.Profile = "small",
    n: o.Count = 12,
    seed: o.Seed = 0,
    font: Annotated[list[str] | None, typer.Option(help="Draw with these fonts only; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A .png or .pdf file.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Write a contact sheet of a task's items and their counterfactual partners, to look at."""
    from . import tasks
    from ._files import replacing

    task = tasks.get(name)
    file = o.picture_file(out or Path(f"{task.name}.{profile}.png"))
    look = tasks.Look(fonts=tuple(font)) if font else None
    figure = tasks.contact_sheet(task, n=n, profile=profile, seed=seed, look=look)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150, format=file.suffix[1:])
    o.emit({"sheet": file}) if as_json else o.show(f"contact sheet: {file}")
