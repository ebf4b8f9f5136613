"""The demonstration: a natural gap, models of which we know where they lose it, and a healthy one, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from seamscope.probes import side_by_side

from ._comparison import Compared, write_comparison
from ._plates_locator import comparison_draft
from ._probing import WORKERS
from ._run import Run, Settings
from ._study import Study
from .organism._faults import faults

if TYPE_CHECKING:
    from ._verdict import Verdict

PLANTED: Final = (
    "none.composing-cards.sum",
    "tower-0.composing-cards.sum",
    "projector.composing-cards.sort",
    "overwritten-1.composing-cards.sum",
    "unrouted.composing-cards.sum",
    "taught-late-cards.sum",
    "unread.composing-counting",
    "taught-unlearned-cards.sum",
    "taught-wordy-cards.sum",
)
TITLE: Final = "Where is it lost? One natural gap, and models of which we know"
NOTE: Final = (
    "The planted models are healthy ones in which the intermediate is destroyed at one place, or were taught under a "
    "constraint; the locator is told nothing of it."
)


def demonstrate(
    study: Study, *, planted: Sequence[str] | None = None, workers: int = WORKERS, progress: bool = False
) -> tuple[Path, list[Compared]]:
    """Locate the loss of the study's model and of planted ones, each with a report of its own; then put them together.

    Returns the page on which they stand side by side, and what stands there.
    """
    folder, settings = study.run.folder, study.settings
    planted = PLANTED if planted is None else planted
    act = partial(_examine, folder=folder.absolute(), n=settings.n, seed=settings.seed)
    page = study.report()
    verdicts = side_by_side(act, planted, workers=workers, what="planted models", unit="model", progress=progress)
    studies = {name: _study(name, folder=folder, n=settings.n, seed=settings.seed) for name in planted}
    found = [Compared(name=settings.model, verdict=study.verdict, gap=study.gap, report=page)]
    for (name, own), verdict in zip(studies.items(), verdicts, strict=True):
        report, fault = own.run.folder / "report.html", faults()[name]
        found.append(
            Compared(name=name, verdict=verdict, gap=own.gap, report=report, truth=fault.locus, place=fault.place)
        )
    located = {name: each.located for name, each in {settings.model: study, **studies}.items()}
    paths, reading = (
        {name: tables.get(table, pd.DataFrame()) for name, tables in located.items()} for table in ("path", "reading")
    )
    verdicts_by_name = {each.name: each.verdict for each in found}
    figure = comparison_draft(paths, reading=reading, verdicts=verdicts_by_name).save(folder / "figures")
    return write_comparison(folder, found, title=TITLE, note=NOTE, figure=figure), found


def _study(name: str, *, folder: Path, n: int, seed: int) -> Study:
    fault = faults()[name]
    settings = Settings(model=fault.model, task=fault.task, n=n, seed=seed)
    return Study(Run(folder / "planted" / name, settings), workers=1)


def _examine(name: str, *, folder: Path, n: int, seed: int) -> Verdict:
    study = _study(name, folder=folder, n=n, seed=seed)
    study.report()
    return study.verdict
