"""What probes say: is the intermediate there, on its way and at the reading positions?"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

import numpy as np

from ._asking import READ_AT
from ._items import Floats

if TYPE_CHECKING:
    from ._decide import Decision
    from ._evidence import Findings

HALF: Final = 0.5
ON_THE_WAY: Final = ("not_encoded", "lost_in_projector", "overwritten")  # lost at the objects' own tokens
ASKED: Final = {
    "vision": "Is the intermediate in the vision tower?",
    "projector": "Does the projector hand it on?",
    "lm": "Is it at its image positions in the decoder?",
}


def path(found: Findings) -> Floats:
    """How many items are named at the objects' own tokens, by place."""
    score, control = found.curves.own("direct").named()
    for number in _telling(score[0]):
        found.note(
            ASKED.get(found.places[number].split(".")[0], "Is it there?"),
            "probe",
            "share of items that probes name rightly, of those that are not named by chance",
            score[:, number],
            "half of the most that is named anywhere on the way counts as there",
            control=float(control[0, number]),
            site=found.places[number],
            span="objects",
        )
    return score


def words(found: Findings) -> Floats:
    """The same where the objects stand as words."""
    curve = found.curves.own("oracle")
    if not curve.index:
        return np.full(len(found.items.weights), np.nan)
    score, control = curve.named()
    return found.note(
        "Do the probes read it where it stands as text?",
        "probe",
        "share of items that they name rightly, of those that are not named by chance",
        score[:, 0],
        "the probes' positive control: if they fail here, they cannot deny it elsewhere",
        control=float(control[0, 0]),
        span="objects",
    )


def reading(found: Findings) -> Floats:
    """How well items are told apart at the reading position of direct runs that holds most, by layer."""
    return _read(found, found.curves.reading("direct"), "direct runs")


def text_reading(found: Findings) -> Floats:
    """The same of text runs."""
    return _read(found, found.curves.reading("oracle"), "text runs")


def _read(found: Findings, curve: Floats, whose: str) -> Floats:
    return _at_best(
        found,
        f"Does it reach the reading positions of {whose}?",
        "how well probes tell an item from its partner, at the layer where they do best",
        curve,
        "half of what text runs hold counts as arrived",
        top=int(np.nanargmax(curve[0])),
    )


def form(found: Findings) -> Floats:
    """What arrives in direct runs, in the form of text runs; a layer counts if direct runs hold it there."""
    curve = found.curves.form()
    return _at_best(
        found,
        "Is it there in the form that text runs give it?",
        "how well probes that were fitted on text runs tell an item from its partner in direct runs, at their best",
        curve,
        "near 0 it is there in a form that the textual skill has never seen",
        top=int(np.nanargmax(np.where(found.of("reading")[0] >= HALF, curve[0], -1))),
    )


def _at_best(found: Findings, question: str, measure: str, curve: Floats, finding: str, *, top: int) -> Floats:
    site, span = f"lm.{top}.resid_post", " or ".join(READ_AT)
    return found.note(question, "probe", measure, curve, finding, at=top, site=site, span=span)


def of_object(found: Findings, number: int, loss: Decision) -> None:
    """Note how much is left of an object where it is lost: on its way, or at the reading positions."""
    if loss.place is not None and loss.locus in ON_THE_WAY:
        index, whose = found.places.index(loss.place), "probes name rightly, of those that are not named by chance"
        values = found.of_object("path", number)[:, index]
        most, site, span = found.of_object("path", number)[0, :index], loss.place, "objects"
    else:
        layer = found.n_layers - 1 if loss.deadline is None else loss.deadline
        whose = "probes tell from their partner; 0 is chance"
        values = found.of_object("reading", number)[:, layer]
        most, site, span = found.of_object("text_reading", number)[0], f"lm.{layer}.resid_post", " or ".join(READ_AT)
    found.note(
        f"Is object {number} there?",
        "probe",
        f"share of items that {whose}",
        values,
        f"{np.nanmax(most, initial=0.0):.2f} at most {'before' if span == 'objects' else 'in text runs'}",
        site=site,
        span=span,
    )


def _telling(score: Floats) -> list[int]:
    """The places that a reader wants to see: the best, the last, and those between which it goes."""
    measured = np.flatnonzero(~np.isnan(score))
    if not len(measured):
        return []
    best, end = int(measured[np.argmax(score[measured])]), int(measured[-1])
    drops = [int(b) for a, b in pairwise(measured) if score[a] - score[b] > 0.3]
    return sorted({best, end, *drops, *(drop - 1 for drop in drops)} & set(measured.tolist()))
