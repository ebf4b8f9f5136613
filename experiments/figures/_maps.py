"""Where a variable can be read: places by depth, in colour."""

from __future__ import annotations

from typing import Final

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from seamscope.hooks import RunError, choose

from ._depth import Depth, dress
from ._mesh import ROOM, Cells, Scale, draw_cells
from ._style import axes_for, place_name, styled
from ._tables import keep, need, of_target, probe_lines, span_family

PLACES: Final = ("objects", "image", "question", "last", "answer")
SURE: Final = 0.05  # the largest share of false discoveries that counts
UNSURE: Final = "q > 0.05, or no better than the control task"
VALUES: Final = {
    "accuracy": "accuracy\n(share of items)",
    "selectivity": "selectivity\n(share of items)",
    "bits": "description length\n(bits per item)",
}


@styled
def probe_map(
    probes: pd.DataFrame,
    ax: Axes | None = None,
    *,
    condition: str = "direct",
    value: str = "accuracy",
    target: str | None = None,
    kind: str = "resid_post",
) -> Axes:
    """What probes read at each place (up) and depth (across) in one condition.

    `value`: `accuracy`, coloured from chance to 1; `selectivity`, from 0 to 1; or `bits`, the online description
    length per item, from that of uniform guessing down to 0. Bright is well readable. Hatched: q > 0.05, or the 95 %
    interval of the selectivity reaches 0; for a family of targets, where this is so of one of them, or of the mean.
    Grey cells were not measured. `target` and `kind` are those of `probe_curves`. Raises `RunError` for what is
    missing.
    """
    columns = {"bits": ("bits", "uniform_bits")}.get(choose("value", value, VALUES, RunError), (value,))
    table = keep(need(probes, "probes", ("q", "selectivity_low", *columns)), "probes", "condition", condition)
    table = of_target(table, "probes", target)
    held = set(table.span.map(span_family))
    places = [name for name in PLACES if name in held] + sorted(held - set(PLACES))
    lines = [probe_lines(table, span=name, target=target).assign(row=k) for k, name in enumerate(places)]
    ax = axes_for(ax, height=0.95 + 0.28 * len(places))
    depth = Depth.of((site for each in lines for site in each.site), kind=kind)
    cells = depth.along(pd.concat(lines, ignore_index=True))
    at = list(zip(cells.row, cells.x, strict=True))
    unsure = (cells.q > SURE) | (cells.selectivity_low <= 0)
    drawn = Cells.of(at, cells[value], unsure, shape=(len(places), len(depth)), what="probes")
    draw_cells(ax, drawn, _scale(cells, value), hatch=UNSURE, lift=depth.headroom)
    ax.invert_yaxis()
    dress(ax, depth, lines=False, room=ROOM)
    ax.set_yticks(range(len(places)), [place_name(name, condition) for name in places])
    return ax


def _scale(cells: pd.DataFrame, value: str) -> Scale:
    words = VALUES[value]
    if value == "bits":
        most = float(cells.uniform_bits.mean())
        ticks = {0.0: "0", most: "uniform"} | {float(n): str(n) for n in range(1, int(most + 0.5))}
        return Scale(colours=colormaps["cividis_r"], ends=Normalize(0, most), words=words, ticks=ticks, falling=True)
    return share_scale(float(cells.chance.mean()) if value == "accuracy" else 0.0, words)


def share_scale(chance: float, words: str) -> Scale:
    """From chance to 1."""
    named = {0.0: "0"} if chance == 0 else {chance: "chance"}
    ticks = named | {part: f"{part:g}" for part in (0.25, 0.5, 0.75, 1.0) if part - chance > 0.1}
    return Scale(colours=colormaps["cividis"], ends=Normalize(chance, 1), words=words, ticks=ticks)
