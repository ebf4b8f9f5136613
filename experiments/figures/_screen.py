"""Does a cheap estimate find what an exact patch finds?"""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ..sweeps._screen import screen_agreement
from ._style import FAINT, INK, SMALL, SPANS, axes_for, legend_above, styled
from ._tables import distinct, need, records

COLUMNS: Final = ("kind", "estimate", "exact")
# Colour, mark and name of a kind of site; any other has the last of them.
KINDS: Final = {
    "resid_post": (*SPANS["last"], "residual stream"),
    "attn_out": (*SPANS["objects"], "attention"),
    "mlp_out": (*SPANS["image"], "MLP"),
    "head_z": (*SPANS["question"], "heads"),
}
OTHER: Final = (SPANS["prompt"][0], "D")
GROUPS: Final = {"top": "strongest by estimate", "sample": "random others"}
_CROWD: Final = 150  # points, from which on marks are small


@styled
def screen_scatter(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Estimated effects of patches (across) against exact ones (up), both in nats, a mark for each measured cell.

    `table` is that of `screen`, or any with `kind` (of the site), `estimate` and `exact`; with `low, high`, the exact
    effect's 95 % interval is drawn upright, and with `measured` the random sample's marks are open. On the dotted line
    both are the same. Written inside: Spearman's rank correlation, and the share of cells with the same sign. Raises
    `RunError` for what is missing.
    """
    cells = measured_cells(table)
    ax = axes_for(ax, height=2.9)
    ax.axhline(0, color=FAINT, lw=0.5, zorder=0.4)
    ax.axvline(0, color=FAINT, lw=0.5, zorder=0.4)
    ax.axline((0, 0), slope=1, color=INK, lw=0.6, linestyle=":", zorder=0.5, label="estimate = exact")
    for (kind, measured), rows in cells.groupby(["kind", "measured"], sort=False):
        colour, marker, name = look_of(str(kind))
        label = f"{name} {measured}"
        if {"low", "high"} <= set(cells.columns):
            ax.vlines(rows.estimate, rows.low, rows.high, colors=colour, lw=0.5, alpha=0.5, label=f"{label} 95 %")
        mark = _mark(colour, marker, is_open=measured == "sample")
        ax.plot(rows.estimate, rows.exact, **mark, ms=3.2 if len(cells) < _CROWD else 2.2, label=label, zorder=3)
    ax.set_xlabel("estimate (nats)")
    ax.set_ylabel("exact: change of log-probability\nof the answer (nats)")
    place: dict[str, Any] = {"transform": ax.transAxes, "ha": "left", "va": "top", "zorder": 4}
    behind = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.0}
    ax.text(0.03, 0.97, "\n".join(told(cells)), **place, size=SMALL, linespacing=1.3, bbox=behind)
    legend_above(ax, _handles(cells), columns=3)
    return ax


def measured_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The cells that have both an estimate and an exact effect; where none is a sample, all are `top`."""
    cells = need(table, "screen", COLUMNS).dropna(subset=["estimate", "exact"])
    cells = need(cells, "screen", COLUMNS)
    return cells if "measured" in cells.columns else cells.assign(measured="top")


def told(cells: pd.DataFrame) -> list[str]:
    """How far they agree, a line for each group of cells that there is; ρ is Spearman's."""
    lines = []
    both = set(cells.measured) >= set(GROUPS)
    for row in records(screen_agreement(cells)):
        if row["cells"]:
            name = GROUPS[row["measured"]] if both else "cells"
            rank = "–" if pd.isna(row["rank_correlation"]) else f"{row['rank_correlation']:.2f}".replace("-", "−")
            lines.append(f"{row['cells']} {name}: ρ = {rank}, same sign {100 * row['same_sign']:.0f} %")
    return lines


def look_of(kind: str) -> tuple[str, str, str]:
    """Colour, mark and name of a kind of site."""
    return KINDS.get(kind, (*OTHER, kind))


def _mark(colour: str, marker: str, *, is_open: bool) -> dict[str, Any]:
    face = "none" if is_open else colour
    return {"marker": marker, "lw": 0, "color": colour, "mfc": face, "mec": colour, "mew": 0.6}


def _handles(cells: pd.DataFrame) -> list[Artist]:
    held = distinct(cells, "kind")
    handles: list[Artist] = []
    for kind in [name for name in KINDS if name in held] + [name for name in held if name not in KINDS]:
        colour, marker, name = look_of(kind)
        handles.append(Line2D([], [], **_mark(colour, marker, is_open=False), ms=3.4, label=name))
    if set(cells.measured) >= set(GROUPS):
        handles.append(Line2D([], [], **_mark(INK, "o", is_open=True), ms=3.4, label=GROUPS["sample"]))
    handles.append(Line2D([], [], color=INK, lw=0.6, linestyle=":", label="estimate = exact"))
    return handles
