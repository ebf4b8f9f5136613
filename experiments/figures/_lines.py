"""What curves over depth have in common: bands, thin lines of controls, an axis of shares."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from matplotlib.axes import Axes

from ._style import COLOURS, DASHES

MARKERS: Final = {"direct": "o", "cascaded": "s", "oracle": "^", "cot": "D"}
FAINT_BAND: Final = 0.1  # opacity


def band(
    ax: Axes, table: pd.DataFrame, ends: tuple[str, str], *, colour: str, label: str, strength: float = 0.22
) -> None:
    """Fill between two columns; `x` is the place on the axis."""
    low, high = (table[name] for name in ends)
    ax.fill_between(table.x, low, high, color=colour, alpha=strength, lw=0, label=f"{label} 95 %", zorder=1.2)


def thin(ax: Axes, table: pd.DataFrame, name: str, *, colour: str, label: str) -> None:
    """A thin line of a control's accuracy, with a faint band where the table has its interval."""
    ends = f"{name}_low", f"{name}_high"
    if set(ends) <= set(table.columns):
        band(ax, table, ends, colour=colour, label=label, strength=FAINT_BAND)
    accuracy = table[f"{name}_accuracy"]
    ax.plot(table.x, accuracy, color=colour, linestyle=DASHES[name], lw=0.6, label=label, zorder=1.5)


def chance_line(ax: Axes, table: pd.DataFrame) -> None:
    """Chance at each place, the mean of what the table has there."""
    chance = table.groupby("x").chance.mean()
    style: dict[str, Any] = {"color": COLOURS["chance"], "linestyle": DASHES["chance"], "lw": 0.9}
    ax.plot(chance.index, chance, label="chance", zorder=2, **style)


def share_axis(ax: Axes) -> None:
    """From 0 to 1 upwards."""
    ax.set_ylim(-0.02, 1.04)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
