"""Several models side by side: what is known of each, and what its verdict says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pandas as pd
from PIL import Image

from seamscope.hooks import RunError, Site, choose

from . import _page as page
from . import _report_verdict as said
from . import _report_views as views
from ._plate import Plate
from ._verdict import LOCI, Verdict
from .figures._gap import ALL
from .figures._gap import COLUMNS as GAP_COLUMNS
from .figures._tables import keep, need

COLUMN: Final = 4.0  # inches: a wider figure takes the whole width
NEAR: Final = 1  # layers: a place that is no further away counts as found


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One model of a comparison.

    `truth` is the class of its loss, of `LOCI`, and `place` the site, where they are known: it was planted there, or is
    known to be healthy (`none`). `gap` is the table of `composition_gap`, `report` the run's own page.
    """

    name: str
    verdict: Verdict
    gap: pd.DataFrame
    report: Path
    truth: str | None = None
    place: str | None = None


def write_comparison(
    folder: str | Path,
    runs: Sequence[Compared],
    *,
    title: str = "Models side by side",
    note: str = "",
    figure: Plate | None = None,
) -> Path:
    """Write `comparison.html` into a folder and give its path.

    One file like `report.html`; its links lead to the runs' own reports and to the figure's files. Raises `RunError`
    where there is no run, a truth that is no class, a table without the verdict's task, or a file that is not there.
    """
    folder = Path(folder)
    if not runs:
        raise RunError("there is nothing to compare: no run was given")
    judged = [found for found in map(_class_found, runs) if found is not None]
    placed = [found for found in map(_place_found, runs) if found is not None]
    return page.write_page(
        folder / "comparison.html",
        "comparison.html.jinja",
        title=title,
        note=note,
        rows=[_row(run, folder) for run in runs],
        judged=(sum(judged), len(judged)),
        placed=(sum(placed), len(placed)),
        plates=[] if figure is None else [page.shown(figure, folder)],
        wide=figure is not None and _wide(figure),
    )


def _row(run: Compared, folder: Path) -> dict[str, Any]:
    if not run.report.is_file():
        raise RunError(f"the report of {run.name!r} is not on disk: {run.report} was expected")
    verdict, table = run.verdict, need(run.gap, "gap", GAP_COLUMNS)
    own = keep(keep(table, "gap", "task", verdict.task), "gap", "subset", ALL)
    conditions, (answered,) = views.gap_rows(own)
    return {
        "name": run.name,
        "verdict": verdict,
        "truth": run.truth,
        "place": run.place,
        "n": answered["n"],
        "accuracy": dict(zip(conditions, answered["cells"], strict=True)),
        "where": said.where(verdict),
        "found": [
            (part, found)
            for part, found in (("class", _class_found(run)), ("place", _place_found(run)))
            if found is not None
        ],
        "link": quote(page.relative(run.report, folder)),
    }


def _wide(figure: Plate) -> bool:
    with Image.open(figure.saved.png) as picture:
        return bool(picture.width > COLUMN * picture.info["dpi"][0])


def _class_found(run: Compared) -> bool | None:
    """Whether the verdict names the known class; `None` where none is known."""
    if run.truth is None:
        return None
    return choose("class of a loss", run.truth, LOCI, RunError) == run.verdict.locus


def _place_found(run: Compared) -> bool | None:
    """Whether it names the known place, or one of the same part of the model at most `NEAR` layers away."""
    if run.place is None:
        return None
    truth, found = Site.parse(run.place), said.site(run.verdict)
    if found is None or found.stack != truth.stack:
        return False
    if truth.layer is None or found.layer is None:
        return truth.layer == found.layer
    return abs(truth.layer - found.layer) <= NEAR
