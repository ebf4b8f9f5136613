"""What the report says of a verdict: where, how sure, on what grounds, and whether repairs work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from seamscope.hooks import Site

from ._report_views import interval, number
from ._verdict import LOCI, Evidence, Loss, Repair, Verdict, named

STACKS: Final = {"vision": "vision tower", "projector": "projector", "lm": "decoder"}
STABLE: Final = (
    (0.95, "very stable under resampling"),
    (0.8, "stable under resampling"),
    (0.6, "only fairly stable under resampling"),
    (0.0, "not stable under resampling"),
)
KINDS: Final = {
    "behaviour": ("Behaviour", "what does the model answer?"),
    "probe": ("Probes", "is it there?"),
    "patch": ("Patches", "is it used?"),
}


def site(verdict: Verdict) -> Site | None:
    """Where it is lost; a verdict with a layer and without a place means the decoder."""
    if verdict.place is not None:
        return Site.parse(verdict.place)
    return None if verdict.layer is None else Site("lm", "resid_post", verdict.layer)


def where(verdict: Verdict) -> str:
    """The part of the model and the layer with its interval, `decoder layer 3 (interval: 2 to 4)`; may be empty."""
    found = site(verdict)
    if found is None:
        return ""
    layer = "" if found.layer is None else f" layer {found.layer}"
    between = "" if verdict.interval is None else " (interval: {} to {})".format(*verdict.interval)
    return f"{STACKS[found.stack]}{layer}{between}"


def stability(confidence: float) -> str:
    """A confidence in words."""
    return next((words for least, words in STABLE if confidence >= least), "of unknown stability")


def losses(found: Iterable[Loss]) -> list[tuple[str, str, str]]:
    """Losses, each with what its class means, and of which objects it is and where."""
    return [(each.locus, LOCI.get(each.locus, ""), _of_objects(each)) for each in found]


def _of_objects(loss: Loss) -> str:
    return f"of {named(loss.objects)}" + ("" if loss.place is None else f", at {loss.place}")


def by_kind(evidence: Sequence[Evidence]) -> list[tuple[str, str, list[Evidence]]]:
    """The rows of each kind, with the kind's name and what it asks; kinds without rows are left out."""
    kinds = dict.fromkeys([*KINDS, *(row.kind for row in evidence)])
    held = {kind: [row for row in evidence if row.kind == kind] for kind in kinds}
    return [(*KINDS.get(kind, (kind, "")), rows) for kind, rows in held.items() if rows]


def repairs_in_words(repairs: Sequence[Repair]) -> str:
    """What the repair that the verdict names brings right, beside the best of the others."""
    if not repairs:
        return "No repair was tried."
    named, others = _apart(repairs)
    told = [f"the repair that the verdict names, {_brought(each)}" for each in named]
    if others:
        told.append(f"the best of the others, {_brought(_best(others))}")
    sentence = f"Of the answers that fail directly, {'; '.join(told)}."
    if not named:
        return f"The verdict names none of the repairs that were tried. {sentence}"
    return f"{sentence} {bearing(repairs)}".strip()


def bearing(repairs: Sequence[Repair]) -> str:
    """What repairs say of the verdict; nothing where it names none or all of them."""
    named, others = _apart([each for each in repairs if not math.isnan(each.restored)])
    if not named or not others:
        return ""
    right, other = _best(named), _best(others)
    if other.low > right.high:
        return "Another repair than the one it names brings back more: that speaks against the verdict."
    if right.low <= (right.control or 0.0):
        return "What it names brings back no more than its control: that does not support the verdict."
    if right.low > other.high:
        return "What it names brings back more than any other: that supports the verdict."
    return "Whether what it names brings back more than the others cannot be told: that decides nothing."


def _apart(repairs: Sequence[Repair]) -> tuple[list[Repair], list[Repair]]:
    """Those that the verdict names, and the others."""
    return [each for each in repairs if each.named], [each for each in repairs if not each.named]


def _best(repairs: Sequence[Repair]) -> Repair:
    return max(repairs, key=lambda each: -math.inf if math.isnan(each.restored) else each.restored)


def _brought(repair: Repair) -> str:
    share = f"{number(repair.restored)} {interval(repair.low, repair.high)}".strip()
    control = "" if repair.control is None else f" ({number(repair.control)} with the partner's states)"
    return f"{repair.name.replace('_', ' ')}, brings right {share}{control}"


def spent_rows(spent: Mapping[str, float]) -> list[tuple[str, str]]:
    """What finding out took, as (name, amount); whole numbers without decimals."""
    return [
        (name.replace("_", " "), f"{value:,.{0 if float(value).is_integer() else 1}f}") for name, value in spent.items()
    ]
