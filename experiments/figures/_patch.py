"""What is used where: effects of patching by layer and span, and of writing later layers into earlier."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.patches import Patch, Rectangle

from seamscope.hooks import RunError, choose

from ._depth import Depth, dress
from ._style import (
    FAINT,
    INK,
    NAMES,
    SMALL,
    SPANS,
    axes_for,
    legend_above,
    root,
    styled,
    text_width,
    width_in_points,
)
from ._tables import distinct, keep, need

COLUMNS: Final = ("experiment", "source_site", "target_site", "span")
VALUES: Final = {
    "effect": ("low", "high", "change of log-probability\nof the answer (nats)"),
    "right": ("right_low", "right_high", "share of items answered right"),
}
NOTHING: Final = {"effect": "no effect", "right": "the unpatched share"}
EMPTY: Final = "#eeeeee"
_FILLED: Final = 0.8  # the most of a cell's width that its number may take
_ROOM: Final = 0.8  # of the axes' first width, beside a colour bar and long names


@styled
def patch_heatmap(
    effects: pd.DataFrame,
    ax: Axes | None = None,
    *,
    experiment: str,
    value: str = "effect",
    kind: str = "resid_post",
) -> Axes:
    """Effect of a patch by depth and span, of one experiment of a summarised sweep.

    `value`: `effect` (nats, diverging around 0) or `right` (share of items, from 0 to 1). Cells whose 95 %
    interval holds no effect (0, or the unpatched share) are hatched; grey cells were not measured.
    """
    table = _rows(effects, experiment, value)
    ax = axes_for(ax, height=2.1)
    depth = Depth.of(table.target_site, kind=kind)
    table = table[[site in depth for site in table.target_site]]
    spans = [name for name in SPANS if name in set(table.span)]
    spans += [name for name in distinct(table, "span") if name not in spans]
    at = [(spans.index(span), depth.x(site)) for span, site in zip(table.span, table.target_site, strict=True)]
    _mesh(ax, table, at, (len(spans), len(depth)), value=value)
    dress(ax, depth, room=_ROOM)
    ax.set_yticks(range(len(spans)), [NAMES.get(name, name) for name in spans])
    _frame(ax)
    return ax


@styled
def backpatch_matrix(effects: pd.DataFrame, ax: Axes | None = None, *, span: str, value: str = "right") -> Axes:
    """Effect of writing a later layer's state (up) into an earlier layer (across), at one span set.

    `value` and the marks are those of `patch_heatmap`; the half in which nothing is earlier stays empty.
    """
    table = keep(_rows(effects, "backpatch", value), "effects", "span", span)
    table = need(table, "effects", ("source_layer", "layer"))
    ax = axes_for(ax, height=2.7)
    sources, targets = sorted(set(table.source_layer)), sorted(set(table.layer))
    at = [(sources.index(s), targets.index(t)) for s, t in zip(table.source_layer, table.layer, strict=True)]
    _mesh(ax, table, at, (len(sources), len(targets)), value=value, empty="white", mirrored=False)
    for axis, layers in ((ax.xaxis, targets), (ax.yaxis, sources)):
        step = 1 + len(layers) // 13
        axis.set_ticks(range(0, len(layers), step), [str(int(n)) for n in layers[::step]])
    ax.set_xlabel(f"written into decoder layer ({NAMES.get(span, span)})")
    ax.set_ylabel("taken from decoder layer")
    _frame(ax)
    return ax


def _rows(effects: pd.DataFrame, experiment: str, value: str) -> pd.DataFrame:
    low, high, _ = VALUES[choose("value", value, VALUES, RunError)]
    columns = (*COLUMNS, value, low, high, *(["base_right"] if value == "right" else []))
    return keep(need(effects, "effects", columns), "effects", "experiment", experiment)


def _mesh(
    ax: Axes,
    table: pd.DataFrame,
    at: list[tuple[int, int]],
    shape: tuple[int, int],
    *,
    value: str,
    empty: str = EMPTY,
    mirrored: bool = True,
) -> None:
    if len(set(at)) < len(at):
        raise RunError("the effects table has several rows for one cell: it holds more than one run")
    grid = np.full(shape, np.nan)
    for (row, column), number in zip(at, table[value], strict=True):
        grid[row, column] = number
    ax.set_facecolor(empty)
    mesh = ax.pcolormesh(
        np.arange(shape[1]), np.arange(shape[0]), np.ma.masked_invalid(grid), shading="nearest", zorder=0.4,
        edgecolors="white", linewidth=0.5 if shape[1] <= 40 else 0, **_scale(grid, value),
    )  # fmt: skip
    bar = root(ax).colorbar(mesh, ax=ax, pad=0.02, fraction=0.06, aspect=18)
    bar.set_label(VALUES[value][2], size=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.6)
    bar.outline.set_linewidth(0.6)
    _marks(ax, table, at, value=value)
    _numbers(ax, grid, mesh)
    if mirrored:
        ax.invert_yaxis()


def _scale(grid: Any, value: str) -> dict[str, Any]:
    if value == "right":
        return {"cmap": colormaps["cividis"], "norm": Normalize(0, 1)}
    reach = float(np.nanmax(np.abs(grid))) or 1.0
    return {"cmap": colormaps["PuOr"], "norm": Normalize(-reach, reach)}


def _marks(ax: Axes, table: pd.DataFrame, at: list[tuple[int, int]], *, value: str) -> None:
    low, high, _ = VALUES[value]
    null = table.base_right if value == "right" else 0.0
    nothing = (table[low] <= null) & (null <= table[high])
    for (row, column), hatched in zip(at, nothing, strict=True):
        if hatched:
            ax.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", ec=FAINT, lw=0, zorder=0.45)
            )
    if nothing.any():
        label = f"95 % interval holds {NOTHING[value]}"
        handle = Patch(facecolor="white", edgecolor=FAINT, hatch="////", lw=0.4, label=label)
        legend_above(ax, [handle], columns=1, lift=9)


def _numbers(ax: Axes, grid: Any, mesh: Any) -> None:
    places = 1 if np.nanmax(np.abs(grid)) > 1 else 2
    cells = [(at, round(number, places) + 0.0) for at, number in np.ndenumerate(grid) if np.isfinite(number)]
    words = {at: f"{number:.{places}f}".replace("-", "−") for at, number in cells}
    slot = width_in_points(ax) * _ROOM / grid.shape[1]
    if max(map(text_width, words.values())) > _FILLED * slot:
        return
    for (row, column), word in words.items():
        red, green, blue, _ = mesh.cmap(mesh.norm(grid[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(column, row, word, ha="center", va="center", size=SMALL, color="white" if dark else INK, zorder=1)


def _frame(ax: Axes) -> None:
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
