"""The figures of what can be read: the path, probes by layer, their maps, and their learning curves."""

from __future__ import annotations

import pandas as pd

from . import figures
from ._plate import Draft, Tables, Words, extremes
from ._report_views import main_family
from ._verdict import Verdict
from .figures._style import NAMES, place_name
from .figures._tables import own_rows, probe_lines, span_family, target_family
from .figures._way import told

CONDITIONS = ("direct", "cascaded")
BESIDE = {
    "control": "a control task, random labels for each type of object, which only memory can predict",
    "shuffled": "shuffled labels",
    "untrained": "the same probes on a copy of the model with random weights",
    "pixels": "raw pixels of the object's picture (the level line)",
    "embedded": "token embeddings: at emb., the decoder's input, text runs hold no more than their words",
}


def path_draft(tables: Tables, verdict: Verdict) -> Draft:
    """The path of the intermediate; needs `probes` and `effects` with the experiment `denoise`."""
    probes, effects = tables["probes"], tables["effects"]
    family = main_family(probes)
    words = Words(
        title="The path of the intermediate",
        caption=f"Rows are places, depth runs across. Shading: how far above chance probes read {family} in direct "
        "runs and, in the thin lanes, in text runs. Black line: the share of the answer's log-probability that comes "
        "with the item's own state at that place alone, written into its partner's run; a dot where the 95 % interval "
        "of the effect excludes 0. Box: the verdict's locus, over the interval of its layer.",
        controls="text runs, in which the model succeeds. The controls of the probes are in the figures below.",
        caveat="that what is shaded is used: only the black line speaks of use, and of all that is at the place, not "
        "of the intermediate alone.",
        alt=f"Map of places by depth. The locus is {told(verdict)}.",
    )
    return Draft(
        name="path",
        draw=lambda: figures.summary_path(probes, effects, verdict, target=family),
        data={"probes": probes, "effects": effects},
        words=words,
        section="path",
    )


def probe_drafts(tables: Tables) -> list[Draft]:
    """Accuracy by layer, its map in each condition, and learning curves."""
    drafts = []
    if "probes" in tables:
        probes = tables["probes"]
        own = own_rows(probes[probes.target.map(target_family) == main_family(probes)])
        drafts += [*_curves(own), *(_map(own, name) for name in CONDITIONS if name in set(own.condition))]
    if "curves" in tables:
        curves = tables["curves"]
        own = own_rows(curves[curves.target.map(target_family) == main_family(curves)])
        direct = own[own.condition == "direct"]
        drafts += [_learning(direct, name) for name in ("objects", "last") if name in set(direct.span.map(span_family))]
    return drafts


def _curves(own: pd.DataFrame) -> list[Draft]:
    """At every place that both kinds of runs have."""
    runs = own.assign(place=own.span.map(span_family)).groupby("place", sort=False).condition.agg(set)
    places = [str(name) for name, held in runs.items() if held >= set(CONDITIONS)]
    if not places:
        return []
    family = main_family(own)
    held = [text for name, text in BESIDE.items() if own.get(f"{name}_accuracy", pd.Series(dtype=float)).notna().any()]
    words = Words(
        title=f"What linear probes read of {family}, by layer",
        caption=f"Held-out accuracy over depth, {_means(own)}, in direct runs and in text runs (cascaded), in which "
        "words stand for the objects; each with its 95 % band: whole groups of items are resampled, the fitted probes "
        "are held fixed.",
        controls="chance (dotted); " + "; ".join(held) + ".",
        caveat="that the model uses what a probe reads. Where a control, the pixels or the embeddings stand as high, "
        "the layer has added nothing that the probe needs.",
        alt="Curves of probe accuracy by layer. " + _spoken(own, places),
    )
    return [
        Draft(
            name="probes",
            draw=lambda: figures.probe_panels(own, spans=places, target=family),
            data=own,
            words=words,
            section="probes",
        )
    ]


def _map(own: pd.DataFrame, condition: str) -> Draft:
    family, rows = main_family(own), own[own.condition == condition]
    places = [str(name) for name in dict.fromkeys(rows.span.map(span_family))]
    words = Words(
        title=f"Where {family} can be read in {'text' if condition == 'cascaded' else condition} runs",
        caption=f"Places by depth; the colour is the probes' accuracy, {_means(rows)}, from chance to 1. Hatched: "
        "no better than chance, with the false discoveries of the whole table controlled (q > 0.05, of one variable at "
        "least), or than the control task (the 95 % interval of the selectivity reaches 0). Grey: not measured.",
        controls="chance and the control task decide on the hatching; shuffled labels, the untrained model, raw pixels "
        "and token embeddings stand beside the curves above.",
        caveat="that a hatched cell holds nothing: with few items, or for a probe that is not linear, it may. Nor that "
        "a bright one is used.",
        alt=f"Map of probe accuracy in {condition} runs. " + _spoken(rows, places),
    )
    return Draft(
        name=f"map_{condition}",
        draw=lambda: figures.probe_map(rows, condition=condition, target=family),
        data=rows,
        words=words,
        section="probes",
    )


def _learning(own: pd.DataFrame, place: str) -> Draft:
    family, rows = main_family(own), own[own.span.map(span_family) == place]
    ends = rows[rows.rows == rows.rows.max()]
    where = place_name(place, "direct")
    words = Words(
        title=f"Would more items read more? {family}, {where}, direct runs",
        caption="Accuracy on the later half of the items, over how many rows of the earlier half the probe was fitted "
        f"on, {_means(rows)}: a line for each site, coloured by its depth, with its 95 % band. An open end is still "
        "rising: what the last doubling gained has an interval above 0, so that what is read there is a lower bound.",
        controls="chance (dotted).",
        caveat="that a level curve has reached all there is: another kind of probe may read more.",
        alt=f"Learning curves of probes. With {rows.rows.max()} rows: {extremes(_averaged(ends), 'accuracy')}.",
    )
    return Draft(
        name=f"learning_{place}",
        draw=lambda: figures.learning_curves(rows, span=place, target=family),
        data=rows,
        words=words,
        section="probes",
    )


def _means(rows: pd.DataFrame) -> str:
    count = rows.target.nunique()
    return "of one variable" if count == 1 else f"means over {count} variables"


def _averaged(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.groupby("site", sort=False).accuracy.mean().reset_index()


def _spoken(own: pd.DataFrame, places: list[str]) -> str:
    """What the curves or cells of each place and condition come to."""
    told = []
    for place in places:
        lines = probe_lines(own, span=place, target=main_family(own))
        told += [
            f"{place_name(place, str(name))}, {NAMES.get(str(name), name)}: {extremes(table, 'accuracy')}"
            for name, table in lines.groupby("condition", sort=False)
        ]
    return "; ".join(told) + "."
