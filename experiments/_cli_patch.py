"""What the command `patch` does and shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import pandas as pd
import typer

from seamscope.hooks import RunError, choose

from . import _options as o
from ._amounts import count_text

if TYPE_CHECKING:
    from ._study import Study

Experiments = Annotated[
    list[str] | None,
    typer.Option(
        "--experiment",
        "-e",
        help="denoise, noise, cross, knockout, severed, exit, screen, ...; repeatable. Without: what locating needs.",
        show_default=False,
    ),
]
By = Annotated[str, typer.Option(help="span: whole spans at once; object, token, head: each by itself.")]
SCREEN: Final = "screen"
COUNTED: Final = ("token", "head", "first", "last")
NAMED: Final = ["experiment", "source_site", "target_site", "span", "token", "head", "queries", "keys", "first", "last"]


def patch(study: Study, experiments: list[str] | None, *, by: str, as_json: bool) -> None:
    """Sweep, and show the strongest cells, chosen on one half of the items and scored on the other."""
    from .sweeps import BY, EXPERIMENTS, ROUTES, best_cells

    names = list(dict.fromkeys(experiments or ()))
    if names == [SCREEN]:
        return _screen(study, as_json=as_json)
    for name in names:
        choose("experiment", name, (*EXPERIMENTS, *ROUTES, SCREEN), RunError)
    if SCREEN in names:
        raise RunError(f"--experiment {SCREEN} goes alone: it makes another table")
    choose("way to divide cells", by, BY, RunError)
    if not names and by != "span":
        raise RunError(f"--by {by} goes with --experiment, such as --experiment denoise --experiment noise")
    rows, effects, files = _made(study, names, by)
    best = best_cells(rows, seed=study.settings.seed)
    plates = _draw(study, files)
    if as_json:
        return o.emit({"effects": effects, "best": best, "figures": plates, "run": study.run.folder})
    shown = [name for name in NAMED if name in best and best[name].notna().any()]
    whole = {name: best[name].map("{:.0f}".format, na_action="ignore") for name in COUNTED if name in best}
    best = best.assign(**whole)
    o.show(best[[*shown, "effect", "low", "high", "chosen", "n"]].round(2).to_string(index=False, na_rep="-"))
    o.show(
        f"\nof {len(effects)} cells the strongest of each experiment, in nats of the item's answer: chosen on one half "
        f"of the items (chosen), scored on the other (effect); all of them: {study.run.folder}/{', '.join(files)}, "
        f"and {count_text(len(plates), 'figure')} in {study.run.folder / 'figures'}"
    )


def _made(study: Study, names: list[str], by: str) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Rows and effects of all experiments, and the files of the effects."""
    from .sweeps import ROUTES

    if not names:
        return study.patch_rows, study.effects, ["effects.csv"]
    patched = [name for name in names if name not in ROUTES]
    made = [(study.patched(patched, by=by), study.patch_effects(patched, by=by))] if patched else []
    files = [f"effects.{'+'.join(patched)}.{by}.csv"] if patched else []
    for name in names:
        if name in ROUTES:
            made.append((study.cut(name), study.cut_effects(name)))
            files.append(f"effects.{name}.csv")
    rows, effects = (pd.concat(tables, ignore_index=True) for tables in zip(*made, strict=True))
    return rows, effects, files


def _draw(study: Study, files: list[str]) -> list[Path]:
    """Draw the figures of these tables; gives their files."""
    from ._plates import draw_plates
    from ._study_patching import shown

    tables = {file.removesuffix(".csv"): study.run.table(file.removesuffix(".csv"), pd.DataFrame) for file in files}
    return [plate.saved.pdf for plate in draw_plates(study.run.folder / "figures", tables, shown=shown(study))]


def _screen(study: Study, *, as_json: bool) -> None:
    """Show what the screen estimates, what was measured, and how far they agree."""
    from .sweeps import screen_agreement

    table = study.screen()
    agreement = screen_agreement(table)
    plates = _draw(study, ["screen.csv"])
    if as_json:
        return o.emit({"screen": table, "agreement": agreement, "figures": plates, "run": study.run.folder})
    top = table[table.measured == "top"].sort_values("score", ascending=False).head(10)
    columns = ["target_site", "span", "token", "score", "estimate", "exact", "low", "high", "n"]
    o.show(top[columns].round(2).to_string(index=False, na_rep="-"))
    o.show(f"\n{agreement.round(2).to_string(index=False, na_rep='-')}")
    o.show(
        f"\nof {len(table)} cells those that attribution ranks highest on one half of the items, measured on the other "
        f"in nats of the item's answer, and how far estimate and measure agree: {study.run.folder}/screen.csv"
    )
