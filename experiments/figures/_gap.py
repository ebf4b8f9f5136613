"""The composition gap: accuracy of each task under each condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ._style import (
    COLOURS,
    DASHES,
    INK,
    NAMES,
    SMALL,
    axes_for,
    legend_above,
    styled,
    text_width,
    tint,
    width_in_points,
)
from ._tables import distinct, keep, need

COLUMNS: Final = ("task", "subset", "condition", "n", "estimate", "low", "high")
CONDITIONS: Final = ("direct", "cascaded", "oracle", "cot")
ALL, PASSING = "all", "both steps pass"
_SPREAD: Final = 0.84  # of the room between tasks


@styled
def gap_bars(
    gap: pd.DataFrame,
    ax: Axes | None = None,
    *,
    conditions: Sequence[str] | None = None,
    chance: Mapping[str, float] | None = None,
) -> Axes:
    """Accuracy by task and condition with 95 % intervals, and the gap (cascaded − direct) over a bracket.

    Bars are all items; open circles are the items whose two steps both pass alone. `gap` is the table of
    `composition_gap`. `conditions`: default, those of the four that the table has; `direct` and `cascaded`
    must be there. `chance`: accuracy by guessing, by task, drawn dotted. Raises `RunError` for what is
    missing.
    """
    table = need(gap, "gap", COLUMNS)
    keep(table, "gap", "condition", ("direct", "cascaded", "gap"))
    shown = list(conditions or [name for name in CONDITIONS if name in set(table.condition)])
    keep(table, "gap", "condition", shown)
    keep(table, "gap", "subset", ALL)
    ax = axes_for(ax, height=2.5)
    tasks = distinct(table, "task")
    for place, task in enumerate(tasks):
        _draw_task(ax, table[table.task == task], place, shown, room=width_in_points(ax) / len(tasks))
        if chance and task in chance:
            _level(ax, chance[task], place)
    _finish(ax, tasks, shown, chance=bool(chance), passing=PASSING in set(table.subset))
    return ax


def _level(ax: Axes, chance: float, place: int) -> None:
    ax.hlines(chance, place - 0.5, place + 0.5, colors=COLOURS["chance"], linestyles=DASHES["chance"], lw=0.8)


def _draw_task(ax: Axes, table: pd.DataFrame, place: int, shown: list[str], *, room: float) -> None:
    width = _SPREAD / len(shown)
    spots = {name: place + (k - (len(shown) - 1) / 2) * width for k, name in enumerate(shown)}
    top = 0.0
    for name, spot in spots.items():
        whole, passing = _row(table, ALL, name), _row(table, PASSING, name)
        if whole is not None:
            ax.bar(spot, whole.estimate, 0.92 * width, color=tint(COLOURS[name], 0.72), zorder=1)
            ax.vlines(spot - 0.2 * width, whole.low, whole.high, colors=INK, lw=0.9, zorder=3)
            top = max(top, whole.high)
        if passing is not None:
            ax.vlines(spot + 0.2 * width, passing.low, passing.high, colors=INK, lw=0.7, zorder=3)
            ax.plot([spot + 0.2 * width], [passing.estimate], "o", mfc="white", mec=INK, ms=3, mew=0.7, zorder=4)
            top = max(top, passing.high)
    _bracket(ax, table, spots, level=top + 0.04, room=room)


def _row(table: pd.DataFrame, subset: str, condition: str) -> pd.Series | None:
    found = table[(table.subset == subset) & (table.condition == condition)]
    return None if found.empty or pd.isna(found.iloc[0].estimate) else found.iloc[0]


def _bracket(ax: Axes, table: pd.DataFrame, spots: Mapping[str, float], *, level: float, room: float) -> None:
    gaps = [(mark, _row(table, subset, "gap")) for mark, subset in (("■", ALL), ("○", PASSING))]
    full = [f"{mark} {_signed(row.estimate)} {_interval(row)}" for mark, row in gaps if row is not None]
    short = [f"{mark} {_signed(row.estimate)}" for mark, row in gaps if row is not None]
    lines = full if text_width(full[0] if full else "") <= room else short
    left, right = spots["direct"], spots["cascaded"]
    ax.plot([left, left, right, right], [level, level + 0.02, level + 0.02, level], color=INK, lw=0.7)
    where = sum(spots.values()) / len(spots) if lines is full else (left + right) / 2
    ax.text(
        where,
        level + 0.035,
        "\n".join(["gap", *lines]),
        ha="center",
        va="bottom",
        size=SMALL,
        linespacing=1.15,
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _interval(row: pd.Series) -> str:
    return f"[{row.low:.2f}, {row.high:.2f}]".replace("-", "−")


def _finish(ax: Axes, tasks: list[str], shown: list[str], *, chance: bool, passing: bool) -> None:
    ax.set_xticks(range(len(tasks)), [task.replace(".", "\n", 1).replace("_", "\n", 1) for task in tasks])
    ax.set_xlim(-0.55 - (len(tasks) == 1) * 0.3, len(tasks) - 0.45 + (len(tasks) == 1) * 0.3)
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(0, 1.32)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1])
    ax.spines["left"].set_bounds(0, 1)
    ax.set_ylabel("accuracy (share of items)")
    handles: list[Artist] = [Patch(color=tint(COLOURS[name], 0.72), label=NAMES[name]) for name in shown]
    handles.append(Patch(color="#bbbbbb", label="all items (■)"))
    if passing:
        handles.append(Line2D([], [], color=INK, lw=0.7, marker="o", mfc="white", mew=0.7, label="both steps pass (○)"))
    if chance:
        handles.append(Line2D([], [], color=COLOURS["chance"], linestyle=DASHES["chance"], lw=0.8, label="chance"))
    legend_above(ax, handles, columns=3)
