"""What every head does to the answer."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib.axes import Axes

from ._depth import Depth, dress_up
from ._effects import effect_rows, effect_scale, holds_nothing, nothing_words
from ._mesh import ROOM, Cells, draw_cells
from ._style import NAMES, axes_for, styled, width_in_points
from ._tables import keep

_APART: Final = 11.0  # points between the numbers of heads


@styled
def head_map(
    effects: pd.DataFrame, ax: Axes | None = None, *, experiment: str, span: str, value: str = "effect"
) -> Axes:
    """Effect of patching one head's output at the tokens of a span: heads across, layers up.

    Of a summarised sweep by head; `value` and the marks are those of `patch_heatmap`. Raises `RunError` for what is
    missing.
    """
    table = effect_rows(effects, experiment, value, ("target_site", "span", "head"))
    table = keep(table, "effects", "span", span)
    depth = Depth.of(table.target_site, kind="head_z")
    table = depth.along(table, "target_site")
    heads = sorted(set(table["head"].astype(int)))
    ax = axes_for(ax, height=min(3.2, 0.75 + 0.16 * len(depth)))
    at = [(x, heads.index(int(head))) for x, head in zip(table.x, table["head"], strict=True)]
    cells = Cells.of(at, table[value], holds_nothing(table, value), shape=(len(depth), len(heads)), what="effects")
    draw_cells(ax, cells, effect_scale(table[value], value), hatch=nothing_words(value))
    dress_up(ax, depth)
    ax.set_ylabel(depth.label)
    slot = ROOM * width_in_points(ax) / len(heads)
    step = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n * slot >= _APART or n >= len(heads))
    ax.set_xticks(range(0, len(heads), step), [str(head) for head in heads[::step]])
    ax.set_xlabel(f"head (at {NAMES.get(span, span)})")
    return ax
