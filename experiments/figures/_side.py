"""Several models side by side: the way of the intermediate through each."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from seamscope.hooks import RunError

from .._verdict import LOCI, Verdict
from ._depth import Depth, dress
from ._style import COLOURS, FAINT, NAMES, SMALL, SPANS, WIDTH, axes_for, blank, root, styled, text_width
from ._tables import distinct
from ._way import ROWS, SHADE, draw_lines, score_axis, shade, told, way_rows, whole

ACROSS: Final = 3  # panels in a row
_LINE: Final = 7.5  # points that a line over a panel takes
_MARGIN: Final = 16.0  # points between panels


def side_rows(tables: Mapping[str, pd.DataFrame], reading: Mapping[str, pd.DataFrame] | None = None) -> pd.DataFrame:
    """What `side_by_side` draws: of each `model` the rows of `way_rows` of direct runs; none without a table."""
    found = [pd.DataFrame(columns=["model", *ROWS])]
    for name, path in tables.items():
        if not path.empty:
            rows = way_rows(path, (reading or {}).get(name))
            found.append(rows[rows.condition == "direct"].assign(model=name))
    held = [table for table in found if not table.empty]
    return pd.concat(held, ignore_index=True)[["model", *ROWS]] if held else found[0]


@styled
def side_by_side(
    tables: Mapping[str, pd.DataFrame],
    *,
    reading: Mapping[str, pd.DataFrame] | None = None,
    verdicts: Mapping[str, Verdict] | None = None,
) -> Figure:
    """The way of the intermediate through each model, a panel for each, in the order given.

    `tables` and `reading` are those of `way`, by the model's name; where one is empty, the panel says that nothing was
    measured. Drawn are direct runs with their 95 % intervals: at the objects' own tokens, with the control task, and at
    the reading positions of models that have `reading`. Over a panel stand the name and, given `verdicts`, the class of
    the loss and its layer, which is shaded. Raises `RunError` where there is no model, or a table lacks a column.
    """
    if not tables:
        raise RunError("there is nothing to draw: no model was given")
    rows, told_of = side_rows(tables, reading), verdicts or {}
    across = min(ACROSS, len(tables))
    down = -(-len(tables) // across)
    figure = blank(0.5 + 1.6 * down, width=WIDTH if across == 1 else 2 * WIDTH)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    depths = {str(name): whole(own.site) for name, own in rows.groupby("model")}
    lift = max((depth.headroom for depth in depths.values()), default=0.0)
    for ax, name in zip(panels, tables, strict=False):
        _panel(axes_for(ax, height=1), rows[rows.model == name], depths.get(name), verdict=told_of.get(name))
        _head(ax, name, told_of.get(name), lift=lift)
        score_axis(ax, rows)
    for k, ax in enumerate(panels):
        if k % across:
            ax.tick_params(labelleft=False)
        if k + across < len(tables):
            ax.set_xlabel("")
        if k >= len(tables):
            ax.set_axis_off()
    figure.supylabel("read by probes (0: chance, 1: always)", fontsize=7)
    handles = _handles(rows, shaded=bool(told_of))
    figure.legend(handles=handles, loc="outside upper center", ncol=len(handles) if across > 1 else 3)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, depth: Depth | None, *, verdict: Verdict | None) -> None:
    if depth is None:
        why = "" if verdict is None else f":\n{LOCI.get(verdict.locus, '')}"
        style: dict[str, Any] = {"ha": "center", "va": "center", "size": SMALL, "color": FAINT}
        ax.text(0.5, 0.5, _fit(ax, f"not measured{why}"), transform=ax.transAxes, **style)
        ax.set_xticks([])
        return
    draw_lines(ax, rows, depth, controls=("objects",))
    dress(ax, depth)
    if verdict is not None:
        shade(ax, depth, verdict)


def _head(ax: Axes, name: str, verdict: Verdict | None, *, lift: float) -> None:
    """The model's name, and below it what the verdict says."""
    said = "" if verdict is None else _fit(ax, told(verdict))
    ax.set_title(said, loc="left", fontsize=SMALL, pad=lift + 3)
    above = lift + 4 + _LINE * len(said.splitlines())
    style: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    ax.annotate(_fit(ax, name, size=7), (0, 1), (0, above), va="bottom", weight="bold", size=7, **style)


def _fit(ax: Axes, text: str, *, size: float = SMALL) -> str:
    """Broken into lines that are no wider than a panel."""
    grid = ax.get_gridspec()
    room = 72 * root(ax).get_figwidth() / (1 if grid is None else grid.ncols) - _MARGIN
    most = max(8, int(room / text_width("x", size=size)))
    return "\n".join(fill(line, most) for line in text.splitlines())


def _handles(rows: pd.DataFrame, *, shaded: bool) -> list[Artist]:
    handles: list[Artist] = [
        Line2D([], [], color=SPANS[place][0], marker=SPANS[place][1], label=NAMES[place])
        for place in SPANS
        if place in distinct(rows, "place")
    ]
    handles.append(Line2D([], [], color=COLOURS["control"], lw=0.6, label=NAMES["control"]))
    handles.append(Line2D([], [], color=COLOURS["chance"], linestyle=":", lw=0.9, label="chance"))
    return [*handles, Patch(color=SHADE, lw=0, label="the verdict's place")] if shaded else handles
