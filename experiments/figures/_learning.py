"""Would more items help? Accuracy of probes over the number of rows that they were fitted on."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from seamscope.hooks import RunError

from ._depth import Depth
from ._lines import FAINT_BAND, share_axis
from ._style import (
    COLOURS,
    DASHES,
    FAINT,
    NAMES,
    SMALL,
    axes_for,
    height_in_points,
    legend_above,
    place_name,
    root,
    styled,
)
from ._tables import averaged, keep, need, of_target, span_family

COLUMNS: Final = ("site", "span", "condition", "target", "chance", "curve_rows", "curve", "gain_low")
CELL: Final = ["site", "span", "condition", "target"]


@styled
def learning_curves(
    grid: pd.DataFrame,
    ax: Axes | None = None,
    *,
    condition: str = "direct",
    span: str = "objects",
    target: str | None = None,
    kind: str = "resid_post",
) -> Axes:
    """Accuracy over the rows that a probe was fitted on, a line and 95 % band for each site, coloured by its depth.

    `grid` is the table of `probe_grid`, whose `curve` is the same in all folds. Open ends: the last doubling of the
    rows still gains, so that what the probe reads is a lower bound. `span` and `target` are those of `probe_curves`.
    Raises `RunError` for what is missing, and where the table has no curves.
    """
    rows = keep(need(grid, "probe grid", COLUMNS), "probe grid", "condition", condition)
    rows = rows.assign(place=rows.span.map(span_family)).drop_duplicates(CELL)
    rows = keep(rows, "probe grid", "place", span_family(span))
    lines = _lines(of_target(rows, "probe grid", target))
    ax = axes_for(ax, height=2.4)
    depth = Depth.of(lines.site, kind=kind)
    colours = ListedColormap(colormaps["viridis_r"].resampled(len(depth) + 1).colors[1:])  # type: ignore[attr-defined]
    for site in map(str, depth.sites):
        table, colour = lines[lines.site == site], colours(depth.x(site))
        if {"low", "high"} <= set(table):
            ax.fill_between(
                table.rows, table.low, table.high, color=colour, alpha=FAINT_BAND, lw=0, label=f"{site} 95 %"
            )
        ax.plot(table.rows, table.accuracy, color=colour, lw=0.9, label=site)
        face = "white" if table.gain_low.iloc[-1] > 0 else colour
        ax.plot(table.rows.iloc[-1], table.accuracy.iloc[-1], "o", color=colour, mfc=face, mew=0.7, ms=3, zorder=3)
    chance: dict[str, Any] = {"color": COLOURS["chance"], "linestyle": DASHES["chance"], "lw": 0.9}
    ax.axhline(lines.chance.mean(), label="chance", **chance)
    _words(ax, sorted(set(lines.rows)), place_name(span_family(span), condition))
    _bar(ax, depth, colours)
    legend_above(ax, _handles(chance), columns=3)
    return ax


def _lines(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per (site, number of rows), the mean over targets."""
    ends = {"curve_low": "low", "curve_high": "high"} if {"curve_low", "curve_high"} <= set(rows) else {}
    found = rows[["site", "target", "chance", "gain_low", "curve_rows", "curve", *ends]]
    found = found[[isinstance(each, (tuple, list)) and len(each) > 0 for each in found.curve]]
    if found.empty:
        raise RunError("the probe grid table has no learning curves; fit it with code=True")
    names = {"curve": "accuracy", **ends}
    long = found.explode(["curve_rows", *names]).rename(columns={"curve_rows": "rows", **names})
    long = long.astype({"rows": int, **dict.fromkeys(names.values(), float)})
    means = (*names.values(), "chance", "gain_low")
    return averaged(long, "probe grid", ("site", "rows"), means).sort_values("rows")


def _words(ax: Axes, numbers: list[int], place: str) -> None:
    share_axis(ax)
    ax.set_xscale("log", base=2)
    ax.set_xticks(numbers, [str(number) for number in numbers])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("rows that the probe was fitted on")
    ax.set_ylabel(f"probe accuracy (share of items)\n{place}")


def _bar(ax: Axes, depth: Depth, colours: ListedColormap) -> None:
    mapped = ScalarMappable(Normalize(-0.5, len(depth) - 0.5), colours)
    bar = root(ax).colorbar(mapped, ax=ax, pad=0.03, fraction=0.06, aspect=20)
    ticks = depth.ticks(height_in_points(ax))
    bar.set_ticks([k for k, _ in ticks], labels=[name for _, name in ticks])
    bar.set_label("layer: tower, then decoder" if depth.run("vision") else "decoder layer", size=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=0)
    bar.ax.minorticks_off()
    bar.outline.set_linewidth(0.6)


def _handles(chance: dict[str, Any]) -> list[Artist]:
    mark: dict[str, Any] = {"marker": "o", "color": FAINT, "lw": 0.9, "mew": 0.7}
    return [
        Line2D([], [], mfc="white", **mark, label="still rising"),
        Line2D([], [], **mark, label="level"),
        Line2D([], [], **chance, label=NAMES["chance"]),
    ]
