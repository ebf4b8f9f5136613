"""How an effect rises and falls over depth, place by place."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ._cross import look
from ._depth import Depth, dress
from ._effects import effect_rows
from ._lines import band, share_axis
from ._patch import VALUES
from ._style import COLOURS, FAINT, NAMES, SPANS, axes_for, legend_above, marker_size, styled
from ._tables import distinct, keep


@styled
def layer_curves(
    effects: pd.DataFrame,
    ax: Axes | None = None,
    *,
    experiment: str,
    spans: Sequence[str] | None = None,
    kind: str = "resid_post",
    value: str = "effect",
) -> Axes:
    """Effect of a patch over depth: a line and 95 % band for each span of a summarised sweep.

    `value`: `effect` (nats), with a line at 0, or `right` (share of items), with that of the unpatched run. `spans`:
    default, all that the table has. Raises `RunError` for what is missing.
    """
    table = effect_rows(effects, experiment, value, ("target_site", "span"))
    held = distinct(table, "span")
    shown = [name for name in SPANS if name in held] + [name for name in held if name not in SPANS]
    shown = shown if spans is None else list(spans)
    table = keep(table, "effects", "span", shown)
    depth = Depth.of(table.target_site, kind=kind)
    table = depth.along(table, "target_site")
    ax = axes_for(ax, height=2.4)
    handles = [_level(ax, table, value)]
    for span in shown:
        rows, (colour, marker) = table[table.span == span], look(span)
        band(ax, rows, VALUES[value][:2], colour=colour, label=span, strength=0.14)
        ax.plot(rows.x, rows[value], color=colour, marker=marker, ms=marker_size(len(depth)), label=span, zorder=3)
        handles.append(Line2D([], [], color=colour, marker=marker, label=NAMES.get(span, span)))
    dress(ax, depth)
    ax.set_ylabel(VALUES[value][2])
    legend_above(ax, [*handles[1:], handles[0]], columns=3, lift=depth.headroom)
    return ax


def _level(ax: Axes, table: pd.DataFrame, value: str) -> Line2D:
    """Where nothing is changed."""
    if value == "effect":
        return ax.axhline(0, color=FAINT, lw=0.6, label="no effect", zorder=0.5)
    share_axis(ax)
    return ax.axhline(table.base_right.mean(), color=COLOURS["gap"], linestyle=":", lw=0.9, label="unpatched", zorder=1)
