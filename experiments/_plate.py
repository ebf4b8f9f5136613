"""One figure of a report: what is drawn, what is said about it, and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._report_views import number
from .figures import Saved, save
from .figures._tables import records

Tables = Mapping[str, pd.DataFrame]


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a reader needs beside a figure.

    `caption`: what is seen and how it is read, intervals included. `controls`: what stands beside it. `caveat`: goes
    on after "It does not show". `alt`: the figure for those who cannot see it.
    """

    title: str
    caption: str
    controls: str
    caveat: str
    alt: str


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A saved figure, what is said about it, and the section that it belongs to."""

    saved: Saved
    words: Words
    section: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A figure that is not drawn yet, and the table or tables whose numbers it shows."""

    name: str
    draw: Callable[[], Axes | Figure]
    data: pd.DataFrame | Tables
    words: Words
    section: str

    def save(self, folder: Path) -> Plate:
        """Draw it and write PDF, PNG and CSV."""
        return Plate(saved=save(self.draw(), folder, self.name, data=self.data), words=self.words, section=self.section)


def extremes(lines: pd.DataFrame, value: str) -> str:
    """The lowest and the highest of a column, and at which site: what curves or a map come to, in words.

    Of several places with the same value, the first.
    """
    held = records(lines.dropna(subset=[value]))
    if not held:
        return "nothing was measured"
    low, high = (find(held, key=lambda row: float(row[value])) for find in (min, max))
    return f"lowest {number(low[value])} at {low['site']}, highest {number(high[value])} at {high['site']}"
