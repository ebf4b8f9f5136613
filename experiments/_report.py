"""The report: one page that tells what was asked, measured and found, with nothing to load from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from PIL.Image import Image

from seamscope.hooks import RunError, choose

from . import _page as page
from . import _report_verdict as said
from . import _report_views as views
from ._plate import Plate, Tables
from ._plates_locator import ASKED, patches_of
from ._verdict import LOCI, Verdict
from .figures._causal_layers import layer_rows
from .figures._gap import ALL, PASSING
from .figures._gap import COLUMNS as GAP_COLUMNS
from .figures._tables import PROBE_COLUMNS, keep, need, records
from .figures._way import way_rows
from .sweeps import EXPERIMENTS

if TYPE_CHECKING:
    import jinja2

    from .tasks import Item

TEMPLATE: Final = "report.html.jinja"
SECTIONS: Final = ("gap", "path", "probes", "transfer", "lens", "causal", "patching")
LIMITS: Final = (
    "Decodable is not used: a probe says that something can be read from a state, never that the model reads "
    "it. Only interventions, patches and erasures, speak of use, and they are reported apart.",
    "The confidence is sampling stability only: how often resamples of these items give the same class. It "
    "knows nothing of a wrong procedure, of other prompts, of other pictures, or of another model.",
    "A patch that changes the answer shows that a state is enough or needed in this run; it does not show "
    "that nothing else would do.",
    "The cascade's second call sees text only; a cascade that also sees the picture may behave otherwise.",
)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the model wrote for an item under one condition."""

    condition: str
    text: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """One item to show: its picture, what was asked, what should be handed over, and what came out."""

    picture: Image
    question: str
    intermediate: str
    answer: str
    outputs: tuple[Output, ...] = ()

    @classmethod
    def of(cls, item: Item, answers: pd.DataFrame | None = None) -> Example:
        """An item, with its rows of the table of `run_conditions`."""
        rows = [] if answers is None else records(answers[answers.id == item.id])
        outputs = tuple(
            Output(condition=row["condition"], text=str(row["output"]), correct=bool(row["correct"])) for row in rows
        )
        return cls(
            picture=item.image,
            question=item.question,
            intermediate=item.intermediate.text,
            answer=item.answer,
            outputs=outputs,
        )


def write_report(
    folder: str | Path,
    *,
    settings: Mapping[str, Any],
    gap: pd.DataFrame,
    verdict: Verdict,
    probes: pd.DataFrame | None = None,
    effects: pd.DataFrame | None = None,
    others: Tables | None = None,
    figures: Sequence[Plate] = (),
    examples: Sequence[Example] = (),
    task_summary: str = "",
    limits: Sequence[str] = LIMITS,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.html` into a folder and give its path.

    One file without scripts and without requests: pictures are embedded; links lead to the figures' PDF and
    CSV beside it. Every number in it comes from the tables and from the verdict. All text is escaped.

    `probes`, `effects`: those of a run that has them. `others`: further tables, as far as the run has them, whose
    numbers and controls are listed: those of the locator (`path, reading, needs, hold, given`, and `answers`), and
    `transfer, lens, lens.tuned, decodable_causal`. `task_summary`: what an item asks, in a sentence. `versions`:
    default, those installed. Raises `RunError` for a table that lacks a column, a task without a gap, or a figure that
    is not on disk.
    """
    folder = Path(folder)
    own = keep(need(gap, "gap", GAP_COLUMNS), "gap", "task", verdict.task)
    keep(own, "gap", "subset", ALL)
    given = {"probes": probes, "effects": effects, **(others or {})}
    tables = _reduced({name: table for name, table in given.items() if table is not None and not table.empty})
    conditions, gap_rows = views.gap_rows(gap)
    return page.write_page(
        folder / "report.html",
        TEMPLATE,
        **_of_verdict(verdict),
        gap=views.gap_of(gap, verdict.task, subset=ALL),
        passing=views.gap_of(gap, verdict.task, subset=PASSING),
        conditions=conditions,
        gap_rows=gap_rows,
        **_of_tables(tables),
        plates=_by_section(figures, folder),
        examples=[(example, page.embedded(example.picture)) for example in examples],
        task_summary=task_summary,
        limits=limits,
        settings=views.settings_rows(settings),
        again=views.again(settings),
        versions=dict(versions if versions is not None else views.versions()),
    )


def _reduced(tables: Tables) -> dict[str, pd.DataFrame]:
    """The tables, checked, and what is drawn of the locator's: `way` and `layers`."""
    found = dict(tables)
    if "probes" in found:
        need(found["probes"], "probes", PROBE_COLUMNS)
    if "effects" in found:
        need(found["effects"], "effects", ("experiment", "n", "right", "base_right"))
    if "path" in found:
        found["way"] = way_rows(found["path"], found.get("reading"))
    return {**found, "layers": layer_rows(**patches_of(found))}


def _of_tables(tables: Tables) -> dict[str, Any]:
    probes = tables.get("probes")
    questions = {name: each.question for name, each in EXPERIMENTS.items()}
    return {
        "way_rows": views.way_rows(tables["way"]) if "way" in tables else [],
        "family": "" if probes is None else views.main_family(probes),
        "path_rows": [] if probes is None else views.path_rows(probes),
        "probe_cells": 0 if probes is None else len(probes),
        "experiments": [
            *views.experiment_rows(tables["layers"].rename(columns={"table": "experiment"}), ASKED),
            *(views.experiment_rows(tables["effects"], questions) if "effects" in tables else []),
        ],
        "controls": views.control_rows(tables),
        "untrained": probes is not None and "untrained_accuracy" in probes,
    }


def _of_verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "meaning": LOCI.get(verdict.locus, ""),
        "where": said.where(verdict),
        "stability": said.stability(verdict.confidence),
        "also": said.losses(verdict.also),
        "evidence": said.by_kind(verdict.evidence),
        "repairs": said.repairs_in_words(verdict.repairs),
        "spent": said.spent_rows(verdict.spent),
    }


def _template() -> jinja2.Template:
    return page.read_template(TEMPLATE)


def _by_section(figures: Sequence[Plate], folder: Path) -> dict[str, list[dict[str, Any]]]:
    plates: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for plate in figures:
        section = choose("section of the report", plate.section, SECTIONS, RunError)
        plates[section].append(page.shown(plate, folder))
    return plates
