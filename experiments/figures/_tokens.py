"""What every token of the prompt does to the answer, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from ._depth import Depth, dress_up
from ._effects import effect_rows, effect_scale, holds_nothing, nothing_words, of_most_items
from ._mesh import ROOM, Cells, draw_cells
from ._style import FAINT, INK, axes_for, root, styled, text_width, width_in_points
from ._tables import distinct, keep, number_in

REST: Final = {"image": "rest of image", "intermediate": "rest of words"}
PARTS: Final = {"image": "object", "intermediate": "word"}
LEAST: Final = 9.0  # points, the least width of a span: room for its name, upright
_UNDER: Final = 3.5  # points from the axes to the brackets


@styled
def patch_tokens(
    effects: pd.DataFrame,
    ax: Axes | None = None,
    *,
    experiment: str,
    kind: str = "resid_post",
    spans: Sequence[str] | None = None,
    value: str = "effect",
) -> Axes:
    """Effect of patching one token at one layer: tokens across, layers up, of a summarised sweep by token.

    The tokens of a span stand together over its bracket, in their order; where there are many, those of long spans are
    drawn narrower than those of short ones. A token is named by its span and its number there, so in every item it may
    be at another place; those that fewer than half of the items have are left out. `spans`: default, all that the table
    has. `value` and the marks are those of `patch_heatmap`. Raises `RunError` for what is missing.
    """
    table = effect_rows(effects, experiment, value, ("target_site", "span", "token", "n"))
    table = table if spans is None else keep(table, "effects", "span", spans)
    depth = Depth.of(table.target_site, kind=kind)
    table = of_most_items(depth.along(table, "target_site"))
    tokens = _Tokens.of(table)
    ax = axes_for(ax, height=min(3.3, 1.35 + 0.1 * len(depth)))
    places = zip(table.span, table.token, strict=True)
    at = [(x, tokens.at[str(span), int(token)]) for x, (span, token) in zip(table.x, places, strict=True)]
    cells = Cells.of(at, table[value], holds_nothing(table, value), shape=(len(depth), len(tokens.at)), what="effects")
    hatched = [Patch(facecolor="white", edgecolor=FAINT, hatch="////", lw=0.4, label=nothing_words(value))]
    plain = Cells(values=cells.values, hatched=np.zeros_like(cells.hatched))
    keys = hatched if cells.hatched.any() else []
    draw_cells(ax, plain, effect_scale(table[value], value), hatch="", keys=keys)
    _hatch_runs(ax, cells.hatched)
    dress_up(ax, depth)
    ax.set_ylabel(depth.label)
    _bracket(ax, tokens)
    return ax


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Where each (span, token) stands, and the first and the last place of each span."""

    at: dict[tuple[str, int], int]
    spans: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, table: pd.DataFrame) -> _Tokens:
        at: dict[tuple[str, int], int] = {}
        spans = {}
        for span in _in_order(distinct(table, "span")):
            held = sorted(set(table.token[table.span == span].astype(int)))
            spans[span] = (len(at), len(at) + len(held) - 1)
            at |= {(span, token): len(at) + k for k, token in enumerate(held)}
        return cls(at=at, spans=spans)

    def edges(self, points: float) -> NDArray[np.float64]:
        """Where tokens begin and end on an axis so many points wide, on which no span is too narrow for its name."""
        counts = np.array([last - first + 1 for first, last in self.spans.values()])
        least = min(LEAST, points / len(counts))
        narrow = np.zeros(len(counts), dtype=bool)
        while True:
            free = points - least * narrow.sum()
            each = free / max(counts[~narrow].sum(), 1)
            now = narrow | (counts * each < least)
            if (now == narrow).all():
                break
            narrow = now
        widths = np.repeat(np.where(narrow, least / counts, each), counts)
        return np.concatenate([[0.0], np.cumsum(widths)])


def _in_order(spans: Sequence[str]) -> list[str]:
    """As they come; the objects of the picture, or the parts of its words, in their order and before the rest of it."""
    family = {span: span.split(".")[0] for span in spans}
    first = {name: k for k, name in reversed(list(enumerate(family.values())))}
    return sorted(spans, key=lambda span: (first[family[span]], span in REST, number_in(span) or 0))


def span_word(span: str) -> str:
    """What the tokens of a span are called that are in no smaller one: `object 0`, `rest of image`."""
    number = number_in(span)
    return REST.get(span, span) if number is None else f"{PARTS.get(span.split('.')[0], span)} {number}"


def _hatch_runs(ax: Axes, hatched: NDArray[np.bool_]) -> None:
    """One rectangle for each run of hatched cells in a row: thousands of cells are a few hundred shapes."""
    runs: list[Rectangle] = []
    bounded = np.pad(hatched, ((0, 0), (1, 1))).astype(int)
    for row, changes in enumerate(np.diff(bounded, axis=1)):
        starts, stops = (np.flatnonzero(found).tolist() for found in (changes > 0, changes < 0))
        runs += [Rectangle((a - 0.5, row - 0.5), b - a, 1) for a, b in zip(starts, stops, strict=True)]
    style: dict[str, Any] = {"facecolor": "none", "edgecolor": FAINT, "linewidth": 0, "hatch": "////"}
    ax.add_collection(PatchCollection(runs, **style, zorder=0.45, label="hatched"), autolim=False)


def _bracket(ax: Axes, tokens: _Tokens) -> None:
    """Give spans their widths, a white line between them, and a bracket and a name each below."""
    points = ROOM * width_in_points(ax)
    edges, numbers = tokens.edges(points), np.arange(len(tokens.at) + 1) - 0.5
    ax.set_xscale(
        "function", functions=(lambda x: np.interp(x, numbers, edges), lambda x: np.interp(x, edges, numbers))
    )
    ax.set_xlim(numbers[0], numbers[-1])
    under = ax.get_xaxis_transform() + ScaledTranslation(0, -_UNDER / 72, root(ax).dpi_scale_trans)
    line: dict[str, Any] = {"arrowstyle": "-", "color": INK, "lw": 0.8, "shrinkA": 1.0, "shrinkB": 1.0}
    for first, last in tokens.spans.values():
        ends = (first - 0.5, 0), (last + 0.5, 0)
        ax.annotate("", *ends, xycoords=under, textcoords=under, arrowprops=line, annotation_clip=False)
        if first:
            ax.axvline(first - 0.5, color="white", lw=1.0, zorder=0.6)
    room = {span: edges[last + 1] - edges[first] for span, (first, last) in tokens.spans.items()}
    upright = any(text_width(span_word(span), size=6.5) > points for span, points in room.items())
    middles = [(first + last) / 2 for first, last in tokens.spans.values()]
    ax.set_xticks(middles, [span_word(span) for span in tokens.spans], rotation=90 if upright else 0)
    ax.tick_params(axis="x", pad=_UNDER + 2)
