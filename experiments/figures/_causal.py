"""Is it there, and is it used? Two measurements of the same cells, against each other."""

from __future__ import annotations

from textwrap import fill
from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ._lines import MARKERS
from ._style import COLOURS, FAINT, INK, NAMES, SMALL, SPANS, axes_for, legend_above, place_name, styled
from ._tables import distinct, need, span_family

COLUMNS: Final = (
    *("condition", "site", "span", "variable"),
    *("effect", "effect_low", "effect_high", "random_effect", "difference_low", "difference_high"),
)
SELECTIVITY: Final = ("selectivity", "selectivity_low", "selectivity_high")
ACCURACY: Final = ("accuracy", "accuracy_low", "accuracy_high", "chance")
_MARK: Final[dict[str, Any]] = {"lw": 0, "ms": 3.4}
_OPEN: Final[dict[str, Any]] = {"mfc": "none", "mec": FAINT, "mew": 0.5}
_CROWD: Final = 80  # points, from which on marks are small and crosses pale


@styled
def decodable_causal(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What a probe reads of a variable (across) and what erasing it does to the answer (up), a mark for each cell.

    `table` is that of `decodable_and_causal`. Across: selectivity, or accuracy above chance where the table has no
    selectivity. Up: the change of the answer's log-probability, in nats. Colour is the place, the mark's shape the
    condition; crosses are 95 % intervals. Open and grey: the same cells after a random direction was erased; white
    inside are the cells in which that does the same, where the paired 95 % interval of the difference holds 0. Under
    the axes stands the table's `warning`, what such a pair cannot tell. Raises `RunError` for what is missing.
    """
    table = need(table, "decodable and causal", COLUMNS)
    points = _points(table)
    ax = axes_for(ax, height=3.0)
    size, clear = (3.4, 0.55) if len(points) < _CROWD else (2.2, 0.35)
    ax.axhline(0, color=FAINT, lw=0.6, zorder=0.5, label="no effect")
    ax.axvline(0, color=FAINT, lw=0.6, zorder=0.5, label="nothing readable")
    for key, cells in points.groupby(["condition", "place"], sort=False):
        condition, place = map(str, key)
        name, colour = f"{place} {condition}", _colour(place)
        mark: dict[str, Any] = {"marker": MARKERS.get(condition, "X"), "lw": 0, "ms": size}
        ax.plot(cells.x, cells.random_effect, **mark, **_OPEN, label=f"{name} random", zorder=2.7)
        lines: dict[str, Any] = {"colors": colour, "lw": 0.5, "alpha": clear, "zorder": 2.5}
        ax.hlines(cells.effect, cells.x_low, cells.x_high, label=f"{name} decodable 95 %", **lines)
        ax.vlines(cells.x, cells.effect_low, cells.effect_high, label=f"{name} causal 95 %", **lines)
        ax.plot(cells.x, cells.effect, **mark, color=colour, mew=0, label=name, zorder=3)
        same = cells[no_more_than_random(cells)]
        hollow: dict[str, Any] = {**mark, "ms": 0.6 * size, "color": "white", "mew": 0, "zorder": 3.1}
        ax.plot(same.x, same.effect, **hollow, label=f"{name} no more than random")
    _words(ax, table)
    legend_above(ax, _handles(points), columns=2)
    return ax


def no_more_than_random(cells: pd.DataFrame) -> pd.Series[bool]:
    """Where the paired interval of the erasure's effect beyond that of a random direction holds 0."""
    return (cells.difference_low <= 0) & (cells.difference_high >= 0)


def _points(table: pd.DataFrame) -> pd.DataFrame:
    table = table.assign(place=table.span.map(span_family))
    if set(SELECTIVITY) <= set(table.columns):
        x, low, high = (table[name] for name in SELECTIVITY)
    else:
        held = need(table, "decodable and causal", ACCURACY)
        x, low, high = (held[name] - held.chance for name in ACCURACY[:3])
    points = table.assign(x=x, x_low=low, x_high=high).dropna(subset=["x", "effect"])
    return need(points, "decodable and causal", COLUMNS)


def _words(ax: Axes, table: pd.DataFrame) -> None:
    selective = set(SELECTIVITY) <= set(table.columns)
    ax.set_xlabel("decodable: " + ("selectivity" if selective else "accuracy above chance") + " (share of items)")
    ax.set_ylabel("causal: change of the answer's\nlog-probability when erased (nats)")
    if "warning" in table.columns:
        words = "; ".join(distinct(table, "warning"))
        said = fill(f"{words[:1].upper()}{words[1:]}.", 70)
        style: dict[str, Any] = {"size": SMALL, "color": INK, "ha": "center", "va": "top", "linespacing": 1.15}
        place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        ax.annotate(said, (0.44, 0), (0, -27), annotation_clip=False, **place, **style)


def _handles(points: pd.DataFrame) -> list[Artist]:
    conditions, held = distinct(points, "condition"), distinct(points, "place")
    shape = MARKERS.get(conditions[0], "X") if len(conditions) == 1 else "o"
    handles: list[Artist] = []
    for name in [place for place in SPANS if place in held] + [place for place in held if place not in SPANS]:
        called = {place_name(name, condition) for condition in conditions}
        style: dict[str, Any] = {"color": _colour(name), "label": called.pop() if len(called) == 1 else name}
        several = len(conditions) > 1  # then the shape tells them apart
        handles.append(Patch(lw=0, **style) if several else Line2D([], [], marker=shape, mew=0, **_MARK, **style))
    for name in conditions if len(conditions) > 1 else ():
        style = {"marker": MARKERS.get(name, "X"), "color": COLOURS["control"], "mew": 0}
        handles.append(Line2D([], [], **style, **_MARK, label=f"{NAMES.get(name, name)} run"))
    handles.append(Line2D([], [], marker=shape, **_OPEN, **_MARK, label="random direction"))
    if no_more_than_random(points).any():
        same: dict[str, Any] = {"mfc": "white", "mec": COLOURS["control"], "mew": 0.9}
        handles.append(Line2D([], [], marker=shape, **same, **_MARK, label="no more than a random direction"))
    return handles


def _colour(place: str) -> str:
    return SPANS.get(place, (INK, ""))[0]
