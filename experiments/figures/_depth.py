"""One axis through the whole model: tower layers, projector, decoder layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import pandas as pd
from matplotlib.axes import Axes

from seamscope.hooks import RunError, Site

from ._style import FAINT, SMALL, height_in_points, text_width, width_in_points

STACKS: Final = {"vision": ("vision tower", "tower"), "lm": ("language decoder", "decoder")}
WHOLE: Final = {"projector.out": "proj.", "lm.embed": "emb.", "lm.final_norm": "norm", "lm.logits": "logits"}
APART: Final = 11.0  # points between the centres of neighbouring tick labels, at least
UPRIGHT: Final = 7.0  # points between names that stand upright


@dataclass(frozen=True)
class Depth:
    """Sites in forward order; the place of each on the axis is its index."""

    sites: tuple[Site, ...]

    @classmethod
    def of(cls, sites: Iterable[str], *, kind: str = "resid_post") -> Depth:
        """Those sites that stand outside layers or are of this kind, each once, in forward order."""
        parsed = {Site.parse(str(name)) for name in sites}
        kept = sorted(site for site in parsed if site.layer is None or site.kind == kind)
        if not kept:
            kinds = ", ".join(sorted({site.kind for site in parsed}))
            raise RunError(f"no site of kind {kind!r} to draw; the table has: {kinds}")
        return cls(tuple(kept))

    def x(self, site: str) -> int:
        """Where a site stands on the axis."""
        return self.sites.index(Site.parse(site))

    def along(self, table: pd.DataFrame, column: str = "site") -> pd.DataFrame:
        """The rows whose site is on the axis, in its order, with their place on it in the column `x`."""
        table = table[[site in self for site in table[column]]]
        return table.assign(x=[self.x(site) for site in table[column]]).sort_values("x", kind="stable")

    def __contains__(self, site: str) -> bool:
        return Site.parse(site) in self.sites

    def __len__(self) -> int:
        return len(self.sites)

    def run(self, stack: str) -> tuple[int, int] | None:
        """First and last index of a stack, or None where the axis has none of it."""
        found = [k for k, site in enumerate(self.sites) if site.stack == stack]
        return (found[0], found[-1]) if found else None

    @property
    def label(self) -> str:
        """What the axis counts: layers of one stack, or of several."""
        stacks = {site.stack for site in self.sites}
        return f"{STACKS[stacks.pop()][1]} layer" if len(stacks) == 1 and stacks <= set(STACKS) else "layer"

    @property
    def headroom(self) -> float:
        """Points over the axes that the names of the stacks take; one stack is named by the axis."""
        return 10.0 if len({site.stack for site in self.sites}) > 1 else 0.0

    def layer(self, number: int, *, stack: str = "lm") -> int | None:
        """Index of a layer of a stack, or None."""
        for k, site in enumerate(self.sites):
            if site.stack == stack and site.layer == number:
                return k
        return None

    def ticks(self, points: float) -> list[tuple[int, str]]:
        """(index, label) of the ticks that fit on an axis that many points long."""
        slot = points / len(self)
        outside = [k for k, site in enumerate(self.sites) if site.layer is None]
        whole: dict[int, str] = {}
        for k in outside:
            if all((k - other) * slot >= UPRIGHT for other in whole):
                whole[k] = WHOLE.get(str(self.sites[k]), self.sites[k].kind)
        step = next((n for n in (1, 2, 4, 5, 8, 10, 16, 20) if n * slot >= APART), 32)
        chosen = dict(whole)
        for k, site in enumerate(self.sites):
            clear = all(abs(k - other) * slot >= 0.9 * APART for other in whole)
            if site.layer is not None and site.layer % step == 0 and clear:
                chosen[k] = str(site.layer)
        return sorted(chosen.items())


def dress(ax: Axes, depth: Depth, *, lines: bool = True, room: float = 1.0) -> None:
    """Give the axes the depth axis: ticks, and a line between stacks and their names above if there are several.

    `room`: share of the axes' present width that other artists, such as a colour bar, will leave them.
    """
    ax.set_xlim(-0.6, len(depth) - 0.4)
    ticks = depth.ticks(room * width_in_points(ax))
    ax.set_xticks([k for k, _ in ticks], [name for _, name in ticks])
    for (_, name), tick in zip(ticks, ax.xaxis.get_major_ticks(), strict=True):
        tick.label1.set_rotation(0 if name.isdigit() else 90)
    for left, right in zip(depth.sites, depth.sites[1:], strict=False):
        if lines and left.stack != right.stack:
            ax.axvline(depth.x(str(right)) - 0.5, color=FAINT, linewidth=0.6, zorder=0.5)
    for stack in STACKS if depth.headroom else ():
        _name_stack(ax, depth, stack)
    ax.set_xlabel(depth.label)


def dress_up(ax: Axes, depth: Depth) -> None:
    """Give the axes the depth axis upwards: ticks alone."""
    ax.set_ylim(-0.5, len(depth) - 0.5)
    ticks = depth.ticks(height_in_points(ax))
    ax.set_yticks([k for k, _ in ticks], [name for _, name in ticks])


def _name_stack(ax: Axes, depth: Depth, stack: str) -> None:
    run = depth.run(stack)
    if run is None:
        return
    room = (run[1] - run[0] + 1) / len(depth) * width_in_points(ax)
    name = next((name for name in STACKS[stack] if text_width(name) <= room), None)
    if name is not None:
        middle = (run[0] + run[1]) / 2
        ax.text(
            middle,
            1.015,
            name,
            transform=ax.get_xaxis_transform(),
            ha="center",
            va="bottom",
            fontsize=SMALL,
            color=FAINT,
        )
