"""The cascaded run's state written into the direct run: where does it bring the answer back?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ._depth import Depth, dress
from ._lines import band, share_axis
from ._style import BESIDE, COLOURS, FAINT, NAMES, SPANS, axes_for, legend_above, marker_size, styled
from ._tables import distinct, keep, need

COLUMNS: Final = (
    "experiment",
    "target_site",
    "span",
    "right",
    "right_low",
    "right_high",
    "base_right",
    "ceiling_right",
)


@styled
def cross_curves(
    effects: pd.DataFrame,
    ax: Axes | None = None,
    *,
    spans: Sequence[str] | None = None,
    kind: str = "resid_post",
) -> Axes:
    """Share of items answered right after the cross-condition patch, by depth: a line and 95 % band per span.

    Dashed in the same colour: the control, the partner's text state. Level lines: the unpatched direct run
    and the source (the text run with the gold intermediate). The table must have both `cross` and
    `cross_control`; `spans`: default, all that it has. Raises `RunError` for what is missing.
    """
    table = keep(need(effects, "effects", COLUMNS), "effects", "experiment", ("cross", "cross_control"))
    shown = list(spans) if spans is not None else _order(distinct(table, "span"))
    table = keep(table, "effects", "span", shown)
    ax = axes_for(ax, height=2.7)
    depth = Depth.of(table.target_site, kind=kind)
    table = depth.along(table, "target_site")
    for span in shown:
        _curve(ax, table[table.span == span], span, size=marker_size(len(depth)))
    crossed = table[table.experiment == "cross"]
    _levels(ax, base=crossed.base_right.mean(), ceiling=crossed.ceiling_right.mean())
    dress(ax, depth)
    _words(ax, shown, depth)
    return ax


def _order(spans: list[str]) -> list[str]:
    return [s for s in SPANS if s in spans] + [s for s in spans if s not in SPANS]


def look(span: str) -> tuple[str, str]:
    """Colour and marker of a place."""
    return SPANS.get(span, (FAINT, "x"))


def _curve(ax: Axes, table: pd.DataFrame, span: str, *, size: float) -> None:
    colour, marker = look(span)
    crossed, control = (table[table.experiment == name] for name in ("cross", "cross_control"))
    band(ax, crossed, ("right_low", "right_high"), colour=colour, label=span)
    ax.plot(crossed.x, crossed.right, color=colour, marker=marker, ms=size, label=span, zorder=3)
    dashed = f"{span} control"
    ax.plot(control.x, control.right, color=colour, **BESIDE, label=dashed, zorder=2)


def _levels(ax: Axes, *, base: float, ceiling: float) -> None:
    ax.axhline(base, color=COLOURS["direct"], lw=0.9, label="unpatched", zorder=1)
    ax.axhline(ceiling, color=COLOURS["oracle"], lw=0.9, label="source", zorder=1)


def _words(ax: Axes, shown: list[str], depth: Depth) -> None:
    share_axis(ax)
    ax.set_ylabel("answered right (share of items)")
    ax.set_xlabel(f"{depth.label} written to")
    handles = [Line2D([], [], color=look(s)[0], marker=look(s)[1], label=NAMES.get(s, s)) for s in shown]
    handles += [
        Line2D([], [], color=FAINT, **BESIDE, label="control: partner's state"),
        Line2D([], [], color=COLOURS["direct"], lw=0.9, label="direct, unpatched"),
        Line2D([], [], color=COLOURS["oracle"], lw=0.9, label="text run (source)"),
    ]
    legend_above(ax, handles, columns=3, lift=depth.headroom)
