"""What can be read where: probe accuracy over the depth of the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ._depth import Depth, dress
from ._lines import FAINT_BAND, MARKERS, band, chance_line, share_axis, thin
from ._style import COLOURS, DASHES, NAMES, WIDTH, axes_for, blank, legend_above, marker_size, styled
from ._tables import keep, number_in, probe_lines, span_family

CONTROLS: Final = ("control", "shuffled", "untrained")


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

    Thin, in the colour of the condition: the control task, shuffled labels and the untrained model, with faint bands,
    as far as the table has them; and a level where a probe of raw pixels stands.

    `probes` is the summary of a probe grid. `span` is a place: `objects` holds `image.object.k` in direct
    and `intermediate.k` in cascaded runs; other spans are themselves. `target` is one target (`card.0.rank`)
    or a family (`card.*.rank`), drawn as the mean of its targets; default, the mean of all targets that
    describe one object, as the locator takes it. `kind`: the site within each layer. Raises `RunError` for a
    missing column, condition, span or target.
    """
    ax = axes_for(ax, height=2.4)
    lines = probe_lines(probes, span=span, target=target)
    depth = Depth.of(lines.site, kind=kind)
    _curves(ax, lines, depth, conditions)
    _words(ax, span)
    if legend:
        legend_above(ax, _handles([lines], conditions), columns=3, lift=depth.headroom)
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
    legend_above(panels[0], _handles(list(tables.values()), conditions), columns=3, lift=depth.headroom)
    return figure


def _complete(probes: pd.DataFrame, conditions: Sequence[str]) -> list[str]:
    places = probes.span.map(span_family)
    found = {place: set(probes.condition[places == place]) for place in dict.fromkeys(places)}
    return [place for place, held in found.items() if held >= set(conditions)]


def _curves(ax: Axes, lines: pd.DataFrame, depth: Depth, conditions: Sequence[str]) -> None:
    keep(lines, "probes", "condition", conditions)
    size = marker_size(len(depth))
    for name in conditions:
        table = depth.along(lines[lines.condition == name])
        for control in CONTROLS:
            if _measured(table, control):
                thin(ax, table, control, colour=COLOURS[name], label=f"{name} {control}")
        if _measured(table, "pixels"):
            _level(ax, table, name)
        band(ax, table, ("low", "high"), colour=COLOURS[name], label=name)
        ax.plot(table.x, table.accuracy, color=COLOURS[name], marker=MARKERS[name], ms=size, label=name, zorder=3)
    chance_line(ax, depth.along(lines[lines.condition.isin(conditions)]))
    dress(ax, depth)


def _measured(table: pd.DataFrame, control: str) -> bool:
    column = f"{control}_accuracy"
    return column in table.columns and bool(table[column].notna().any())


def _level(ax: Axes, table: pd.DataFrame, condition: str) -> None:
    """Raw pixels are at no depth: a line across all places of the condition."""
    ends = [table.x.min() - 0.5, table.x.max() + 0.5]
    style: dict[str, Any] = {"color": COLOURS["pixels"], "linestyle": DASHES["pixels"], "lw": 0.6}
    ax.hlines(table.pixels_accuracy.mean(), *ends, label=f"{condition} pixels", zorder=1.4, **style)
    if {"pixels_low", "pixels_high"} <= set(table.columns):
        across = table[["pixels_low", "pixels_high"]].mean().to_frame().T
        band(
            ax,
            pd.concat([across.assign(x=x) for x in ends]),
            ("pixels_low", "pixels_high"),
            colour=COLOURS["pixels"],
            label=f"{condition} pixels",
            strength=FAINT_BAND,
        )


def _words(ax: Axes, span: str) -> None:
    share_axis(ax)
    name = NAMES.get(span_family(span), span) if number_in(span) is None else span
    ax.set_ylabel(f"probe accuracy (share of items)\n{name}")


def _handles(tables: Sequence[pd.DataFrame], conditions: Sequence[str]) -> list[Artist]:
    drawn = [table[table.condition.isin(conditions)] for table in tables]
    held = [name for name in (*CONTROLS, "pixels") if any(_measured(table, name) for table in drawn)]
    strong = [Line2D([], [], color=COLOURS[name], marker=MARKERS[name], label=NAMES[name]) for name in conditions]
    return [*strong, *(_handle(name) for name in ("chance", *held))]


def _handle(name: str) -> Line2D:
    width = 0.9 if name == "chance" else 0.6
    return Line2D([], [], color=COLOURS[name], linestyle=DASHES[name], lw=width, label=NAMES[name])
