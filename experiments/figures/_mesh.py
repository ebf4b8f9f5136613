"""Cells in colour: a grid with a colour bar, hatched where there is nothing to see, with numbers where they fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from seamscope.hooks import RunError

from ._style import FAINT, INK, SMALL, legend_above, root, text_width, width_in_points

EMPTY: Final = "#eeeeee"
ROOM: Final = 0.8  # of the axes' first width, beside a colour bar and long names
_APART: Final = 8.0  # points, the least width of cells between which there are lines
_KEY: Final = 18.0  # points that a key of the legend takes beside its text
_FILLED: Final = 0.8  # the most of a cell's width that its number may take


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What the colours mean: a map, its ends, the colour bar's words, named ticks, and whether it is upside down."""

    colours: Colormap
    ends: Normalize
    words: str
    ticks: dict[float, str] = field(default_factory=dict)
    falling: bool = False


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Values by row and column, NaN where nothing was measured, and which of them are hatched."""

    values: NDArray[np.float64]
    hatched: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        at: Sequence[tuple[int, int]],
        values: Iterable[float],
        hatched: Iterable[bool],
        *,
        shape: tuple[int, int],
        what: str,
    ) -> Cells:
        """Put each value at its (row, column); `RunError` if the table called `what` has two for one, or none."""
        if len(set(at)) < len(at):
            raise RunError(f"the {what} table has several rows for one cell: it holds more than one run")
        grid, marks = np.full(shape, np.nan), np.zeros(shape, dtype=bool)
        for place, value, mark in zip(at, values, hatched, strict=True):
            grid[place], marks[place] = value, bool(mark)
        if not np.isfinite(grid).any():
            raise RunError(f"the {what} table has no number to draw: nothing was measured in these cells")
        return cls(values=grid, hatched=marks & np.isfinite(grid))


def draw_cells(
    ax: Axes,
    cells: Cells,
    scale: Scale,
    *,
    hatch: str,
    empty: str = EMPTY,
    keys: Sequence[Artist] = (),
    lift: float = 0,
) -> None:
    """Draw them, row 0 at the bottom, with a legend `lift` points above the axes.

    `hatch`: what hatching means; `keys`: what else the legend explains; `empty`: colour of what was not measured.
    """
    rows, columns = cells.values.shape
    slot = width_in_points(ax) * ROOM / columns
    ax.set_facecolor(empty)
    mesh = ax.pcolormesh(
        np.arange(columns), np.arange(rows), np.ma.masked_invalid(cells.values), shading="nearest", zorder=0.4,
        edgecolors="white", linewidth=0.5 if slot >= _APART else 0, cmap=scale.colours, norm=scale.ends,
    )  # fmt: skip
    _bar(ax, mesh, scale)
    _hatch(ax, cells.hatched)
    shown = list(keys)
    if cells.hatched.any():
        shown.append(Patch(facecolor="white", edgecolor=FAINT, hatch="////", lw=0.4, label=hatch))
    if shown:
        legend_above(ax, shown, columns=_columns(ax, shown), lift=lift)
    _numbers(ax, cells.values, mesh, slot=slot)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def _columns(ax: Axes, shown: Sequence[Artist]) -> int:
    """Beside each other where they fit, else one below the other."""
    taken = sum(text_width(str(key.get_label())) + _KEY for key in shown)
    return len(shown) if taken <= width_in_points(ax) else 1


def _bar(ax: Axes, mesh: ScalarMappable, scale: Scale) -> None:
    bar = root(ax).colorbar(mesh, ax=ax, pad=0.02, fraction=0.06, aspect=18)
    bar.set_label(scale.words, size=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.6)
    bar.outline.set_linewidth(0.6)
    if scale.ticks:
        bar.set_ticks(list(scale.ticks), labels=list(scale.ticks.values()))
    if scale.falling:
        bar.ax.invert_yaxis()


def _hatch(ax: Axes, hatched: NDArray[np.bool_]) -> None:
    for row, column in np.argwhere(hatched):
        corner = (column - 0.5, row - 0.5)
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="////", ec=FAINT, lw=0, zorder=0.45))


def _numbers(ax: Axes, grid: NDArray[np.float64], mesh: Any, *, slot: float) -> None:
    places = 1 if np.nanmax(np.abs(grid)) > 1 else 2
    cells = [(at, round(number, places) + 0.0) for at, number in np.ndenumerate(grid) if np.isfinite(number)]
    words = {at: f"{number:.{places}f}".replace("-", "−") for at, number in cells}
    if max(map(text_width, words.values())) > _FILLED * slot:
        return
    for (row, column), word in words.items():
        red, green, blue, _ = mesh.cmap(mesh.norm(grid[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(column, row, word, ha="center", va="center", size=SMALL, color="white" if dark else INK, zorder=1)
