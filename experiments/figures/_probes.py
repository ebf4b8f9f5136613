"""What can be read where: probe accuracy over the depth of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ._depth import Depth, dress
from ._style import COLOURS, DASHES, NAMES, WIDTH, axes_for, blank, legend_above, marker_size, styled
from ._tables import keep, number_in, probe_lines, span_family

MARKERS: Final = {"direct": "o", "cascaded": "s", "oracle": "^", "cot": "D"}
CONTROLS: Final = {
    "control": "control_accuracy",
    "shuffled": "shuffled_accuracy",
    "untrained": "untrained_accuracy",
}


@styled
def probe_curves(
    probes: pd.DataFrame,
    ax: Axes | None = None,
    *,
    span: str = "objects",
    target: str | None = None,
    conditions: Sequence[str] = ("direct", "cascaded"),
    kind: str = "resid_post",
    legend: bool = True,
) -> Axes:
    """Accuracy of probes over depth at one place, by condition, with 95 % bands and controls.

    `probes` is the summary of a probe grid. `span` is a place: `objects` holds `image.object.k` in direct
    and `intermediate.k` in cascaded runs; other spans are themselves. `target` is one target (`card.0.rank`)
    or a family (`card.*.rank`), drawn as the mean of its targets; default, the mean of all targets that
    describe one object, as the locator takes it. `kind`: the site within each layer. Raises `RunError` for a
    missing column, condition, span or target.
    """
    ax = axes_for(ax, height=2.4)
    lines = probe_lines(probes, span=span, target=target)
    _curves(ax, lines, Depth.of(lines.site, kind=kind), conditions)
    _words(ax, span)
    if legend:
        held = [name for name, column in CONTROLS.items() if column in lines]
        legend_above(ax, _handles(conditions, held), columns=3, lift=10)
    return ax


@styled
def probe_panels(
    probes: pd.DataFrame,
    *,
    spans: Iterable[str] | None = None,
    target: str | None = None,
    conditions: Sequence[str] = ("direct", "cascaded"),
    kind: str = "resid_post",
) -> Figure:
    """`probe_curves` at several places, one below the other on the same depth axis.

    `spans`: default, every place at which the table has all the conditions.
    """
    places = list(spans) if spans is not None else _complete(probes, conditions)
    tables = {place: probe_lines(probes, span=place, target=target) for place in places}
    depth = Depth.of((site for table in tables.values() for site in table.site), kind=kind)
    figure = blank(0.75 + 1.25 * len(places), width=WIDTH)
    panels = figure.subplots(len(places), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for place, ax in zip(places, panels, strict=True):
        _curves(axes_for(ax, height=1), tables[place], depth, conditions)
        _words(ax, place)
        ax.set_ylabel(ax.get_ylabel().splitlines()[-1])
        ax.label_outer()
    figure.supylabel("probe accuracy (share of items)", fontsize=7)
    for ax in panels[1:]:
        for name in list(ax.texts):
            name.remove()  # the stacks are named once, over the first panel
    held = [name for name, column in CONTROLS.items() if any(column in t for t in tables.values())]
    legend_above(panels[0], _handles(conditions, held), columns=3, lift=10)
    return figure


def _complete(probes: pd.DataFrame, conditions: Sequence[str]) -> list[str]:
    places = probes.span.map(span_family)
    found = {place: set(probes.condition[places == place]) for place in dict.fromkeys(places)}
    return [place for place, held in found.items() if held >= set(conditions)]


def _curves(ax: Axes, lines: pd.DataFrame, depth: Depth, conditions: Sequence[str]) -> None:
    keep(lines, "probes", "condition", conditions)
    size = marker_size(len(depth))
    for name in conditions:
        table = _ordered(lines[lines.condition == name], depth)
        for control, column in CONTROLS.items():
            if column in table:
                _thin(ax, table, column, control, depth)
        colour = COLOURS[name]
        ax.fill_between(table.x, table.low, table.high, color=colour, alpha=0.22, lw=0, label=f"{name} 95 %")
        ax.plot(table.x, table.accuracy, color=colour, marker=MARKERS[name], ms=size, label=name, zorder=3)
    chance = _ordered(lines[lines.condition.isin(conditions)], depth).groupby("x").chance.mean()
    ax.plot(
        chance.index,
        chance,
        color=COLOURS["chance"],
        linestyle=DASHES["chance"],
        lw=0.9,
        label="chance",
        zorder=2,
    )
    dress(ax, depth)


def _ordered(table: pd.DataFrame, depth: Depth) -> pd.DataFrame:
    table = table[[site in depth for site in table.site]]
    return table.assign(x=[depth.x(site) for site in table.site]).sort_values("x")


def _thin(ax: Axes, table: pd.DataFrame, column: str, control: str, depth: Depth) -> None:
    ax.plot(
        table.x,
        table[column],
        color=COLOURS[control],
        linestyle=DASHES[control],
        lw=0.6,
        label=control,
        zorder=1.5,
    )


def _words(ax: Axes, span: str) -> None:
    ax.set_ylim(-0.02, 1.04)
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    name = NAMES.get(span_family(span), span) if number_in(span) is None else span
    ax.set_ylabel(f"probe accuracy (share of items)\n{name}")


def _handles(conditions: Sequence[str], controls: Sequence[str]) -> list[Artist]:
    strong = [Line2D([], [], color=COLOURS[name], marker=MARKERS[name], label=NAMES[name]) for name in conditions]
    names = ["chance", *controls]
    thin = [
        Line2D([], [], color=COLOURS[n], linestyle=DASHES[n], lw=0.9 if n == "chance" else 0.6, label=NAMES[n])
        for n in names
    ]
    return [*strong, *thin]
