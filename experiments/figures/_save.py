"""Figures on disk: PDF, PNG, and the numbers that were drawn as CSV beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._style import RC, root

DPI = 300


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The files of one figure; `csv` has one file for each table that it drew from."""

    name: str
    pdf: Path
    png: Path
    csv: tuple[Path, ...]


def save(
    drawn: Axes | Figure,
    folder: str | Path,
    name: str,
    *,
    data: pd.DataFrame | Mapping[str, pd.DataFrame],
    dpi: int = DPI,
) -> Saved:
    """Write `name.pdf`, `name.png` and `name.csv` (for several tables `name.KEY.csv`) into a folder.

    The same figure gives the same bytes: no dates are written. The folder is made where it does not exist.
    """
    figure = drawn if isinstance(drawn, Figure) else root(drawn)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pdf, png = folder / f"{name}.pdf", folder / f"{name}.png"
    with matplotlib.rc_context(RC):
        figure.savefig(pdf, metadata={"CreationDate": None})
        figure.savefig(png, dpi=dpi, metadata={"Software": None})
    tables = {name: data} if isinstance(data, pd.DataFrame) else {f"{name}.{key}": t for key, t in data.items()}
    for stem, table in tables.items():
        table.to_csv(folder / f"{stem}.csv", index=False)
    return Saved(name=name, pdf=pdf, png=png, csv=tuple(folder / f"{stem}.csv" for stem in tables))
