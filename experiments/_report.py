"""The report: one page that tells what was asked, measured and found, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import jinja2
import pandas as pd
from PIL.Image import Image

from seamscope.hooks import RunError, choose

from . import _report_views as views
from ._plate import Plate, Tables
from ._verdict import LOCI, Verdict
from .figures._gap import ALL, PASSING
from .figures._gap import COLUMNS as GAP_COLUMNS
from .figures._tables import PROBE_COLUMNS, keep, need, records
from .sweeps import EXPERIMENTS

if TYPE_CHECKING:
    from .tasks import Item

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
STABLE: Final = (
    (0.95, "very stable under resampling"),
    (0.8, "stable under resampling"),
    (0.6, "only fairly stable under resampling"),
    (0.0, "not stable under resampling"),
)
KINDS: Final = {"behaviour": "behaviour", "probe": "is it there?", "patch": "is it used?"}


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
    probes: pd.DataFrame,
    effects: pd.DataFrame,
    verdict: Verdict,
    others: Tables | None = None,
    figures: Sequence[Plate] = (),
    examples: Sequence[Example] = (),
    task_summary: str = "",
    limits: Sequence[str] = LIMITS,
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.html` into a folder and give its path.

    One file without scripts and without requests: pictures are embedded; links lead to the figures' PDF and
    CSV beside it. Every number in it comes from the tables and from the verdict. All text is escaped. `others`: the
    tables `transfer`, `lens`, `lens.tuned`, `decodable_causal`, as far as the run has them, whose controls are listed.
    `task_summary`: what an item asks, in a sentence. `versions`: default, those installed. Raises `RunError` for a
    table that lacks a column, a task without a gap, or a figure that is not on disk.
    """
    folder = Path(folder)
    own = keep(need(gap, "gap", GAP_COLUMNS), "gap", "task", verdict.task)
    keep(own, "gap", "subset", ALL)
    need(probes, "probes", PROBE_COLUMNS)
    need(effects, "effects", ("experiment", "n", "right", "base_right"))
    conditions, gap_rows = views.gap_rows(gap)
    page = _template().render(
        verdict=verdict,
        meaning=LOCI.get(verdict.locus, ""),
        where=_where(verdict),
        stability=_stability(verdict.confidence),
        kinds=KINDS,
        gap=views.gap_of(gap, verdict.task, subset=ALL),
        passing=views.gap_of(gap, verdict.task, subset=PASSING),
        conditions=conditions,
        gap_rows=gap_rows,
        family=views.main_family(probes),
        path_rows=views.path_rows(probes),
        probe_cells=len(probes),
        experiments=views.experiment_rows(effects, {name: e.question for name, e in EXPERIMENTS.items()}),
        controls=views.control_rows({"probes": probes, "effects": effects, **(others or {})}),
        plates=_plates(figures, folder),
        examples=[(example, _embed(example.picture)) for example in examples],
        task_summary=task_summary,
        limits=limits,
        settings=views.settings_rows(settings),
        versions=dict(versions if versions is not None else views.versions()),
    )
    return _write(folder / "report.html", page)


def _template() -> jinja2.Template:
    room = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    room.filters |= {"number": views.number, "plain": lambda text: str(text).replace("_", " ")}
    room.globals["interval"] = views.interval
    return room.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))


def _where(verdict: Verdict) -> str:
    if verdict.layer is None:
        return ""
    if verdict.interval is None:
        return f"decoder layer {verdict.layer}"
    low, high = verdict.interval
    return f"decoder layer {verdict.layer} (interval: {low} to {high})"


def _stability(confidence: float) -> str:
    return next((words for least, words in STABLE if confidence >= least), "of unknown stability")


def _plates(figures: Sequence[Plate], folder: Path) -> dict[str, list[dict[str, Any]]]:
    plates: dict[str, list[dict[str, Any]]] = {name: [] for name in SECTIONS}
    for plate in figures:
        section = choose("section of the report", plate.section, SECTIONS, RunError)
        if not plate.saved.png.is_file():
            raise RunError(f"figure {plate.saved.name!r} is not on disk: {plate.saved.png} was expected")
        links = [("PDF", plate.saved.pdf), *((f"CSV ({path.stem})", path) for path in plate.saved.csv)]
        plates[section].append(
            {
                "words": plate.words,
                "source": _data("image/png", plate.saved.png.read_bytes()),
                "links": [(name, _relative(path, folder)) for name, path in links],
            }
        )
    return plates


def _relative(path: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(path, folder)).as_posix())


def _embed(picture: Image, *, most: int = 512) -> str:
    small = picture.convert("RGB")
    small.thumbnail((most, most))
    held = BytesIO()
    small.save(held, format="PNG")
    return _data("image/png", held.getvalue())


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _write(path: Path, page: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".html.part")
    draft.write_text(page, encoding="utf-8")
    return draft.replace(path)
