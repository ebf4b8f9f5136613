"""What the layers need and what brings answers back: the locator's patches, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.stats import bootstrap

from seamscope.hooks import RunError

from .._verdict import Verdict
from ._depth import dress
from ._lines import FAINT_BAND, band, share_axis
from ._style import BESIDE, COLOURS, FAINT, SPANS, WIDTH, axes_for, blank, legend_above, marker_size, styled
from ._tables import need
from ._way import SHADE, ended, shade, whole

if TYPE_CHECKING:
    from ..locator import Thresholds

LOST: Final = ("group", "target_site", "base", "ceiling", "patched")
RESTORED: Final = ("experiment", "group", "target_site", "base_right", "right")
ANSWERS: Final = ("group", "condition", "correct")
ROWS: Final = ("table", "site", "score", "low", "high", "control", "control_low", "control_high", "n")
RESAMPLES: Final = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """How the curve of a table is drawn: what is done to which run, what is counted, and the place that is written.

    `limit` is the name of the threshold that it is held against.
    """

    done: str
    counted: str
    place: str
    limit: str


PANELS: Final = {
    "needs": Panel(
        done="text runs: words exchanged behind the layer",
        counted="share of the\nanswer lost",
        place="objects",
        limit="most",
    ),
    "hold": Panel(
        done="direct runs: image positions held from the layer on",
        counted="failed answers\nthat come right",
        place="image",
        limit="repair",
    ),
    "given": Panel(
        done="direct runs: the text run's reading state written",
        counted="failed answers\nthat come right",
        place="reading",
        limit="repair",
    ),
}
MOVED: Final = {"hold": "hold", "given": "cross"}  # the experiment in a table's rows; its control has the same stem


def layer_rows(
    *,
    needs: pd.DataFrame | None = None,
    hold: pd.DataFrame | None = None,
    given: pd.DataFrame | None = None,
    answers: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """What `by_layer` draws, one row per (table, site): `score, low, high`, of the control as well, and `n` groups.

    `needs`: the share of the text answer's log-probability that is lost, which has no control of its own. `hold` and
    `given`: of the answers that fail directly, and not from the gold intermediate, the share that comes right;
    the control has the partner's states. `low, high` are 95 % intervals when whole groups are resampled.

    Args:
        needs, hold, given: rows of sweeps; None or empty where there are none.
        answers: `group, condition, correct` of direct and oracle runs; `hold` and `given` need it.
    """
    tables = {"needs": needs, "hold": hold, "given": given}
    held = {name: table for name, table in tables.items() if table is not None and not table.empty}
    found: list[dict[str, Any]] = []
    for name, table in held.items():
        found += _lost(table) if name == "needs" else _restored(table, name, answers)
    return pd.DataFrame(found, columns=list(ROWS))


def _lost(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The share of the text answer that is lost, by layer."""
    means = need(rows, "needs", LOST).groupby(["target_site", "group"], sort=False)[list(LOST[2:])].mean()
    found = []
    for site, table in means.groupby(level="target_site", sort=False):
        lost, all_of_it = (table.base - table[name] for name in ("patched", "ceiling"))
        low, high = _ratio_interval(lost, all_of_it)
        share = float(_ratio(lost.to_numpy(), all_of_it.to_numpy()))
        found.append({"table": "needs", "site": site, "score": share, "low": low, "high": high, "n": len(table)})
    return found


def _ratio(part: Floats, entire: Floats, axis: int = -1) -> Floats:
    found: Floats = part.mean(axis=axis) / np.maximum(entire.mean(axis=axis), 1e-6)
    return found


def _ratio_interval(part: pd.Series[float], entire: pd.Series[float]) -> tuple[float, float]:
    """95 % percentile interval of a ratio of means over the same groups."""
    if len(part) < 2:
        return float("nan"), float("nan")
    options: dict[str, Any] = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": RESAMPLES}
    found = bootstrap((part, entire), _ratio, random_state=np.random.default_rng(0), **options)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def _restored(rows: pd.DataFrame, name: str, answers: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The share of failed answers that come right, by layer, beside the control."""
    if answers is None:
        raise RunError(f"the {name} table counts failed answers: give the table of answers as well")
    rows = need(rows, name, RESTORED)
    rows = rows[rows.group.isin(_failing(answers)) & ~rows.base_right.astype(bool)]
    experiment, found = MOVED[name], []
    for site, table in rows.groupby("target_site", sort=False):
        right = table.assign(right=table.right.astype(float)).groupby(["experiment", "group"]).right
        means = right.mean().unstack("experiment").reindex(columns=[experiment, f"{experiment}_control"])
        own, control = means[experiment], means[f"{experiment}_control"]
        ends = {**ended(own, "score", ""), **ended(control, "control", "control_")}
        found.append({"table": name, "site": site, **ends, "n": own.count()})
    return found


def _failing(answers: pd.DataFrame) -> list[str]:
    """Groups that are answered from the gold intermediate, and not directly."""
    rows = need(answers, "answers", ANSWERS)
    shares = rows.assign(correct=rows.correct.astype(float)).groupby(["condition", "group"]).correct.mean()
    wide = shares.unstack("condition").reindex(columns=["oracle", "direct"])
    return list(wide.index[(wide.oracle == 1) & (wide.direct == 0)])


@styled
def by_layer(
    *,
    needs: pd.DataFrame | None = None,
    hold: pd.DataFrame | None = None,
    given: pd.DataFrame | None = None,
    answers: pd.DataFrame | None = None,
    verdict: Verdict | None = None,
    limits: Thresholds | None = None,
) -> Figure:
    """What the decoder's layers need and what brings answers back: a panel for each table, on one axis of layers.

    Bands are 95 % intervals; dashed, the control. Given a `verdict`, its place in the decoder is shaded; given
    `limits`, what counts is a dotted line. The tables are those of `layer_rows`. Raises `RunError` where there is
    none, or no answer failed.
    """
    rows = need(layer_rows(needs=needs, hold=hold, given=given, answers=answers), "patches", ("table", "site"))
    depth, names = whole(rows.site), list(dict.fromkeys(rows.table))
    figure = blank(0.75 + 1.1 * len(names), width=WIDTH)
    axes = figure.subplots(len(names), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, name in zip(axes, names, strict=True):
        _draw(axes_for(ax, height=1), depth.along(rows[rows.table == name]), PANELS[name], limits)
        dress(ax, depth)
        shaded = verdict is not None and shade(ax, depth, verdict) is not None
        ax.label_outer()
    axes[-1].set_xlabel("decoder layer")
    figure.align_ylabels(axes)
    legend_above(axes[0], _handles(names, limits, shaded=shaded), columns=3, lift=10)
    return figure


def _draw(ax: Axes, rows: pd.DataFrame, panel: Panel, limits: Thresholds | None) -> None:
    colour, marker = SPANS[panel.place]
    band(ax, rows, ("low", "high"), colour=colour, label="score")
    ax.plot(rows.x, rows.score, color=colour, marker=marker, ms=marker_size(len(rows)), label="score", zorder=3)
    if rows.get("control", pd.Series(dtype=float)).notna().any():
        band(ax, rows, ("control_low", "control_high"), colour=colour, label="control", strength=FAINT_BAND)
        ax.plot(rows.x, rows.control, color=colour, **BESIDE, label="control", zorder=2)
    if limits is not None:
        ax.axhline(getattr(limits, panel.limit), **_LIMIT)
    share_axis(ax)
    ax.set_ylim(min(-0.05, rows.low.min() - 0.03), max(1.04, rows.high.max() + 0.03))
    ax.set_ylabel(panel.counted)
    ax.set_title(panel.done, loc="left", pad=3)


_LIMIT: Final[dict[str, Any]] = {
    "color": COLOURS["chance"],
    "linestyle": (0, (1, 3)),
    "lw": 0.7,
    "label": "counts",
    "zorder": 0.8,
}


def _handles(names: list[str], limits: Thresholds | None, *, shaded: bool) -> list[Artist]:
    handles: list[Artist] = []
    if set(names) & set(MOVED):
        handles.append(Line2D([], [], color=FAINT, **BESIDE, label="control: partner's state"))
    if limits is not None:
        handles.append(Line2D([], [], **{**_LIMIT, "label": "counts as an effect"}))
    if shaded:
        handles.append(Patch(color=SHADE, lw=0, label="the verdict's place"))
    return handles
