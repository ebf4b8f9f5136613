"""Which routes of attention the answer needs, and from which layer on the picture is no longer read."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ._lines import band, share_axis
from ._patch import VALUES
from ._style import BESIDE, COLOURS, FAINT, INK, NAMES, SPANS, axes_for, legend_above, marker_size, styled
from ._tables import distinct, keep, need

WINDOW: Final = ("experiment", "queries", "keys", "first", "last")
EFFECT: Final = ("effect", "low", "high")
SHARE: Final = ("right", "right_low", "right_high", "base_right")
# Colours and marks of routes, in the order in which they come: far apart in hue and in grey.
ROUTES: Final = tuple(SPANS[name] for name in ("objects", "last", "objects+reading", "image", "question", "prompt"))
_FAINT: Final = 0.15  # opacity of bands that lie over each other


@styled
def knockout_windows(effects: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Effect of cutting attention from one span to another in a window of layers, over the window's middle.

    A line and 95 % band for each (queries, keys) of a summarised sweep of `knockouts`. Thin and dashed in the same
    colour: its control, as many other positions cut from the same queries, which the table must have. Raises
    `RunError` for what is missing.
    """
    table = need(effects, "knockout", (*WINDOW, *EFFECT))
    table = keep(table, "knockout", "experiment", ("knockout", "knockout_control"))
    table = table.assign(x=(table["first"] + table["last"]) / 2).sort_values("x", kind="stable")
    ax = axes_for(ax, height=2.6)
    handles: list[Artist] = []
    ax.axhline(0, color=FAINT, lw=0.6, zorder=0.5, label="no effect")
    for k, ((queries, keys), rows) in enumerate(table.groupby(["queries", "keys"], sort=False)):
        (colour, marker), name = ROUTES[k % len(ROUTES)], route(str(queries), str(keys))
        cut, control = (rows[rows.experiment == each] for each in ("knockout", "knockout_control"))
        band(ax, cut, ("low", "high"), colour=colour, label=name, strength=_FAINT)
        own: dict[str, Any] = {"color": colour, "marker": marker, "ms": marker_size(len(cut)), "label": name}
        ax.plot(cut.x, cut.effect, **own, zorder=3)
        ax.plot(control.x, control.effect, color=colour, **BESIDE, label=f"{name} control", zorder=2)
        handles.append(Line2D([], [], **own))
    handles.append(Line2D([], [], color=FAINT, **BESIDE, label="as many others cut"))
    _layers(ax, table)
    ax.set_ylabel(VALUES["effect"][2])
    legend_above(ax, handles, columns=3)
    return ax


def route(queries: str, keys: str) -> str:
    """What a route is called: who reads what."""
    return f"{queries} ← {keys}"


def _layers(ax: Axes, table: pd.DataFrame) -> None:
    sizes = set(table["last"] - table["first"] + 1)
    size = f"{int(min(sizes))}" if len(sizes) == 1 else f"{int(min(sizes))} to {int(max(sizes))}"
    ax.set_xlabel("decoder layer" if sizes == {1} else f"decoder layer (middle of {size} that are cut)")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=13, integer=True, min_n_ticks=1))


@styled
def exit_curve(effects: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What is left of the answer when image tokens are read up to a layer only: from it on, nothing later reads them.

    Of a summarised sweep of `exits`: the change of the answer's log-probability (left axis, black), and the share of
    items answered right (right axis, colour), with 95 % bands; dotted, the share of the run as it is. Raises
    `RunError` for what is missing.
    """
    table = keep(need(effects, "exit", (*WINDOW, *EFFECT, *SHARE)), "exit", "experiment", "exit")
    table = table.assign(x=table["first"]).sort_values("x")
    ax = axes_for(ax, height=2.2)
    size = marker_size(len(table))
    band(ax, table, ("low", "high"), colour=INK, label="effect", strength=_FAINT)
    ax.plot(table.x, table.effect, color=INK, marker="o", ms=size, label="effect", zorder=3)
    ax.axhline(0, color=FAINT, lw=0.6, zorder=0.5, label="no effect")
    share, colour = axes_for(ax.twinx(), height=1), COLOURS["direct"]
    band(share, table, ("right_low", "right_high"), colour=colour, label="right", strength=_FAINT)
    share.plot(table.x, table.right, color=colour, marker="s", ms=size, label="right", zorder=3)
    share.axhline(table.base_right.mean(), color=colour, linestyle=":", lw=0.9, label="unpatched")
    share_axis(share)
    share.spines["right"].set(visible=True, color=colour)
    share.tick_params(axis="y", colors=colour)
    share.set_ylabel("answered right (share of items)", color=colour)
    ax.set_ylabel(VALUES["effect"][2])
    ax.set_xlabel(f"decoder layer from which on {_dropped(table)} are dropped")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=13, integer=True, min_n_ticks=1))
    legend_above(ax, _exit_handles(colour), columns=3)
    return ax


def _dropped(table: pd.DataFrame) -> str:
    return " and ".join(
        "image tokens" if name == "image" else NAMES.get(name, name) for name in distinct(table, "keys")
    )


def _exit_handles(colour: str) -> list[Artist]:
    return [
        Line2D([], [], color=INK, marker="o", label="log-probability"),
        Line2D([], [], color=colour, marker="s", label="answered right"),
        Line2D([], [], color=colour, linestyle=":", lw=0.9, label="answered right, nothing cut"),
    ]
