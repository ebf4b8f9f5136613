"""The demonstration: a natural gap, models of which we know where they lose it, and a healthy one, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pandas as pd

from seamscope.probes import side_by_side

from ._comparison import Compared, write_comparison
from ._model import is_small
from ._plates_locator import comparison_draft
from ._probing import WORKERS
from ._run import Run, Settings
from ._study import VERDICT, Study
from ._verdict import NOT_OURS
from .organism._faults import faults

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


@dataclass(frozen=True)
class _Asked:
    """One model of the demonstration, as it travels to another process."""

    name: str
    folder: Path
    settings: Settings
    compare: tuple[str, ...] = ()


def demonstrate(
    study: Study, *, planted: Sequence[str] | None = None, workers: int = WORKERS, progress: bool = False
) -> tuple[Path, list[Compared]]:
    """Locate the loss of the study's model and of planted ones, each with a report of its own; then put them together.

    Returns the page on which they stand side by side, and what stands there. The study's own model is located in this
    process, with all that it has, unless it is a small one.
    """
    study.check()
    folder, settings, own = study.run.folder.absolute(), study.settings, study.settings.model
    known = {name: faults()[name] for name in (PLANTED if planted is None else planted)}
    place = study.run.path("planted", alone=False).absolute()
    plan = [
        _Asked(name, place / name, Settings(model=fault.model, task=fault.task, n=settings.n, seed=settings.seed))
        for name, fault in known.items()
    ]
    plan.reverse()  # what takes longest first, so that no process is left with it; losses that are not ours are short
    plan.sort(key=lambda each: known[each.name].locus in NOT_OURS)
    located = {}
    if study.run.has(VERDICT) or not is_small(study.vlm):
        located[own] = _locate(own, study)
    else:
        plan.insert(0, _Asked(own, folder, settings, study.compare))
    found = side_by_side(_examine, plan, workers=workers, what="models", unit="model", long=True, progress=progress)
    located |= {each.name: what for each, what in zip(plan, found, strict=True)}
    paths, reading = (
        {name: located[name][1].get(table, pd.DataFrame()) for name in (own, *known)} for table in ("path", "reading")
    )
    compared = [
        located[own][0],
        *(replace(located[name][0], truth=fault.locus, place=fault.place) for name, fault in known.items()),
    ]
    verdicts = {each.name: each.verdict for each in compared}
    figure = comparison_draft(paths, reading=reading, verdicts=verdicts).save(study.run.folder / "figures")
    return write_comparison(study.run.folder, compared, title=TITLE, note=NOTE, figure=figure), compared


def _examine(asked: _Asked) -> tuple[Compared, dict[str, pd.DataFrame]]:
    return _locate(asked.name, Study(Run(asked.folder, asked.settings), compare=asked.compare, workers=1))


def _locate(name: str, study: Study) -> tuple[Compared, dict[str, pd.DataFrame]]:
    """What is known of one model once its report is written, and the tables that are drawn."""
    report = study.report()
    return Compared(name=name, verdict=study.verdict, gap=study.gap, report=report), study.located
