"""The figures of what makes a difference: erasing what probes read, and patching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pandas as pd

from . import figures
from ._plate import Draft, Tables, Words
from ._report_views import number
from .figures._causal import no_more_than_random
from .figures._style import NAMES
from .figures._tables import distinct, records

HEATMAPS: Final[Mapping[str, tuple[str, str]]] = {
    "denoise": (
        "Where the item's own state is enough",
        "The item's state, place by place, in its partner's direct run: the rise of the item's answer.",
    ),
    "noise": (
        "Where the item's own state is needed",
        "The partner's state, place by place, in the item's direct run: the fall of the item's answer.",
    ),
    "text_noise": (
        "Up to which layer text runs read the intermediate where it stands",
        "The partner's state, place by place, in the item's text run: the fall of the item's answer.",
    ),
}
ELSEWHERE: Final = "what else is at the place and moves with it, nor that no other place would do as well."


def causal_drafts(tables: Tables) -> list[Draft]:
    """What probes read against what erasing it does."""
    if "decodable_causal" not in tables:
        return []
    table = tables["decodable_causal"]
    measured = table.dropna(subset=["effect", "selectivity"])
    if measured.empty:
        return []
    beyond = int((~no_more_than_random(measured)).sum())
    words = Words(
        title="There, and used?",
        caption="A mark for each site, place and variable, with 95 % intervals both ways. Across: what a probe reads, "
        "as selectivity (accuracy beyond the control task). Upwards: the change of the answer's log-probability when "
        "just that is erased (LEACE) from every token of the place. To the right and at 0: there, and not used in a "
        "linear form. White inside: no different from erasing a random direction (the paired 95 % interval of the "
        f"difference holds 0); {beyond} of {len(measured)} differ.",
        controls="open and grey, a random subspace of the same rank erased from the same tokens. At a single position "
        "that alone can cost much: only what lies beyond it counts.",
        caveat="that the model itself uses, or does not use, what was erased: " + _warning(table),
        alt=f"Scatter of {len(measured)} cells, what probes read against what erasing does; {beyond} of them differ "
        "from a random direction.",
    )
    return [
        Draft(
            name="decodable_causal",
            draw=lambda: figures.decodable_causal(table),
            data=table,
            words=words,
            section="causal",
        )
    ]


def _warning(table: pd.DataFrame) -> str:
    return "; ".join(distinct(table, "warning")) + "."


def patch_drafts(tables: Tables) -> list[Draft]:
    """Every patching experiment that the table `effects` has."""
    if "effects" not in tables:
        return []
    effects = tables["effects"]
    held = set(effects.experiment)
    back = effects[effects.experiment == "backpatch"]
    return [
        *(_heatmap(effects, name) for name in HEATMAPS if name in held),
        *([_cross(effects)] if {"cross", "cross_control"} <= held else []),
        *(_back(back[back.span == span], span) for span in distinct(back, "span")),
    ]


def _heatmap(effects: pd.DataFrame, experiment: str) -> Draft:
    rows = effects[effects.experiment == experiment]
    title, done = HEATMAPS[experiment]
    words = Words(
        title=title,
        caption=f"{done} Colour: nats of its log-probability, by place and layer. Hatched: the 95 % interval holds 0. "
        "Grey: not measured.",
        controls="the counterfactual partner: same layout, same question, another intermediate and another answer, so "
        "that only what differs between the two is moved.",
        caveat=ELSEWHERE,
        alt=f"Heat map of the effect of {experiment.replace('_', ' ')} by layer and place. {_strongest(rows)}",
    )
    return Draft(
        name=f"patch_{experiment}",
        draw=lambda: figures.patch_heatmap(rows, experiment=experiment),
        data=rows,
        words=words,
        section="patching",
    )


def _strongest(rows: pd.DataFrame) -> str:
    held = rows.dropna(subset=["effect"])
    if held.empty:
        return "Nothing was measured."
    most = max(records(held), key=lambda row: abs(row["effect"]))
    place = NAMES.get(most["span"], most["span"])
    return f"Strongest: {number(most['effect'], signed=True)} nats at {most['target_site']}, {place}."


def _cross(effects: pd.DataFrame) -> Draft:
    rows = effects[effects.experiment.isin(["cross", "cross_control"])]
    words = Words(
        title="Where the text run's state brings the answer back",
        caption="The share of direct answers that come right when the text run's state is written into the direct run, "
        "by layer and place, with 95 % bands; level lines: the direct run as it is, and the text run.",
        controls="dashed, the same with the partner's text run, which says another answer.",
        caveat="that the intermediate was missing there: from the layer on at which the text run has its answer, the "
        "reading positions carry the answer itself.",
        alt="Curves of restored answers by layer, for each place.",
    )
    return Draft(name="cross", draw=lambda: figures.cross_curves(rows), data=rows, words=words, section="patching")


def _back(rows: pd.DataFrame, span: str) -> Draft:
    place = NAMES.get(span, span)
    words = Words(
        title=f"Would an earlier delivery have been enough? {place[:1].upper()}{place[1:]}",
        caption="The share of direct answers that are right when the state of a later layer (upwards) is written into "
        "an earlier one (across) of the same run. Hatched: the 95 % interval holds the share of the unpatched run.",
        controls="the unpatched run, which decides on the hatching.",
        caveat="that nothing was late where nothing is repaired: an early layer may not read the form of a later one.",
        alt=f"Matrix of answers right after back-patching at the {place}, by source and target layer.",
    )
    return Draft(
        name=f"backpatch_{span}",
        draw=lambda: figures.backpatch_matrix(rows, span=span),
        data=rows,
        words=words,
        section="patching",
    )
