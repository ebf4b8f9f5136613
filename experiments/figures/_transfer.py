"""Probes that were trained in one run and read in another: the same form, or another one?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from seamscope.hooks import RunError, choose

from ._depth import Depth, dress, dress_up
from ._lines import FAINT_BAND, MARKERS, band, chance_line, share_axis, thin
from ._maps import SURE, UNSURE, share_scale
from ._mesh import ROOM, Cells, draw_cells
from ._style import (
    BESIDE,
    COLOURS,
    DASHES,
    FAINT,
    INK,
    NAMES,
    TITLE,
    WIDTH,
    axes_for,
    blank,
    legend_above,
    marker_size,
    place_name,
    styled,
)
from ._tables import averaged, need, of_target, span_family

Place = tuple[str, str]

KEYS: Final = ("train_condition", "train_span", "train_site", "condition", "span", "site", "target")
_MEANS: Final = (
    *("chance", "accuracy", "low", "high"),
    *(f"{name}_{part}" for name in ("recentred", "control") for part in ("accuracy", "low", "high")),
)
VALUES: Final = {"recentred_accuracy": "accuracy, recentred\n(share of items)", "accuracy": "accuracy (share of items)"}


@styled
def transfer_matrix(
    transfer: pd.DataFrame,
    ax: Axes | None = None,
    *,
    train: Place | None = None,
    test: Place | None = None,
    value: str = "recentred_accuracy",
    target: str | None = None,
    kind: str = "resid_post",
) -> Axes:
    """Accuracy of probes by the site they were trained at (up) and the site they are tested at (across).

    `transfer` is the summary of a transfer across sites. `train` and `test` are (condition, place), such as
    `("cascaded", "objects")`; they may be left out where the table has one pair only. Colours run from chance to 1;
    framed cells are those of the same site. Hatched: q > 0.05, of one target at least where several are averaged, or
    the 95 % interval reaches down to the accuracy of the control task; with `value="accuracy"`, the probe as it is, it
    reaches chance. Raises `RunError` for what is missing.
    """
    needed = {"recentred_accuracy": ("recentred_accuracy", "recentred_low", "q"), "accuracy": ("accuracy", "low")}
    columns = needed[choose("value", value, needed, RunError)]
    train, test = _pair(need(transfer, "transfer", (*KEYS, "chance", *columns)), train, test)
    lines = _lines(transfer, train, test, target)
    ax = axes_for(ax, height=2.9)
    up, across = Depth.of(lines.train_site, kind=kind), Depth.of(lines.site, kind=kind)
    lines = lines[[a in up and b in across for a, b in zip(lines.train_site, lines.site, strict=True)]]
    at = [(up.x(a), across.x(b)) for a, b in zip(lines.train_site, lines.site, strict=True)]
    unsure, hatch = _unsure(lines, value)
    cells = Cells.of(at, lines[value], unsure, shape=(len(up), len(across)), what="transfer")
    frame: dict[str, Any] = {"fill": False, "ec": INK, "lw": 0.5, "label": "same site"}
    scale = share_scale(float(lines.chance.mean()), VALUES[value])
    draw_cells(ax, cells, scale, hatch=hatch, keys=[Patch(**frame)], lift=across.headroom)
    for site in [str(site) for site in up.sites if str(site) in across]:
        ax.add_patch(Rectangle((across.x(site) - 0.5, up.x(site) - 0.5), 1, 1, zorder=0.9, **frame))
    dress(ax, across, lines=False, room=ROOM)
    dress_up(ax, up)
    ax.set_xlabel(f"tested at {across.label} ({_name(test)})")
    ax.set_ylabel(f"trained at {up.label} ({_name(train)})")
    return ax


@styled
def transfer_curves(
    transfer: pd.DataFrame,
    ax: Axes | None = None,
    *,
    train: Place | None = None,
    test: Place | None = None,
    target: str | None = None,
    kind: str = "resid_post",
    legend: bool = True,
) -> Axes:
    """Accuracy over depth of probes that were trained at the same site in another run or place.

    With markers: after the tested rows were recentred, which forgives a shift between the two; dashed: the probe as it
    is; both with 95 % bands. Thin: the control task with the same random labels on both sides. `train` and `test` are
    those of `transfer_matrix`. Raises `RunError` for what is missing.
    """
    train, test = _pair(need(transfer, "transfer", (*KEYS, *_MEANS[:7])), train, test)
    lines = _diagonal(transfer, train, test, target)
    ax = axes_for(ax, height=2.4)
    depth = Depth.of(lines.site, kind=kind)
    _curves(ax, lines, depth, train, test)
    ax.set_ylabel("accuracy of the probe (share of items)")
    if legend:
        legend_above(ax, _handles(lines, [test[0]]), columns=2, lift=depth.headroom + TITLE)
    return ax


@styled
def transfer_panels(
    transfer: pd.DataFrame,
    *,
    pairs: Sequence[tuple[Place, Place]] | None = None,
    target: str | None = None,
    kind: str = "resid_post",
) -> Figure:
    """`transfer_curves` of several pairs (train, test), one below the other; default, every pair of the table."""
    need(transfer, "transfer", (*KEYS, *_MEANS[:7]))
    shown = [_pair(transfer, *pair) for pair in pairs] if pairs is not None else _pairs(transfer)
    lines = [_diagonal(transfer, *pair, target) for pair in shown]
    depth = Depth.of((site for each in lines for site in each.site), kind=kind)
    figure = blank(0.85 + 1.3 * len(shown), width=WIDTH)
    panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, each, pair in zip(panels, lines, shown, strict=True):
        _curves(axes_for(ax, height=1), each, depth, *pair)
        ax.label_outer()
    figure.supylabel("accuracy of the probe (share of items)", fontsize=7)
    tested = list(dict.fromkeys(test[0] for _, test in shown))
    legend_above(panels[0], _handles(pd.concat(lines), tested), columns=2, lift=depth.headroom + TITLE)
    return figure


def _unsure(lines: pd.DataFrame, value: str) -> tuple[pd.Series[bool], str]:
    """Which cells are hatched, and what that says."""
    if value == "accuracy":
        return lines.low <= lines.chance, "95 % interval reaches chance"
    if not _controlled(lines):
        return lines.q > SURE, "q > 0.05"
    return (lines.q > SURE) | (lines.recentred_low <= lines.control_accuracy), UNSURE


def _name(place: Place) -> str:
    return f"{place[0]}, {place_name(place[1], place[0])}"


def _pairs(transfer: pd.DataFrame) -> list[tuple[Place, Place]]:
    rows = zip(
        zip(transfer.train_condition, transfer.train_span.map(span_family), strict=True),
        zip(transfer.condition, transfer.span.map(span_family), strict=True),
        strict=True,
    )
    return list(dict.fromkeys(rows))


def _pair(transfer: pd.DataFrame, train: Place | None, test: Place | None) -> tuple[Place, Place]:
    """The only pair of places of the table that fits what was asked for."""
    asked = [None if place is None else (place[0], span_family(place[1])) for place in (train, test)]
    held = _pairs(transfer)
    found = [pair for pair in held if all(want in (None, have) for want, have in zip(asked, pair, strict=True))]
    if len(found) != 1:
        said = "no such pair" if not found else "several pairs can be drawn: name one with train= and test="
        names = "; ".join(f"{' '.join(a)} -> {' '.join(b)}" for a, b in found or held)
        raise RunError(f"{said}; the transfer table has: {names}" if not found else f"{said}: {names}")
    return found[0]


def _lines(transfer: pd.DataFrame, train: Place, test: Place, target: str | None) -> pd.DataFrame:
    """Means over targets: one row per (train_site, site)."""
    places = zip(transfer.train_condition, transfer.train_span, transfer.condition, transfer.span, strict=True)
    wanted = [((a, span_family(b)), (c, span_family(d))) == (train, test) for a, b, c, d in places]
    rows = of_target(transfer[wanted], "transfer", target, ("train_span", "span"))
    return averaged(rows, "transfer", ("train_site", "site"), _MEANS)


def _diagonal(transfer: pd.DataFrame, train: Place, test: Place, target: str | None) -> pd.DataFrame:
    return _lines(transfer[transfer.train_site == transfer.site], train, test, target)


def _curves(ax: Axes, lines: pd.DataFrame, depth: Depth, train: Place, test: Place) -> None:
    table, colour, marker = depth.along(lines), COLOURS[test[0]], MARKERS[test[0]]
    if _controlled(table):
        thin(ax, table, "control", colour=colour, label="control")
    band(ax, table, ("low", "high"), colour=colour, label="as it is", strength=FAINT_BAND)
    ax.plot(table.x, table.accuracy, color=colour, **BESIDE, label="as it is", zorder=2.5)
    band(ax, table, ("recentred_low", "recentred_high"), colour=colour, label="recentred")
    style: dict[str, Any] = {"marker": marker, "ms": marker_size(len(depth)), "label": "recentred"}
    ax.plot(table.x, table.recentred_accuracy, color=colour, zorder=3, **style)
    chance_line(ax, table)
    share_axis(ax)
    dress(ax, depth)
    ax.set_title(f"{_name(train)} → {_name(test)}", loc="left", pad=depth.headroom + 3)


def _handles(lines: pd.DataFrame, conditions: Sequence[str]) -> list[Artist]:
    styles: list[dict[str, Any]] = [
        {"color": COLOURS[name], "marker": MARKERS[name], "label": f"read in {NAMES[name]} runs, recentred"}
        for name in conditions
    ]
    styles.append({"color": FAINT, **BESIDE, "label": "the same, as it is"})
    if _controlled(lines):
        styles.append({"color": COLOURS["control"], "lw": 0.6, "label": NAMES["control"]})
    styles.append({"color": COLOURS["chance"], "linestyle": DASHES["chance"], "lw": 0.9, "label": NAMES["chance"]})
    return [Line2D([], [], **style) for style in styles]


def _controlled(lines: pd.DataFrame) -> bool:
    return "control_accuracy" in lines.columns and bool(lines.control_accuracy.notna().any())
