"""What the command `patch` does and shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from seamscope.hooks import RunError, choose

from . import _options as o

if TYPE_CHECKING:
    from ._study import Study

Experiments = Annotated[
    list[str] | None,
    typer.Option(
        "--experiment",
        "-e",
        help="denoise, noise, cross, ...: a table for each; repeatable. Without it, all that locating needs.",
        show_default=False,
    ),
]
By = Annotated[
    str, typer.Option(help="span: whole spans at once; token: every token of the prompt; head: every head of head_z.")
]
NAMED = ["experiment", "source_site", "target_site", "span", "token", "head"]


def patch(study: Study, experiments: list[str] | None, *, by: str, as_json: bool) -> None:
    """Sweep, and show the strongest cells, chosen on one half of the items and scored on the other."""
    from .sweeps import BY, EXPERIMENTS, best_cells

    for name in experiments or ():
        choose("experiment", name, EXPERIMENTS, RunError)
    choose("way to divide cells", by, BY, RunError)
    if not experiments:
        if by != "span":
            raise RunError(f"--by {by} goes with --experiment, such as --experiment denoise --experiment noise")
        rows, effects, file = study.patch_rows, study.effects, "effects.csv"
    else:
        names = list(dict.fromkeys(experiments))
        rows, effects = study.patched(names, by=by), study.patch_effects(names, by=by)
        file = f"effects.{'+'.join(names)}.{by}.csv"
    best = best_cells(rows, seed=study.settings.seed)
    if as_json:
        return o.emit({"effects": effects, "best": best, "run": study.run.folder})
    shown = [name for name in NAMED if name in best and best[name].notna().any()]
    o.show(best[[*shown, "effect", "low", "high", "chosen", "n"]].round(2).to_string(index=False, na_rep="-"))
    o.show(
        f"\nof {len(effects)} cells the strongest of each experiment, in nats of the item's answer: chosen on one half "
        f"of the items (chosen), scored on the other (effect); all of them: {study.run.folder}/{file}"
    )
