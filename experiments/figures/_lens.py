"""When an answer, or what must be handed over for it, comes up in the model's own vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from seamscope.hooks import RunError, choose

from ._depth import Depth, dress
from ._lines import FAINT_BAND, MARKERS, band
from ._style import BESIDE, COLOURS, FAINT, NAMES, TITLE, WIDTH, axes_for, blank, legend_above, marker_size, styled
from ._tables import averaged, keep, need, number_in, of_target, span_family, target_family

COLUMNS: Final = ("condition", "site", "span", "what")
VALUES: Final = {
    "logprob": "log-probability\n(nats)",
    "rank": "median rank\n(1: likeliest)",
}
_MEANS: Final = tuple(
    f"{who}{value}{end}" for who in ("", "partner_") for value in VALUES for end in ("", "_low", "_high")
)


@styled
def lens_curves(
    lens: pd.DataFrame,
    ax: Axes | None = None,
    *,
    what: str = "answer",
    span: str = "last",
    value: str = "logprob",
    conditions: Sequence[str] = ("direct", "cascaded"),
    kind: str = "resid_post",
    legend: bool = True,
) -> Axes:
    """How likely a text is over depth, read through a lens at one place, by condition.

    `lens` is the summary of a lens table. `what`: `answer`, one part of the intermediate (`intermediate.0`), or
    `intermediate`, the mean of all its parts, at `objects` each at its own object. `span` is a place as in
    `probe_curves`. `value`: `logprob`, the mean in nats with its 95 % band, or `rank`, the median (1: the likeliest)
    with its band on a logarithmic axis; of several parts, the mean of theirs. Dashed: the same for the text of the
    counterfactual partner, which the run has not seen. Raises `RunError` for what is missing.
    """
    choose("value", value, VALUES, RunError)
    lines = _lines(lens, what, span, conditions)
    ax = axes_for(ax, height=2.3)
    depth = Depth.of(lines.site, kind=kind)
    _curves(ax, lines, depth, conditions, value)
    _title(ax, depth, what, span)
    if legend:
        legend_above(ax, _handles(conditions, what), columns=3, lift=depth.headroom + TITLE)
    return ax


@styled
def lens_panels(
    lens: pd.DataFrame,
    *,
    what: str = "answer",
    span: str = "last",
    conditions: Sequence[str] = ("direct", "cascaded"),
    kind: str = "resid_post",
) -> Figure:
    """`lens_curves` of the log-probability and, below it, of the rank."""
    lines = _lines(lens, what, span, conditions)
    depth = Depth.of(lines.site, kind=kind)
    figure = blank(3.3, width=WIDTH)
    panels = figure.subplots(2, 1, sharex=True)
    for ax, value in zip(panels, VALUES, strict=True):
        _curves(axes_for(ax, height=1), lines, depth, conditions, value)
    panels[0].set_xlabel("")
    figure.align_ylabels(panels)
    _title(panels[0], depth, what, span)
    legend_above(panels[0], _handles(conditions, what), columns=3, lift=depth.headroom + TITLE)
    return figure


def _lines(lens: pd.DataFrame, what: str, span: str, conditions: Sequence[str]) -> pd.DataFrame:
    """One row per (site, condition), the mean over parts and spans."""
    rows = need(lens, "lens", (*COLUMNS, *_MEANS))
    family = rows.what.map(target_family)
    name = "intermediate.*" if what == "intermediate" else what
    choose("text of the lens table", name, [*dict.fromkeys([*family, *rows.what])], RunError)
    rows = keep(rows.assign(place=rows.span.map(span_family)), "lens", "place", span_family(span))
    rows = of_target(rows.assign(target=rows.what), "lens", name)
    return averaged(keep(rows, "lens", "condition", conditions), "lens", ("site", "condition"), _MEANS)


def _title(ax: Axes, depth: Depth, what: str, span: str) -> None:
    place = "objects" if span_family(span) == "objects" else NAMES.get(span, span)
    ax.set_title(f"{what}, {place}", loc="left", pad=depth.headroom + 3)


def _curves(ax: Axes, lines: pd.DataFrame, depth: Depth, conditions: Sequence[str], value: str) -> None:
    for name in conditions:
        table, colour = depth.along(_counted(lines[lines.condition == name])), COLOURS[name]
        own: dict[str, Any] = {"marker": MARKERS[name], "ms": marker_size(len(depth)), "zorder": 3}
        styles = {"": (name, own), "partner_": (f"{name} partner", {**BESIDE, "zorder": 2})}
        for who, (label, style) in styles.items():
            ends = f"{who}{value}_low", f"{who}{value}_high"
            band(ax, table, ends, colour=colour, label=label, strength=FAINT_BAND if who else 0.22)
            ax.plot(table.x, table[who + value], color=colour, label=label, **style)
    if value == "rank":
        _ranks(ax)
    dress(ax, depth)
    ax.set_ylabel(VALUES[value])


def _counted(lines: pd.DataFrame) -> pd.DataFrame:
    """Ranks from 1 on, for a logarithmic axis; in the table the likeliest has 0."""
    ranks = [name for name in _MEANS if "rank" in name]
    return lines.assign(**{name: lines[name] + 1 for name in ranks})


def _ranks(ax: Axes) -> None:
    """A logarithmic axis, the likeliest at the top."""
    ax.set_yscale("log")
    most = max(10.0, 1.1 * ax.get_ylim()[1])
    ticks = [tick for power in range(7) for tick in (10**power, 3 * 10**power) if tick <= most]
    ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(most, 0.85)


def _handles(conditions: Sequence[str], what: str) -> list[Artist]:
    text = "part" if number_in(what) is not None or what.startswith("intermediate") else what
    own = [Line2D([], [], color=COLOURS[c], marker=MARKERS[c], label=NAMES[c]) for c in conditions]
    return [*own, Line2D([], [], color=FAINT, **BESIDE, label=f"the partner's {text}")]
