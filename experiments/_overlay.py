"""A picture with the tokens that show it: which of them belong to which object, in tower, projector and decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from PIL.Image import Image

from seamscope.hooks import Batch, Box

from .figures._style import FAINT, INK, SMALL, blank, styled

STACKS: Final = {"vision": "tower", "projector": "projector", "lm": "decoder"}
ABSENT: Final = {
    "vision": "no vision tower",
    "projector": "no token shows a place",
    "lm": "no image tokens:\nthe decoder looks at what the\nprojector gives by cross-attention",
}
# Okabe & Ito's colour-blind-safe palette, the colours that stay apart on a faded picture.
OBJECTS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
EDGES: Final = ["left", "top", "right", "bottom"]
SIDE: Final = 2.3  # inches: how wide a panel is
HEAD: Final = 0.62  # inches: title and headings
GAP: Final = 0.08  # inches: between rows
KEY: Final = 0.13  # inches: a line of the legend
KEYS: Final = 2  # objects in a line of the legend
DOTS: Final = 1200  # the most pixels of a picture's side that are drawn
FADED: Final = 0.4  # how much of the picture's colours is left
SAME_SHEET: Final = 0.3  # views that share more of the smaller one than this are drawn apart
POINTS: Final = 4.5  # the size of a token's number
ROOM: Final = 1.5  # a number stands in a cell that is at least this many times as large as the number


def token_table(batch: Batch) -> pd.DataFrame:
    """List the tokens that show the picture of a batch of one prompt with one picture.

    One row for each token: `stack, token` (its number in the tower and the projector, its position in the prompt in
    the decoder), `view`, its edges `left, top, right, bottom` in pixels of the picture (NaN for a token that shows no
    place, such as a class token), and `objects`: the numbers k of the spans `image.object.k` that it belongs to.
    """
    assert batch.visual is not None  # the prompt has a picture
    (geometry,) = batch.visual.geometries[0]
    rows = []
    for stack in STACKS:
        places = getattr(geometry.layout, stack)
        spans: Mapping[str, Any] = batch.spans[0] if stack == "lm" else batch.visual.spans[stack][0]
        tokens = spans["image"].tolist() if stack == "lm" else range(len(places))
        held = {name: set(where.tolist()) for name, where in spans.items() if name.startswith("image.object.")}
        for token, (view, *edges) in zip(tokens, places, strict=True):
            own = sorted(int(name.rpartition(".")[2]) for name, inside in held.items() if token in inside)
            rows.append((stack, token, view, *_in_picture(view, edges, geometry.maps), tuple(own)))
    return pd.DataFrame(rows, columns=["stack", "token", "view", *EDGES, "objects"])


def _in_picture(view: float, edges: Sequence[float], maps: Any) -> tuple[float, ...]:
    if np.isnan(view):
        return (np.nan,) * 4
    scale_x, shift_x, scale_y, shift_y = maps[int(view)]
    left, top, right, bottom = edges
    return (
        left * scale_x + shift_x,
        top * scale_y + shift_y,
        right * scale_x + shift_x,
        bottom * scale_y + shift_y,
    )


@styled
def draw_overlay(image: Image, boxes: Sequence[Box], tokens: pd.DataFrame, *, title: str = "") -> Figure:
    """Draw what `token_table` gives over the picture: a column for each stack, a row for each set of views.

    Boxes are outlined, and the cells of the tokens that belong to one are filled in its colour, in stripes where they
    belong to several; where cells are large enough, the tokens' numbers stand in them. Views that overlap, such as an
    overview and its tiles, are in rows of their own.
    """
    sheets = _sheets(tokens) or [()]
    left, top, right, bottom = _bounds(image, tokens)
    keys = [Patch(facecolor=_colour(k), label=_key(k, tokens)) for k in range(len(boxes))]
    high = len(sheets) * (SIDE * (bottom - top) / (right - left) + GAP) + HEAD + KEY * -(-len(keys) // KEYS)
    figure = blank(high, width=len(STACKS) * SIDE)
    grid = figure.subplots(len(sheets), len(STACKS), squeeze=False)
    for line, views in zip(grid, sheets, strict=True):
        for axes, stack in zip(line, STACKS, strict=True):
            own = tokens[tokens["stack"] == stack]
            axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal", anchor="S")
            axes.spines[:].set(visible=True, color=FAINT, linewidth=0.5)
            if own.view.isna().all():
                axes.text(0.5, 0.5, ABSENT[stack], transform=axes.transAxes, ha="center", va="center", color=FAINT)
            else:
                _panel(axes, image, boxes, own[own.view.isin(views)], size=SIDE * 72 / (right - left))
        line[0].set_ylabel(_named(views) if len(sheets) > 1 else "", size=SMALL)
    for axes, stack in zip(grid[0], STACKS, strict=True):
        _head(axes, stack, tokens[tokens["stack"] == stack])
    figure.suptitle(title, size=8, x=0.01, ha="left", weight="bold")
    if keys:
        figure.legend(handles=keys, loc="outside lower left", ncols=KEYS, handlelength=1.0)
    return figure


def _sheets(tokens: pd.DataFrame) -> list[tuple[float, ...]]:
    """Put views that hardly overlap together, in the order of their numbers."""
    sheets: list[list[tuple[float, Any]]] = []
    for view in sorted(tokens.view.dropna().unique().tolist()):
        cells = tokens[tokens.view == view]
        area = np.array([*cells[EDGES[:2]].min(), *cells[EDGES[2:]].max()])
        fits = (sheet for sheet in sheets if all(_shared(area, other) <= SAME_SHEET for _, other in sheet))
        sheet = next(fits, None)
        if sheet is None:
            sheets.append(sheet := [])
        sheet.append((view, area))
    return [tuple(view for view, _ in sheet) for sheet in sheets]


def _shared(one: Any, other: Any) -> float:
    """How much of the smaller of two areas is in both."""
    sides = np.clip(np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2]), 0, None)
    return float(sides.prod() / min((each[2:] - each[:2]).prod() for each in (one, other)))


def _bounds(image: Image, tokens: pd.DataFrame) -> tuple[float, float, float, float]:
    """The edges of the picture and of all that tokens show, which may be padding beyond it."""
    low, high = tokens[EDGES[:2]].min().fillna(0), tokens[EDGES[2:]].max().fillna(0)
    return (
        min(0.0, float(low["left"])),
        min(0.0, float(low["top"])),
        max(float(image.width), float(high["right"])),
        max(float(image.height), float(high["bottom"])),
    )


def _panel(axes: Axes, image: Image, boxes: Sequence[Box], cells: pd.DataFrame, *, size: float) -> None:
    """One picture with the cells of some tokens; `size` is a pixel's width in points."""
    axes.imshow(_faded(image), extent=(0, image.width, image.height, 0), interpolation="antialiased")
    grid = [_rectangle(cell) for cell in _rows(cells)]
    axes.add_collection(PatchCollection(grid, facecolor="none", edgecolor=FAINT, linewidth=0.35), autolim=False)
    for k, _ in enumerate(boxes):
        own = [_rectangle(cell, k) for cell in _rows(cells) if k in cell.objects]
        axes.add_collection(PatchCollection(own, facecolor=_colour(k), alpha=0.4, linewidth=0), autolim=False)
    for k, box in enumerate(boxes):
        outline = Rectangle((box.left, box.top), box.right - box.left, box.bottom - box.top, fill=False)
        outline.set(edgecolor=_colour(k), linewidth=1.4)
        axes.add_patch(outline)
    for cell in _rows(_numbered(cells, size=size)):
        middle = (cell.left + cell.right) / 2, (cell.top + cell.bottom) / 2
        axes.text(*middle, str(cell.token), size=POINTS, ha="center", va="center", color=INK)


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples())


def _faded(image: Image) -> Any:
    small = image.convert("RGB")
    small.thumbnail((DOTS, DOTS))
    return (255 - FADED * (255 - np.asarray(small, dtype=np.float32))).astype(np.uint8)


def _rectangle(cell: Any, k: int | None = None) -> Rectangle:
    """A cell, or the stripe of it that belongs to object `k`."""
    wide, at = cell.right - cell.left, 0
    if k is not None:
        wide, at = wide / len(cell.objects), cell.objects.index(k)
    return Rectangle((cell.left + at * wide, cell.top), wide, cell.bottom - cell.top)


def _numbered(cells: pd.DataFrame, *, size: float) -> pd.DataFrame:
    """The cells whose numbers are written: those of objects, if all of them have room; not where views overlap."""
    own = cells[cells.objects.map(len) > 0]
    wide = 0.6 * POINTS * own.token.astype(str).map(len)
    tight = ((own.right - own.left) * size < ROOM * wide) | ((own.bottom - own.top) * size < ROOM * POINTS)
    if tight.any():
        return own[:0]
    x, y = (cells.left + cells.right) / 2, (cells.top + cells.bottom) / 2
    return own[[((x > c.left) & (x < c.right) & (y > c.top) & (y < c.bottom)).sum() == 1 for c in _rows(own)]]


def _head(axes: Axes, stack: str, own: pd.DataFrame) -> None:
    """Write over a column what it shows, and how many tokens of its stack."""
    placed = int(own.view.notna().sum())
    where = f" at positions {own.token.min()}-{own.token.max()}" if stack == "lm" else ""
    without = f"{len(own) - placed} more show no place" if placed < len(own) else ""
    lines = [STACKS[stack], f"{placed} tokens{where}", without] if placed else [STACKS[stack], "", ""]
    for height, (line, size) in enumerate(zip(lines[::-1], (SMALL, SMALL, 8.0), strict=True)):
        above = (0, 3 + 8.5 * height)
        axes.annotate(
            line, (0.5, 1), above, xycoords="axes fraction", textcoords="offset points", ha="center", size=size
        )


def _key(k: int, tokens: pd.DataFrame) -> str:
    counts = {name: sum(k in own for own in tokens.objects[tokens["stack"] == stack]) for stack, name in STACKS.items()}
    told = " · ".join(f"{name} {count}" for name, count in counts.items() if count)
    return f"image.object.{k}: {told or 'no tokens'}"


def _named(views: tuple[float, ...]) -> str:
    numbers = [int(view) for view in views]
    return f"view {numbers[0]}" if len(numbers) == 1 else f"views {numbers[0]}-{numbers[-1]}"


def _colour(k: int) -> str:
    return OBJECTS[k % len(OBJECTS)]
