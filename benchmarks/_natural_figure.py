"""The figure of `natural_verdict.py`: for each data set and variant, the class and where on the way the loss is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

Record = Mapping[str, Any]

# Okabe and Ito's colours, and a shape for each class as well
MARKS: Final = {
    "not_encoded": ("#CC79A7", "v"),
    "lost_in_projector": ("#56B4E9", "D"),
    "overwritten": ("#E69F00", "^"),
    "not_routed": ("#F0E442", "P"),
    "too_late": ("#D55E00", ">"),
    "not_used": ("#0072B2", "o"),
    "none": ("#009E73", "s"),
    "text_skill": ("#666666", "h"),
    "format": ("#999999", "*"),
    "cannot_tell": ("#000000", "x"),
}
NOWHERE: Final = -2  # where a class that has no place stands


def draw(records: Sequence[Record], file: Path) -> None:
    """A panel for each data set, with one row for each variant."""
    names = list(dict.fromkeys(each["name"] for each in records))
    kinds = [next(each["kind"] for each in records if each["name"] == name) for name in names]
    tasks = list(dict.fromkeys(each["task"] for each in records))
    size = (2 + 2.1 * len(tasks), 1.6 + 0.17 * len(names))
    figure, axes = plt.subplots(1, len(tasks), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, task in zip(axes[0], tasks, strict=True):
        _panel(ax, [each for each in records if each["task"] == task], names)
        ax.set_title(task, fontsize=9)
        for row in (k for k in range(1, len(kinds)) if kinds[k] != kinds[k - 1]):
            ax.axhline(row - 0.5, color="#999999", linewidth=0.6, linestyle=":")
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=7)
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    told = [name for name in MARKS if any(each["locus"] == name for each in records)]
    handles = [_mark(axes[0, 0], [], [], name, label=name.replace("_", " ")) for name in told]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(told)), frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _panel(ax: Axes, records: Sequence[Record], names: Sequence[str]) -> None:
    way = records[0]["way"]
    for each in records:
        row, place = names.index(each["name"]), each["place"]
        at = way.index(place) if place in way else NOWHERE
        if each["interval"] is not None and place in way:
            low, high = (at + end - each["layer"] for end in each["interval"])
            ax.plot([low, high], [row, row], color=MARKS[each["locus"]][0], linewidth=2, alpha=0.6)
        _mark(ax, [at], [row], each["locus"])
        ax.text(len(way) + 0.2, row, f"{each['confidence']:.2f}", fontsize=6, va="center", color="#444444")
    _along(ax, way)
    ax.text(len(way) + 0.2, -0.7, "stated", fontsize=6, va="bottom", color="#444444")


def _along(ax: Axes, way: Sequence[str]) -> None:
    """The way from the tower's first layer to the decoder's last, and a place for what has none."""
    first = next(k for k, site in enumerate(way) if site.startswith("lm.") and site != "lm.embed")
    ends = {NOWHERE: "no place", 0: way[0], first - 2: "projector", first: way[first], len(way) - 1: way[-1]}
    ax.set_xticks(list(ends), [name.removesuffix(".resid_post") for name in ends.values()], fontsize=7)
    ax.tick_params(axis="x", rotation=90)
    ax.set_xlim(NOWHERE - 1, len(way) + 2.6)
    ax.grid(axis="y", color="#EEEEEE", zorder=0)
    ax.set_axisbelow(True)
    ax.axvline(first - 2, color="#DDDDDD", zorder=0)
    ax.spines[["top", "right"]].set_visible(False)


def _mark(ax: Axes, x: Sequence[float], y: Sequence[float], locus: str, label: str | None = None) -> Any:
    colour, shape = MARKS[locus]
    [line] = ax.plot(x, y, linestyle="none", marker=shape, color=colour, markersize=5.5, label=label)
    if shape != "x":
        line.set(markeredgecolor="#333333", markeredgewidth=0.4)
    return line
