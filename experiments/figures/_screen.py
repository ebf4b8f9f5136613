"""Does a cheap estimate find what an exact patch finds?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.stats import spearmanr

from ._style import FAINT, INK, SMALL, SPANS, axes_for, legend_above, styled
from ._tables import distinct, need

COLUMNS: Final = ("kind", "estimate", "exact")
# Colour, mark and name of a kind of site; any other has the last of them.
KINDS: Final = {
    "resid_post": (*SPANS["last"], "residual stream"),
    "attn_out": (*SPANS["objects"], "attention"),
    "mlp_out": (*SPANS["objects+reading"], "MLP"),
    "head_z": (*SPANS["question"], "head"),
}
OTHER: Final = ("#5C5C5C", "x")
_CROWD: Final = 150  # points, from which on marks are small and clear


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far an estimate and the exact effect agree over `n` cells.

    `rank`: Spearman's correlation, NaN where one of them does not vary; `sign`: the share of cells in which both have
    the same sign.
    """

    rank: float
    sign: float
    n: int

    @classmethod
    def of(cls, table: pd.DataFrame) -> Agreement:
        """Of the cells that have both."""
        held = need(table, "screen", COLUMNS).dropna(subset=["estimate", "exact"])
        varied = len(held) > 1 and held.estimate.nunique() > 1 and held.exact.nunique() > 1
        same = np.sign(held.estimate) == np.sign(held.exact)
        rank = float(spearmanr(held.estimate, held.exact).statistic) if varied else float("nan")
        return cls(rank=rank, sign=float(same.mean()) if len(held) else float("nan"), n=len(held))


@styled
def screen_scatter(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Estimated effects of patches (across) against exact ones (up), both in nats, a mark for each cell.

    `table` has `kind` (of the site), `estimate`, `exact`, and may have the exact effect's 95 % interval `low, high`,
    drawn upright. On the line both are the same. Written inside: Spearman's rank correlation, and the share of cells
    with the same sign. Raises `RunError` for what is missing.
    """
    found = Agreement.of(table)
    cells = need(table.dropna(subset=["estimate", "exact"]), "screen", COLUMNS)
    ax = axes_for(ax, height=2.9)
    few = len(cells) < _CROWD
    ax.axhline(0, color=FAINT, lw=0.5, zorder=0.4)
    ax.axvline(0, color=FAINT, lw=0.5, zorder=0.4)
    ax.axline((0, 0), slope=1, color=INK, lw=0.6, linestyle=":", zorder=0.5, label="estimate = exact")
    handles = []
    for kind in [name for name in KINDS if name in set(cells.kind)] + sorted(set(distinct(cells, "kind")) - set(KINDS)):
        rows, (colour, marker, name) = cells[cells.kind == kind], KINDS.get(kind, (*OTHER, kind))
        if {"low", "high"} <= set(cells.columns):
            ax.vlines(rows.estimate, rows.low, rows.high, colors=colour, lw=0.5, alpha=0.5, label=f"{name} 95 %")
        mark: dict[str, Any] = {"marker": marker, "color": colour, "lw": 0, "mew": 0.4 if marker == "x" else 0}
        ax.plot(rows.estimate, rows.exact, **mark, ms=3.0 if few else 2.0, alpha=0.85, label=name, zorder=3)
        handles.append(Line2D([], [], **mark, ms=3.4, label=name))
    handles.append(Line2D([], [], color=INK, lw=0.6, linestyle=":", label="estimate = exact"))
    ax.set_xlabel("estimate (nats)")
    ax.set_ylabel("exact: change of log-probability\nof the answer (nats)")
    ax.text(0.03, 0.97, _told(found), transform=ax.transAxes, ha="left", va="top", size=SMALL, linespacing=1.3)
    legend_above(ax, handles, columns=3)
    return ax


def _told(found: Agreement) -> str:
    rank = "–" if np.isnan(found.rank) else f"{found.rank:.2f}".replace("-", "−")
    return f"rank correlation {rank}\nsame sign in {found.sign:.0%} of {found.n} cells".replace("%", " %")
