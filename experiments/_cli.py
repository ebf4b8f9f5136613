"""The command line: `seamscope COMMAND --help`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seamscope.hooks import RunError

from . import _cli_capture as c
from . import _cli_patch as t
from . import _cli_probes as p
from . import _options as o
from ._cli_store import store_app
from ._cli_tasks import tasks_app

if TYPE_CHECKING:
    from ._study import Study

app = typer.Typer(
    name="seamscope",
    help="Find the layer, site and position at which a vision-language model loses an intermediate visual result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(tasks_app, name="tasks")
app.add_typer(store_app, name="store")


def main() -> None:
    """Entry point of the `seamscope` command."""
    app()


def _study_command(name: str, act: Callable[[Study, bool], None], text: str, *, chooses: Sequence[str] = ()) -> None:
    """Register a command that works on one study; they take the same options, but for what it `chooses` itself."""

    @app.command(name, help=text)
    @o.one_line_errors
    @o.also_asked
    def command(asked: dict[str, Any], out: o.Out = None, as_json: o.AsJson = False) -> None:
        for option in chooses:
            if option in asked:
                raise RunError(f"{name} chooses its own {option}; leave out --{option}")
        act(_open(asked, out, as_json=as_json), as_json)


@app.command()
@o.one_line_errors
@o.also_asked
def capture(
    asked: dict[str, Any],
    out: o.Out = None,
    pool: c.Pool = "mean",
    compression: c.Compression = "none",
    rows_per_shard: c.RowsPerShard = 0,
    dry_run: c.DryRun = False,
    shard: c.Part = c.AUTO,
    submit: c.Submit = None,
    jobs: c.Jobs = None,
    slurm: c.Slurm = None,
    as_json: o.AsJson = False,
) -> None:
    """Store what flows through the model in direct and cascaded runs (HDF5); interrupted, the same command goes on."""
    asked |= {"pool": pool, "compression": compression, "rows_per_shard": rows_per_shard}
    c.check_together(submit=submit, jobs=jobs, slurm=slurm, dry_run=dry_run, shard=shard)
    if submit is not None:
        return c.send(_open(asked, out, as_json=as_json), submit, jobs=jobs, options=slurm or [], as_json=as_json)
    study = _open({**asked, "device": c.device_of(asked["device"])}, out, as_json=as_json)
    c.run(study, part=c.part_of(shard), dry_run=dry_run, as_json=as_json)


def _open(asked: dict[str, Any], out: Path | None, *, as_json: bool, compare: tuple[str, ...] = ()) -> Study:
    from . import tasks
    from ._run import Run, Settings
    from ._study import Study

    settings = Settings(**asked)
    task = tasks.get(settings.task)
    settings = replace(
        settings,
        n=min(settings.n, task.size or settings.n) if settings.n == Settings.n else settings.n,
        model=_anywhere(settings.model),
        task=_anywhere(settings.task),
    )
    folder = out or Path("runs", task.name)
    return Study(Run(folder, settings), compare=compare, progress=o.on_a_terminal() and not as_json)


def _anywhere(name: str) -> str:
    """A name as it is, but a path so that it is found from every working directory."""
    path = Path(name).expanduser()
    return str(path.absolute()) if path.exists() else name


def _gap(study: Study, as_json: bool) -> None:
    gap = study.gap
    if as_json:
        return o.emit({"gap": gap, "run": study.run.folder})
    o.show(o.gap_table(gap))
    o.show(f"\nanswers and gap lie in {study.run.folder}")


@app.command()
@o.one_line_errors
@o.also_asked
def lens(
    asked: dict[str, Any],
    tuned: Annotated[bool, typer.Option("--tuned", help="Fit a tuned lens first, on items of other seeds.")] = False,
    out: o.Out = None,
    as_json: o.AsJson = False,
) -> None:
    """Read the layers with the model's own head: where do the answer and the intermediate come up?"""
    p.lens(_open(asked, out, as_json=as_json), tuned=tuned, as_json=as_json)


@app.command()
@o.one_line_errors
@o.also_asked
def patch(
    asked: dict[str, Any],
    experiment: t.Experiments = None,
    by: t.By = "span",
    out: o.Out = None,
    as_json: o.AsJson = False,
) -> None:
    """Patch between counterfactual partners, across conditions, and back to earlier layers."""
    t.patch(_open(asked, out, as_json=as_json), experiment, by=by, as_json=as_json)


def _locate(study: Study, as_json: bool) -> None:
    report = study.report()
    if as_json:
        return o.emit({**study.verdict.to_json(), "report": report})
    o.show(o.gap_table(study.gap) + "\n")
    o.show(o.verdict_text(study.verdict))
    o.show(f"\nreport: {report}")


for _name, _act, _text in (
    ("gap", _gap, "Answer every item under each condition and measure the composition gap."),
    ("probe", p.probe, "Fit linear probes with controls on the stored activations, direct beside cascaded."),
    ("erase", p.erase, "Erase or push what probes read, and see what becomes of the answers: is it used?"),
):
    _study_command(_name, _act, _text)
_study_command("locate", _locate, "Say where the intermediate is lost, and why.", chooses=("sites", "spans"))


@app.command()
@o.one_line_errors
def demo(
    model: o.Model = "organism",
    task: o.TaskName = "cards.sum",
    n: o.Count = 64,
    seed: o.Seed = 0,
    out: o.Out = Path("runs/demo"),
    as_json: o.AsJson = False,
) -> None:
    """The whole path on embedded models: a natural gap, losses of which we know where they are, and a healthy model."""
    from ._demo import demonstrate
    from .tasks import DATA_SETS

    study = _open({"model": model, "task": task, "n": n, "seed": seed}, out, as_json=as_json, compare=DATA_SETS)
    page, found = demonstrate(study, progress=study.progress)
    if as_json:
        shown = [
            {"model": each.name, "truth": each.truth, "true_place": each.place, **each.verdict.to_json()}
            for each in found
        ]
        return o.emit({"verdicts": shown, "report": study.run.folder / "report.html", "comparison": page})
    o.show(o.gap_table(found[0].gap) + "\n")
    o.show(o.verdict_text(found[0].verdict))
    o.show(f"\n{o.compared_table(found)}\n\nreport: {study.run.folder / 'report.html'}\nside by side: {page}")


@app.command()
@o.one_line_errors
def report(
    run: Annotated[Path | None, typer.Argument(help="The folder of a run; runs/TASK by default.")] = None,
    model: o.OtherModel = None,
    task: o.TaskName = "cards.sum",
    as_json: o.AsJson = False,
) -> None:
    """Write report.html and the figures of a run anew; what the run lacks for it is computed first."""
    from . import tasks
    from ._run import settings_of

    folder = run or Path("runs", tasks.get(task).name)
    asked = asdict(settings_of(folder))
    page = _open({**asked, "model": model or asked["model"]}, folder, as_json=as_json).report()
    o.emit({"report": page}) if as_json else o.show(f"report: {page}")


@app.command()
@o.one_line_errors
def doctor(
    model: o.ModelArgument = None,
    model_option: o.Model = "organism",
    task: o.TaskName = "cards.sum",
    profile: Annotated[
        str | None, typer.Option(help="small or full (448 px); by default small for the shipped models only.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="Look at this picture, not at one that the task draws.", show_default=False)
    ] = None,
    box: Annotated[
        list[str] | None, typer.Option(help="An object in it: LEFT,TOP,RIGHT,BOTTOM in pixels; repeatable.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Estimate what capturing so many items costs.")] = 200,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The overlay, a .png or .pdf file; doctor.MODEL.png by default.")
    ] = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    attn_implementation: o.Attention = "auto",
    engine: o.Engine = "torch",
    as_json: o.AsJson = False,
) -> None:
    """Load a model, run its self-checks, and show its sites, spans, memory and costs on one item.

    The overlay shows which tokens of tower, projector and decoder belong to which object. Exit code 1: a check failed.
    """
    from ._doctor import examine

    chosen = model or model_option
    found = examine(
        chosen,
        task=task,
        profile=profile,
        image=image,
        boxes=tuple(box or ()),
        items=n,
        overlay=o.picture_file(out or Path(f"doctor.{Path(chosen).name}.png")),
        device=device,
        dtype=dtype,
        attn_implementation=attn_implementation,
        engine=engine,
    )
    o.emit(found.to_json()) if as_json else o.show(found.text())
    if not found.healthy:
        raise typer.Exit(1)


@app.command()
@o.one_line_errors
def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/families.md.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """List the families of models that are covered, how images come to their decoders, and what each lacks."""
    from ._families_page import REFUSED, covered, page, table

    found = covered()
    if as_json:
        return o.emit({"families": [each.to_json() for each in found], "not_covered": REFUSED})
    o.show(page(found).rstrip() if markdown else table(found))
