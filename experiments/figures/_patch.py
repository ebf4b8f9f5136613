"""What is used where: effects of patching by layer and span, and of writing later layers into earlier."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from seamscope.hooks import RunError, choose

from ._depth import Depth, dress
from ._mesh import EMPTY, ROOM, Cells, Scale, draw_cells
from ._style import NAMES, SPANS, axes_for, styled
from ._tables import distinct, keep, need

COLUMNS: Final = ("experiment", "source_site", "target_site", "span")
VALUES: Final = {
    "effect": ("low", "high", "change of log-probability\nof the answer (nats)"),
    "right": ("right_low", "right_high", "share of items answered right"),
}
NOTHING: Final = {"effect": "no effect", "right": "the unpatched share"}


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
    _draw(ax, table, at, (len(spans), len(depth)), value=value, lift=depth.headroom)
    ax.invert_yaxis()
    dress(ax, depth, room=ROOM)
    ax.set_yticks(range(len(spans)), [NAMES.get(name, name) for name in spans])
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
    _draw(ax, table, at, (len(sources), len(targets)), value=value, empty="white")
    for axis, layers in ((ax.xaxis, targets), (ax.yaxis, sources)):
        step = 1 + len(layers) // 13
        axis.set_ticks(range(0, len(layers), step), [str(int(n)) for n in layers[::step]])
    ax.set_xlabel(f"written into decoder layer ({NAMES.get(span, span)})")
    ax.set_ylabel("taken from decoder layer")
    return ax


def _rows(effects: pd.DataFrame, experiment: str, value: str) -> pd.DataFrame:
    low, high, _ = VALUES[choose("value", value, VALUES, RunError)]
    columns = (*COLUMNS, value, low, high, *(["base_right"] if value == "right" else []))
    return keep(need(effects, "effects", columns), "effects", "experiment", experiment)


def _draw(
    ax: Axes,
    table: pd.DataFrame,
    at: list[tuple[int, int]],
    shape: tuple[int, int],
    *,
    value: str,
    empty: str = EMPTY,
    lift: float = 0,
) -> None:
    low, high, _ = VALUES[value]
    null = table.base_right if value == "right" else 0.0
    nothing = (table[low] <= null) & (null <= table[high])
    cells = Cells.of(at, table[value], nothing, shape=shape, what="effects")
    hatch = f"95 % interval holds {NOTHING[value]}"
    draw_cells(ax, cells, _scale(table, value), hatch=hatch, empty=empty, lift=lift)


def _scale(table: pd.DataFrame, value: str) -> Scale:
    words = VALUES[value][2]
    if value == "right":
        return Scale(colours=colormaps["cividis"], ends=Normalize(0, 1), words=words)
    reach = float(table[value].abs().max()) or 1.0
    return Scale(colours=colormaps["PuOr"], ends=Normalize(-reach, reach), words=words)
