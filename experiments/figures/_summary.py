"""One picture of the path of the intermediate through the model, and of the place where it is lost."""

from __future__ import annotations

from textwrap import fill
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import Normal, Stroke

from seamscope.hooks import RunError

from .._verdict import LOCI, Verdict
from ._depth import Depth, dress
from ._keys import causal_key, shading_keys
from ._style import COLOURS, FAINT, INK, NAMES, SMALL, axes_for, marker_size, ramp, styled, tint
from ._tables import keep, need, probe_lines, span_family
from ._way import lost_at, reach, told

PLACES: Final = ("objects", "image", "question", "last")
# the half-heights of a row's two lanes, in rows: the direct run, and below it the cascaded run for reference
DIRECT: Final = (-0.3, 0.14)
CASCADED: Final = (0.17, 0.3)
EFFECTS: Final = ("experiment", "target_site", "span", "normalised", "low", "high")
_ABOVE: Final = 13  # points between the axes and the headline: room for the names of the stacks
# where a class of loss is drawn: (first row, last row, stack); rows by place, "reading" is every reading row
_WHERE: Final = {
    "not_encoded": ("seen", "seen", "vision"),
    "lost_in_projector": ("seen", "seen", "projector"),
    "overwritten": ("seen", "seen", "lm"),
    "not_routed": ("seen", "reading", "lm"),
    "too_late": ("reading", "reading", "lm"),
    "not_used": ("reading", "reading", "lm"),
}


@styled
def summary_path(
    probes: pd.DataFrame,
    effects: pd.DataFrame,
    verdict: Verdict,
    ax: Axes | None = None,
    *,
    target: str | None = None,
    causal: str = "denoise",
    kind: str = "resid_post",
) -> Axes:
    """The path of the intermediate: rows are places, from the image to the position that answers; x is depth.

    Shading: how far above chance a probe reads the target, (accuracy − chance) / (1 − chance), in the direct
    run and, in the thin lane below, in the cascaded run. Black line within a row: the share of the
    log-probability that patching this place alone moves (`normalised` of the experiment `causal`, from 0 at
    the row's lower edge to 1 at its upper; no line where it was not measured), with a dot where the 95 %
    interval of the effect excludes 0. The box is the verdict's locus over the interval of its layer; classes
    that are no loss have none. Raises `RunError` for what is missing.
    """
    places = [place for place in PLACES if place in set(need(probes, "probes", ("span",)).span.map(span_family))]
    if not places:
        raise RunError(f"the probes table has none of the spans {', '.join(PLACES)}")
    lines = {place: probe_lines(probes, span=place, target=target) for place in places}
    depth = Depth.of((site for table in lines.values() for site in table.site), kind=kind)
    table = keep(need(effects, "effects", EFFECTS), "effects", "experiment", causal)
    ax = axes_for(ax, height=1.35 + 0.55 * len(places))
    for row, (place, line) in enumerate(lines.items()):
        keep(line, "probes", "condition", "direct")
        _lane(ax, line, depth, row, condition="direct", lane=DIRECT, name=place)
        _lane(ax, line, depth, row, condition="cascaded", lane=CASCADED, name=place)
        _effects(ax, table[table.span == place], depth, row, name=place)
    dress(ax, depth, lines=False)
    _rows(ax, lines, places)
    _flow(ax, depth, places)
    _locus(ax, verdict, depth, places)
    _headline(ax, verdict)
    shading_keys(ax, cascaded=any("cascaded" in set(line.condition) for line in lines.values()))
    causal_key(ax, causal)
    return ax


def _lane(
    ax: Axes,
    line: pd.DataFrame,
    depth: Depth,
    row: int,
    *,
    condition: str,
    lane: tuple[float, float],
    name: str,
) -> None:
    cells = line[(line.condition == condition) & line.site.map(lambda site: site in depth)]
    if cells.empty:
        return
    x = cells.site.map(depth.x)
    above = np.full(int(x.max() - x.min()) + 1, np.nan)
    above[x - x.min()] = (cells.accuracy - cells.chance) / (1 - cells.chance).clip(lower=1e-9)
    left, height = int(x.min()) - 0.5, lane[1] - lane[0]
    lines: dict[str, Any] = {"edgecolors": tint(INK, 0.25), "linewidth": 0.3 if len(depth) <= 24 else 0}
    mesh = ax.pcolormesh(
        np.arange(len(above) + 1) + left, [row + lane[0], row + lane[1]], above[None, :],
        cmap=ramp(COLOURS[condition]), vmin=0, vmax=1, zorder=1, **lines,
    )  # fmt: skip
    mesh.set_label(f"{name} {condition}")
    frame = Rectangle((left, row + lane[0]), len(above), height, fill=False, ec=tint(INK, 0.45), lw=0.5)
    ax.add_patch(frame)


def _effects(ax: Axes, table: pd.DataFrame, depth: Depth, row: int, *, name: str) -> None:
    table = table[np.array([site in depth for site in table.target_site], dtype=bool) & table.normalised.notna()]
    if table.empty:  # a decoder without tokens of the image has nothing to patch there
        return
    table = table.assign(x=table.target_site.map(depth.x)).sort_values("x")
    bottom, top = row + DIRECT[1] - 0.05, row + DIRECT[0] + 0.05
    y = bottom + (top - bottom) * table.normalised.clip(0, 1)
    halo = [Stroke(linewidth=2.4, foreground="white"), Normal()]
    ax.plot(table.x, y, color=INK, lw=1.1, zorder=5, label=f"{name} effect", path_effects=halo)
    sure = (table.low > 0) | (table.high < 0)
    size = marker_size(len(depth)) + 0.4
    ax.plot(table.x[sure], y[sure], "o", color=INK, ms=size, mec="white", mew=0.4, zorder=6, label=f"{name} sure")


def _rows(ax: Axes, lines: dict[str, pd.DataFrame], places: list[str]) -> None:
    ticks = [(row + sum(DIRECT) / 2, NAMES[place], INK) for row, place in enumerate(places)]
    for row, place in enumerate(places):
        if "cascaded" in set(lines[place].condition):
            words = "its words, cascaded" if place in ("objects", "image") else "cascaded"
            ticks.append((row + sum(CASCADED) / 2, words, COLOURS["cascaded"]))
    ax.set_yticks([y for y, _, _ in ticks], [name for _, name, _ in ticks])
    for (_, _, colour), label in zip(ticks, ax.get_yticklabels(), strict=True):
        label.set_color(colour)
        label.set_fontsize(SMALL if colour != INK else 6.5)
    ax.set_ylim(len(places) - 0.55, -0.62)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, pad=2)


def _locus(ax: Axes, verdict: Verdict, depth: Depth, places: list[str]) -> None:
    if verdict.locus not in _WHERE:
        return
    first, last, stack = _WHERE[verdict.locus]
    reading = [row for row, place in enumerate(places) if place in ("question", "last")]
    seen = [row for row, place in enumerate(places) if place in ("objects", "image")]
    rows = {"seen": seen, "reading": reading}
    across = _across(verdict, depth, stack)
    if across is None or not rows[first] or not rows[last]:
        return
    top, bottom = rows[first][0] + DIRECT[0], rows[last][-1] + DIRECT[1]
    if verdict.locus == "not_routed":  # between the two: the step that fails to happen
        top, bottom = rows["seen"][-1] + CASCADED[1] + 0.02, rows["reading"][0] + DIRECT[0] - 0.02
    left, right = across
    box = FancyBboxPatch(
        (left - 0.5, top - 0.03), right - left + 1, bottom - top + 0.06,
        boxstyle="round,pad=0,rounding_size=0.1", fill=False, ec=INK, lw=1.5, zorder=7, label="locus",
    )  # fmt: skip
    ax.add_patch(box)
    between = verdict.locus == "not_routed"  # an empty box has room for its name
    y, anchor = ((top + bottom) / 2, "center_baseline") if between else (top - 0.06, "bottom")
    words: dict[str, Any] = {"size": SMALL, "weight": "bold", "zorder": 8}
    ax.text((left + right) / 2, y, "lost here", ha="center", va=anchor, **words)


def _across(verdict: Verdict, depth: Depth, stack: str) -> tuple[int, int] | None:
    site = lost_at(verdict)
    found = reach(verdict, depth) if site is not None and site.stack == stack else None
    return depth.run(stack) if found is None else found


def _headline(ax: Axes, verdict: Verdict) -> None:
    meaning = fill(LOCI.get(verdict.locus, ""), 46)
    ax.set_title(meaning, loc="left", fontsize=6.5, pad=_ABOVE, linespacing=1.2)
    lift = _ABOVE + 2 + 8.2 * len(meaning.splitlines())
    ax.annotate(
        told(verdict), (0, 1), (0, lift), xycoords="axes fraction",
        textcoords="offset points", va="bottom", size=7.5, weight="bold", annotation_clip=False,
    )  # fmt: skip


def _flow(ax: Axes, depth: Depth, places: list[str]) -> None:
    """An arrow beside the decoder: what is at image positions reaches the others by attention only."""
    run = depth.run("lm")
    if run is None or run[0] < 2 or len(places) < 2:
        return
    x, last = run[0] - 0.95, len(places) - 1
    ax.annotate("", (x, last), (x, CASCADED[1] + 0.1), arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 0.8})
    middle = (last + CASCADED[1]) / 2
    ax.text(x - 0.25, middle, "attention", rotation=90, ha="right", va="center", size=SMALL, color=FAINT)
