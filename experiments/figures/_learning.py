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
from ._lines import share_axis
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

CURVES: Final = ("site", "span", "condition", "target", "chance", "gain_low", "rows", "accuracy")
_GRID: Final = (*CURVES[:6], "curve_rows", "curve")
_CELL: Final = ["site", "layer", "stack", "span", "condition", "target"]
_NAMES: Final = {"curve_rows": "rows", "curve": "accuracy", "curve_low": "low", "curve_high": "high"}
_MOST: Final = 0.15  # opacity of a band, at most
_TOGETHER: Final = 0.45  # opacity of the bands of all sites, one over the other


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

    `grid` is the table of `probe_grid`, whose `curve` is the same in all folds, or its `learning_rows`. Open ends: the
    last doubling of the rows still gains, so that what the probe reads is a lower bound. `span` and `target` are those
    of `probe_curves`. Raises `RunError` for what is missing, and where the table has no curves.
    """
    rows = learning_rows(grid)
    if rows.empty:
        raise RunError("the probe grid table has no learning curves; fit it with code=True")
    rows = keep(rows, "probe grid", "condition", condition)
    rows = keep(rows.assign(place=rows.span.map(span_family)), "probe grid", "place", span_family(span))
    means = [name for name in ("accuracy", "low", "high", "chance", "gain_low") if name in rows]
    lines = averaged(of_target(rows, "probe grid", target), "probe grid", ("site", "rows"), means).sort_values("rows")
    ax = axes_for(ax, height=2.4)
    depth = Depth.of(lines.site, kind=kind)
    colours = ListedColormap(colormaps["viridis_r"].resampled(len(depth) + 1).colors[1:])  # type: ignore[attr-defined]
    clear = min(_MOST, 1 - (1 - _TOGETHER) ** (1 / len(depth)))
    for site in map(str, depth.sites):
        _curve(ax, lines[lines.site == site], site, colour=colours(depth.x(site)), clear=clear)
    chance: dict[str, Any] = {"color": COLOURS["chance"], "linestyle": DASHES["chance"], "lw": 0.9}
    ax.axhline(lines.chance.mean(), label="chance", **chance)
    _words(ax, sorted(set(lines.rows)), place_name(span_family(span), condition))
    _bar(ax, depth, colours)
    legend_above(ax, _handles(chance), columns=3)
    return ax


def learning_rows(grid: pd.DataFrame) -> pd.DataFrame:
    """The learning curves of a `probe_grid`, as rows: one for each cell, target, and number of rows fitted on.

    Columns: the cell; `target`, `chance`, `gain_low`; `rows`; `accuracy` with `low, high` as far as the grid has them.
    A table of such rows is given back as it is; a grid without curves gives none. Raises `RunError` for a missing
    column.
    """
    if "rows" in grid and "curve_rows" not in grid:
        return need(grid, "learning curves", CURVES)
    names = {name: new for name, new in _NAMES.items() if name in need(grid, "probe grid", _GRID)}
    held = grid[[isinstance(each, (tuple, list)) and len(each) > 0 for each in grid.curve]]
    cell = [name for name in _CELL if name in grid]
    held = held.drop_duplicates(cell)[[*cell, "chance", "gain_low", *names]]
    kinds = {new: int if new == "rows" else float for new in names.values()}
    return held.explode([*names], ignore_index=True).rename(columns=names).astype(kinds)


def _curve(ax: Axes, table: pd.DataFrame, site: str, *, colour: tuple[float, ...], clear: float) -> None:
    if {"low", "high"} <= set(table):
        band: dict[str, Any] = {"color": colour, "alpha": clear, "lw": 0, "label": f"{site} 95 %"}
        ax.fill_between(table.rows, table.low, table.high, **band)
    ax.plot(table.rows, table.accuracy, color=colour, lw=0.9, label=site)
    face = "white" if table.gain_low.iloc[-1] > 0 else colour
    ax.plot(table.rows.iloc[-1], table.accuracy.iloc[-1], "o", color=colour, mfc=face, mew=0.7, ms=3, zorder=3)


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
