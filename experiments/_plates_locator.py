"""The figures of the locator's own tables: the way of the intermediate, and the patches beside the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pandas as pd

from . import figures
from ._plate import Draft, Tables, Words, extremes
from ._plates_use import ELSEWHERE
from ._verdict import Loss, Verdict, named
from .figures._causal_layers import layer_rows
from .figures._side import side_rows
from .figures._style import NAMES
from .figures._tables import distinct
from .figures._way import told, way_rows
from .locator import Thresholds

LOCATED: Final = ("path", "reading", "needs", "hold", "given")  # the locator's tables, as far as it asked for them
ASKED: Final = {
    "needs": "up to which layer do text runs read the intermediate's words?",
    "hold": "do answers come back when the image positions keep what they held before a layer?",
    "given": "do answers come back with the text run's own state at the reading positions?",
}
PATCHES: Final = {
    "needs": "In text runs, the partner's words stand behind one layer in place of the item's: the share of the "
    "answer's log-probability that is lost; 1 is what the partner's text run as a whole loses of it.",
    "hold": "In direct runs, the image positions keep in one layer and all after it what they held before it: of the "
    "answers that fail directly and not from the gold intermediate, the share that comes right.",
    "given": "In direct runs, the text run's own state is written over the reading positions of one layer: the same "
    "share.",
}
TYPES: Final = (
    "thin grey, a control task, random labels for each type of object. Where there are few types, a probe that tells "
    "objects apart learns their random labels as well, and the control rises with the line."
)
PANELS: Final = (
    "Direct runs, with 95 % bands; 0 is chance, 1 is always. Orange, at the objects' own tokens: the share of items "
    "that linear probes name rightly, of those that are not named rightly by chance. Blue, at the reading positions, "
    "where the procedure asked for them: how well probes tell an item from its partner."
)
RUNS: Final = {"direct": "direct runs", "oracle": "text runs"}


def locator_drafts(tables: Tables, *, verdict: Verdict | None = None) -> list[Draft]:
    """The way, where `path` is there, and the patches by layer; those that count failed answers need `answers`.

    Where a verdict speaks of some objects only, the way of each is drawn, too.
    """
    held = patches_of(tables)
    rows = layer_rows(**held)
    return [
        *([_way(tables, verdict)] if "path" in tables else []),
        *([_by_object(tables, verdict)] if "path" in tables and verdict is not None and verdict.objects else []),
        *([] if rows.empty else [_layers(held, rows, verdict)]),
    ]


def comparison_draft(paths: Tables, *, reading: Tables, verdicts: Mapping[str, Verdict]) -> Draft:
    """The way through several models, by name, for the page on which they stand side by side.

    `paths` and `reading` are the models' tables; empty or left out where the locator did not ask for them.
    """
    rows = side_rows(paths, reading)
    where = "; ".join(f"{name}: {told(verdict)}" for name, verdict in verdicts.items())
    words = Words(
        title="The way of the intermediate through each model",
        caption=f"{PANELS} Shaded: the place that the verdict names.",
        controls=f"chance (dotted); {TYPES}",
        caveat="that what is read is used, nor what the model answers.",
        alt=f"Small curves over the depth of {len(paths)} models, with their verdicts. {where}.",
    )
    return Draft(
        name="side_by_side",
        draw=lambda: figures.side_by_side(paths, reading=reading, verdicts=verdicts),
        data=rows,
        words=words,
        section="path",
    )


def patches_of(tables: Tables) -> dict[str, pd.DataFrame]:
    """The tables of patches that can be reduced, and the answers that failed."""
    able = [name for name in PATCHES if name in tables and (name == "needs" or "answers" in tables)]
    return {name: tables[name] for name in (*able, *(["answers"] if "answers" in tables else []))}


def _way(tables: Tables, verdict: Verdict | None) -> Draft:
    path, reading = tables["path"], tables.get("reading")
    rows = way_rows(path, reading)
    read = len(rows) > len(rows[rows.place == "objects"])
    below = (
        " Below, at the reading positions, in direct runs (solid) and in text runs (dashed): how well probes tell an "
        "item from its partner, with the same question and another intermediate."
    )
    marked = "" if verdict is None else f" The verdict is {told(verdict)}; its place is shaded."
    words = Words(
        title="The way of the intermediate through the model",
        caption="Places in the order in which the intermediate passes them, with 95 % bands; 0 is chance, 1 is always. "
        f"{'Above, at' if read else 'At'} the objects' own tokens in direct runs: the share of items that linear "
        "probes, fitted on other items, name rightly, of those that are not named rightly by chance."
        f"{below if read else ''} "
        f"Widely dotted: what counts as there, {100 * Thresholds().there:.0f} % of the most that is read.{marked}",
        controls=f"chance (dotted); open circle, the words themselves, where the probes must not fail; {TYPES}",
        caveat="that the model uses what is read: only patches speak of use. Nor that nothing is left where a line "
        "falls to chance: it may be there in a form that is not linear.",
        alt=f"Curves over the depth of the model. {_spoken(rows, marked)}",
    )
    return Draft(
        name="way",
        draw=lambda: figures.way(path, reading, verdict=verdict, limits=Thresholds()),
        data=rows,
        words=words,
        section="path",
    )


def _spoken(rows: pd.DataFrame, marked: str) -> str:
    lines = [
        f"{NAMES.get(str(place), place)}, {RUNS.get(str(condition), condition)}: {extremes(table, 'score')}"
        for (place, condition), table in rows.groupby(["place", "condition"], sort=False)
    ]
    return f"{'; '.join(lines)}.{marked}"


def _by_object(tables: Tables, verdict: Verdict) -> Draft:
    """Each object that most items have, on its own."""
    path, reading = tables["path"], tables.get("reading", pd.DataFrame(columns=["object"]))
    counts = path[path.condition == "direct"].dropna(subset="named").groupby("object").group.nunique()
    numbers = [int(number) for number in counts.index[counts >= path.group.nunique() / 2]]
    paths, readings = ({named([k]): table[table.object == k] for k in numbers} for table in (path, reading))
    verdicts = {named([k]): _alone(verdict, loss) for loss in verdict.losses for k in loss.objects}
    where = "; ".join(f"{name}: {told(each)}" for name, each in verdicts.items())
    words = Words(
        title="The way of each object",
        caption=f"{PANELS} Here it is an item and a partner with another object there. Shaded: where it is lost.",
        controls=f"chance (dotted); {TYPES}",
        caveat="that an object of which nothing is said is used.",
        alt=f"Small curves over the depth of the model, one for each of {len(paths)} objects. {where}.",
    )
    return Draft(
        name="by_object",
        draw=lambda: figures.side_by_side(paths, reading=readings, verdicts=verdicts),
        data=side_rows(paths, readings).rename(columns={"model": "object"}),
        words=words,
        section="path",
    )


def _alone(verdict: Verdict, loss: Loss) -> Verdict:
    """What a verdict says of the objects of one loss."""
    interval = verdict.interval if loss.place == verdict.place else None
    return replace(verdict, locus=loss.locus, place=loss.place, layer=None, interval=interval)


def _layers(held: Tables, rows: pd.DataFrame, verdict: Verdict | None) -> Draft:
    names = distinct(rows, "table")
    failing = {"hold", "given"} & set(names)
    partner = (
        "dashed, the same with the partner's states, which has most objects in common with the item: only what lies "
        "beyond it counts"
    )
    unchanged = "the text run as it is, at 0"
    words = Words(
        title="The patches beside the verdict, layer by layer",
        caption=f"{' '.join(PATCHES[name] for name in names)} All with 95 % bands; widely dotted, what counts as an "
        "effect" + (", and shaded, the verdict's place." if verdict is not None and verdict.place else "."),
        controls="; ".join([*([unchanged] if "needs" in names else []), *([partner] if failing else [])]) + ".",
        caveat=ELSEWHERE,
        alt="Curves by decoder layer. "
        + "; ".join(f"{name}: {extremes(table, 'score')}" for name, table in rows.groupby("table", sort=False))
        + ".",
    )
    return Draft(
        name="by_layer",
        draw=lambda: figures.by_layer(**held, verdict=verdict, limits=Thresholds()),
        data=rows,
        words=words,
        section="patching",
    )
