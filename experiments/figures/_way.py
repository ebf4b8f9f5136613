"""The intermediate's way through the model: where on it can probes still read it?"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from seamscope.hooks import Site
from seamscope.probes import bootstrap_interval

from .._verdict import Verdict
from ._depth import STACKS, Depth, dress
from ._lines import FAINT_BAND, band
from ._style import (
    COLOURS,
    INK,
    NAMES,
    SMALL,
    SPANS,
    WIDTH,
    axes_for,
    blank,
    legend_above,
    marker_size,
    styled,
    text_width,
    tint,
    width_in_points,
)
from ._tables import distinct, need

if TYPE_CHECKING:
    from ..locator import Thresholds

COLUMNS: Final = ("condition", "site", "span", "kind", "group")
NAMED: Final = ("named", "named_control", "floor")
APART: Final = ("right", "control")
MEASURES: Final = {"named": "named rightly", "apart": "told apart"}
ROWS: Final = (
    *("condition", "place", "site", "measure"),
    *("score", "low", "high", "control", "control_low", "control_high", "n"),
)
TEXT: Final = "oracle"
# the classes whose place stands at the objects' own tokens, and at the reading positions
_SEEN: Final = ("not_encoded", "lost_in_projector", "overwritten")
_READ: Final = ("too_late", "not_used")
SHADE: Final = tint(INK, 0.14)
_DEEPEST: Final = -0.4
_OPEN: Final[dict[str, Any]] = {"mfc": "white", "linestyle": (0, (3, 1.2)), "lw": 0.9}


def way_rows(path: pd.DataFrame, reading: pd.DataFrame | None = None) -> pd.DataFrame:
    """What `way` draws, one row per (condition, place, site).

    At the objects' own tokens the `measure` is `named`: the share of items that probes name rightly, of those that are
    not named rightly by chance; at the reading positions it is `apart`: how well they tell an item from its partner.
    `score` is 0 at chance and 1 at always, and `low, high` its 95 % interval when whole groups are resampled; `control`
    is the same of the control task. `n` groups.

    Args:
        path: `condition, site, span, kind, group, named, named_control, floor`, a row per group and object; those of
            text runs are of the words.
        reading: `condition, site, span, kind, group, right, control`, a row per group; only objects are drawn.
    """
    found = _scored(need(path, "path", (*COLUMNS, *NAMED)), "named")
    if reading is not None and not reading.empty:
        rows = need(reading, "reading", (*COLUMNS, *APART))
        found += _scored(rows[rows.kind == "object"], "apart")
    return pd.DataFrame(found, columns=list(ROWS))


def _scored(rows: pd.DataFrame, measure: str) -> list[dict[str, Any]]:
    names = list(NAMED if measure == "named" else APART)
    means = rows.groupby(["condition", "span", "site", "group"], sort=False)[names].mean()
    found = []
    for (condition, place, site), table in means.groupby(level=["condition", "span", "site"], sort=False):
        floor = table.floor.mean() if measure == "named" else 0.5
        score, control = ((table[name] - floor) / (1 - floor) for name in names[:2])
        own = {"condition": condition, "place": place, "site": site, "measure": measure, "n": score.count()}
        found.append({**own, **ended(score, "score", ""), **ended(control, "control", "control_")})
    return found


def ended(values: pd.Series[float], name: str, prefix: str) -> dict[str, float]:
    """The mean over groups, of the index, and its 95 % interval; NaN where one was not measured."""
    held = values.dropna()
    low, high = bootstrap_interval(held, held.index.get_level_values("group"))
    return {name: float(values.mean()), f"{prefix}low": low, f"{prefix}high": high}


@styled
def way(
    path: pd.DataFrame,
    reading: pd.DataFrame | None = None,
    *,
    verdict: Verdict | None = None,
    limits: Thresholds | None = None,
) -> Figure:
    """How well probes read the intermediate, place by place, from the tower's first layer to the decoder's last.

    Above, at the objects' own tokens in direct runs, and where they stand as words; below, at the reading positions, in
    direct and in text runs, as far as that was measured. Bands are 95 % intervals, thin lines the control task. Given a
    `verdict`, its place is marked over the interval of its layer; given `limits`, what counts as there is a dotted
    line. The tables are those of `way_rows`. Raises `RunError` for what is missing.
    """
    rows = way_rows(path, reading)
    own, others = rows[rows.place == "objects"], rows[rows.place != "objects"]
    tables = [own, others] if len(others) else [own]
    depth = whole(rows.site)
    figure = blank(1.05 + 1.35 * len(tables), width=WIDTH)
    panels = figure.subplots(len(tables), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, table in zip(panels, tables, strict=True):
        axes_for(ax, height=1)
        draw_lines(ax, table, depth)
        _levels(ax, table, limits)
        score_axis(ax, rows)
        dress(ax, depth)
        ax.set_ylabel(f"{_where(table)}\n{MEASURES[table.measure.iloc[0]]}")
        ax.label_outer()
    for text in [text for ax in panels[1:] for text in ax.texts]:
        text.remove()  # the stacks are named once, over the first panel
    if verdict is not None:
        _marks(list(panels), depth, verdict)
    legend_above(panels[0], _handles(rows, limits), columns=3, lift=depth.headroom)
    return figure


def whole(sites: Iterable[str]) -> Depth:
    """An axis with all layers up to the last one measured, so that steps between measured layers are true."""
    held = [Site.parse(str(site)) for site in sites]
    filled = {str(site) for site in held}
    for stack in {site.stack for site in held if site.layer is not None}:
        last = max(site.layer for site in held if site.stack == stack and site.layer is not None)
        filled |= {f"{stack}.{layer}.resid_post" for layer in range(last + 1)}
    return Depth.of(filled)


def draw_lines(ax: Axes, rows: pd.DataFrame, depth: Depth, *, controls: Container[str] = tuple(SPANS)) -> None:
    """A line for each condition and place: solid and filled in direct runs, dashed and open in text runs.

    `controls`: the places at which the control task is drawn, of direct runs.
    """
    ax.axhline(0, color=COLOURS["chance"], linestyle=":", lw=0.9, label="chance", zorder=1)
    for (condition, place), table in rows.groupby(["condition", "place"], sort=False):
        name, (colour, marker) = f"{place} {condition}", SPANS.get(str(place), (INK, "x"))
        line = depth.along(table)
        faint = condition == TEXT
        band(ax, line, ("low", "high"), colour=colour, label=name, strength=FAINT_BAND if faint else 0.22)
        if len(line) == 1:
            ax.vlines(line.x, line.low, line.high, color=colour, lw=0.9, label=f"{name} interval", zorder=2.9)
        look = {"color": colour, "marker": marker, "ms": marker_size(len(depth)), **(_OPEN if faint else {})}
        ax.plot(line.x, line.score, label=name, zorder=3, **look)
        if place in controls and not faint:
            _control(ax, line, name)


def _control(ax: Axes, line: pd.DataFrame, name: str) -> None:
    band(ax, line, ("control_low", "control_high"), colour=COLOURS["control"], label=f"{name} control", strength=0.08)
    ax.plot(line.x, line.control, color=COLOURS["control"], lw=0.6, label=f"{name} control", zorder=1.5)


def score_axis(ax: Axes, rows: pd.DataFrame) -> None:
    """From chance, 0, to always, 1, and as far below as the lines go, but no further than needed to see that."""
    ax.set_ylim(max(_DEEPEST, min(-0.1, rows[["low", "control_low"]].min().min() - 0.05)), 1.08)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def _levels(ax: Axes, rows: pd.DataFrame, limits: Thresholds | None) -> None:
    """What counts as there: at the objects' tokens, of the most in direct runs; when reading, of that in text runs."""
    if limits is None:
        return
    most = rows[rows.condition == ("direct" if "objects" in set(rows.place) else TEXT)].score.max()
    ax.axhline(limits.there * most if most >= limits.any else limits.any, label="counts as there", **_THERE)


_THERE: Final[dict[str, Any]] = {"color": COLOURS["chance"], "linestyle": (0, (1, 3)), "lw": 0.7, "zorder": 0.8}


def _where(rows: pd.DataFrame) -> str:
    return "objects' own tokens" if "objects" in set(rows.place) else NAMES["reading"]


def told(verdict: Verdict) -> str:
    """The verdict in a few words: `overwritten, decoder layer 1 [1, 2]`."""
    site = lost_at(verdict)
    named = verdict.locus.replace("_", " ")
    if site is None or site.layer is None:
        return named
    between = "" if verdict.interval is None else " [{}, {}]".format(*verdict.interval)
    return f"{named}, {STACKS[site.stack][1]} layer {site.layer}{between}"


def lost_at(verdict: Verdict) -> Site | None:
    """The site that a verdict names; a layer without a place is the decoder's."""
    if verdict.place is not None:
        return Site.parse(verdict.place)
    return None if verdict.layer is None else Site("lm", "resid_post", verdict.layer)


def reach(verdict: Verdict, depth: Depth) -> tuple[int, int] | None:
    """First and last place on the axis of the verdict's place and the interval of its layer; None where none is."""
    site = lost_at(verdict)
    if site is None:
        return None
    if site.layer is None:
        return (depth.x(str(site)),) * 2 if str(site) in depth else None
    low, high = (depth.layer(layer, stack=site.stack) for layer in verdict.interval or (site.layer, site.layer))
    return None if low is None or high is None else (low, high)


def _marks(panels: Sequence[Axes], depth: Depth, verdict: Verdict) -> None:
    """Mark the place in the panel that it belongs to."""
    if verdict.locus in _SEEN and (ends := shade(panels[0], depth, verdict)):
        _beside(panels[0], depth, ends, "lost here", after=True)
    if len(panels) == 1 or (decoder := depth.run("lm")) is None:
        return
    if verdict.locus in _READ and (ends := shade(panels[-1], depth, verdict)):
        _beside(panels[-1], depth, ends, "arrives here", after=False)
    elif verdict.locus == "not_routed":
        _say(panels[-1], sum(decoder) / 2, "does not arrive", "center")


def shade(ax: Axes, depth: Depth, verdict: Verdict) -> tuple[float, float] | None:
    """Shade the verdict's place over the interval of its layer, and give its ends; None where it has none."""
    across = reach(verdict, depth)
    if across is None:
        return None
    left, right = across[0] - 0.5, across[1] + 0.5
    ax.axvspan(left, right, color=SHADE, lw=0, zorder=0.4, label="locus")
    return left, right


def _beside(ax: Axes, depth: Depth, ends: tuple[float, float], words: str, *, after: bool) -> None:
    """Words behind a shaded place or before it, where the line is low, unless they have no room there."""
    room = (len(depth) - 0.5 - ends[1], ends[0] + 0.5)
    slot = width_in_points(ax) / len(depth)
    behind = after if room[0 if after else 1] * slot >= text_width(words) else not after
    x, side = (ends[1] + 0.1, "left") if behind else (ends[0] - 0.1, "right")
    _say(ax, x, words, side)


def _say(ax: Axes, x: float, words: str, side: str) -> None:
    halo = [Stroke(linewidth=1.8, foreground="white"), Normal()]
    ax.text(x, 0.75, words, ha=side, va="center", size=SMALL, weight="bold", zorder=6, path_effects=halo)


def _handles(rows: pd.DataFrame, limits: Thresholds | None) -> list[Artist]:
    handles: list[Artist] = []
    for place in distinct(rows, "place"):
        colour, marker = SPANS.get(place, (INK, "x"))
        handles.append(Line2D([], [], color=colour, marker=marker, label=NAMES.get(place, place)))
    if TEXT in set(rows.condition):
        handles.append(Line2D([], [], color=INK, marker="o", **_OPEN, label="text run (words)"))
    handles.append(Line2D([], [], color=COLOURS["control"], lw=0.6, label=NAMES["control"]))
    handles.append(Line2D([], [], color=COLOURS["chance"], linestyle=":", lw=0.9, label="chance"))
    if limits is not None:
        handles.append(Line2D([], [], **_THERE, label="counts as there"))
    return handles
