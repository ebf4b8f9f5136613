"""The locator: asks until the class of the loss is decided, and says how sure that is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from .._verdict import LOCI, OVERTURN, Evidence, Loss, Verdict, named
from ._asking import Asking
from ._decide import ENOUGH, Decision, Facts, Thresholds, decide
from ._evidence import Findings, NotAskedError, Row
from ._probed import of_object
from ._tried import all_needed, tried

if TYPE_CHECKING:
    from .._study import Study

# what stands beside a class as causal evidence, though nothing is decided by it: of all that the reading positions tell
BESIDE: Final = {
    "not_routed": ("severed", "needs", "given"),
    "too_late": ("severed", "needs", "given", "form"),
    "not_used": ("severed", "needs", "given", "form"),
}
RARE: Final = 0.05  # what fewer resamples than these want to know is not measured for them


def locate(study: Study, *, thresholds: Thresholds | None = None) -> Verdict:
    """Say where a model loses the intermediate of a task, spending as few experiments as the answer takes.

    The procedure is `decide`; it is run on the items, asking for experiments as it goes, and on 1,000 resamples of the
    items, which gives the confidence and the layer's interval.
    """
    limits = thresholds or Thresholds()
    findings = Findings(Asking(study, there=limits.there), seed=study.settings.seed)
    first, others = _decided(findings, limits)
    for name in BESIDE.get(first.locus, ()):
        findings.of(name)
    told, sure = _told(first, others, limits)
    doubtful = () if not told.also or all_needed(findings, told) else told.also
    if doubtful:
        told, sure = _told(replace(first, also=()), others, limits)
    for loss in (told, *told.also):
        for number in loss.objects:
            of_object(findings, number, loss)
    repairs = tried(findings, told, limits)
    gap = _gap(study)
    layers = [other.layer for other in others if other.locus == first.locus and other.layer is not None]
    return Verdict(
        task=study.task.name,
        model=study.settings.model,
        locus=told.locus,
        place=told.place,
        layer=told.layer,
        interval=_interval(layers) if told.layer is not None and layers else None,
        confidence=sure,
        summary=_summary(told, nowhere=told.place is not None and told.place == findings.places[0], doubtful=doubtful),
        overturn=" ".join((*_overturn(told), *_unseen(findings, told))),
        gap=gap,
        evidence=(*_survives(gap), *findings.notes),
        objects=told.objects,
        also=tuple(Loss(locus=each.locus, place=each.place, objects=each.objects) for each in told.also),
        repairs=repairs,
        spent=_spent(findings),
    )


def _told(first: Decision, others: Sequence[Decision], limits: Thresholds) -> tuple[Decision, float]:
    """What is to be said, and how sure it is: all losses, else the first, else nothing.

    For a second loss it is enough that most resamples agree: repairs have to confirm it.
    """
    alike = Counter(_losses(other) for other in others)
    same = [other.objects == first.objects for other in others if other.locus == first.locus]
    if first.objects and not sum(same) >= limits.most * len(same):
        first = replace(first, objects=(), also=())
    if first.also and (both := alike[_losses(first)] / len(others)) >= limits.most:
        return first, both
    shares = Counter(other.locus for other in others)
    sure = shares[first.locus] / len(others)
    if sure < limits.sure and first.locus != "cannot_tell":
        return Decision(locus="cannot_tell", reason=_divided(shares, len(others))), sure
    return replace(first, also=()), sure


def _losses(decision: Decision) -> tuple[str, ...]:
    return decision.locus, *(each.locus for each in decision.also)


def _decided(findings: Findings, limits: Thresholds) -> tuple[Decision, list[Decision]]:
    """The decision on the sample, and on each resample; both may ask, but for what is rarely wanted."""
    first = decide(cast("Facts", Row(findings, 0)), limits)
    while True:
        findings.closed = True
        others = [_closed(findings, number, limits) for number in range(1, len(findings.items.weights))]
        findings.closed = False
        wanted = Counter(other for other in others if isinstance(other, str))
        often = [name for name, count in wanted.items() if count >= RARE * len(others)]
        if not often:
            unknown = Decision(locus="cannot_tell", reason="not measured")
            return first, [unknown if isinstance(other, str) else other for other in others]
        findings.of(often[0])


def _closed(findings: Findings, number: int, limits: Thresholds) -> Decision | str:
    try:
        return decide(cast("Facts", Row(findings, number)), limits)
    except NotAskedError as wanted:
        return wanted.name


def _interval(layers: Sequence[int]) -> tuple[int, int]:
    low, high = np.quantile(layers, [0.025, 0.975], method="nearest")
    return int(low), int(high)


def _divided(shares: Mapping[str, int], n: int) -> str:
    named = ", ".join(f"{locus} in {100 * count / n:.0f} %" for locus, count in Counter(shares).most_common(3))
    return f"resamples of the items disagree: {named}"


def _summary(decision: Decision, *, nowhere: bool = False, doubtful: Sequence[Decision] = ()) -> str:
    """In sentences; `nowhere`: it is read at no place of the way."""
    text = LOCI[decision.locus][0].upper() + LOCI[decision.locus][1:]
    if decision.reason:
        return f"{text}: {decision.reason}."
    if decision.objects:
        losses = " ".join(_of_some(each) for each in (decision, *decision.also))
        others = ", ".join(f"{each.locus} of {named(each.objects)}" for each in doubtful)
        return f"{losses} Also suspected, and not confirmed by repairs: {others}." if others else losses
    if decision.locus == "not_routed" or decision.place is None:
        return f"{text}."
    if decision.arrival is None:
        return f"{text}; " + ("it is read nowhere." if nowhere else f"at {decision.place} it can no longer be read.")
    return (
        f"{text}. At the reading positions of direct runs it is at least half as readable as in text runs from layer "
        f"{decision.arrival} on; text runs need it by layer {decision.deadline}."
    )


def _overturn(decision: Decision) -> list[str]:
    """What would speak against each class that is told."""
    return [OVERTURN[locus] for locus in dict.fromkeys((decision.locus, *(loss.locus for loss in decision.also)))]


def _unseen(findings: Findings, decision: Decision) -> list[str]:
    """What too few items leave open."""
    if decision.locus not in BESIDE:
        return []
    pairs = {number: findings.curves.pairs(number) for number in findings.curves.objects}
    few = [number for number in pairs if pairs[number] < ENOUGH]
    if len(pairs) < 2 or not few:
        return []
    return [
        f"At the reading positions nothing is known of {named(few)} alone: it takes {ENOUGH} items whose partner has "
        f"another object there, and there are {min(pairs.values())}; more items may show that one object is lost."
    ]


def _of_some(decision: Decision) -> str:
    """A loss of some of the objects."""
    where = "" if decision.locus == "not_routed" or decision.place is None else f", at {decision.place}"
    return f"Of {named(decision.objects)}: {LOCI[decision.locus]}{where}."


def _gap(study: Study) -> dict[str, Any]:
    """The composition gap of the run's task, on all items and where both steps pass."""
    table = study.gap
    own = table[(table.task == study.task.name) & (table.condition == "gap")]
    found: dict[str, Any] = {}
    for subset, name in (("all", ""), ("both steps pass", "_passing")):
        rows = own[own.subset == subset].to_dict("records")
        row = rows[0] if rows else {"estimate": np.nan, "low": np.nan, "high": np.nan, "n": 0}
        short = name.removeprefix("_") or "all"
        found |= {short: row["estimate"], f"{short}_low": row["low"], f"{short}_high": row["high"]}
        found[f"groups{name}"] = int(row["n"])
    return found


def _survives(gap: Mapping[str, float]) -> list[Evidence]:
    """The gap where it cannot be a single step's, as evidence; nothing where too few items pass both to say."""
    if np.isnan(gap["passing_low"]):
        return []
    return [
        Evidence(
            question="Does the gap survive equal budgets, where both steps pass?",
            kind="behaviour",
            measure=f"accuracy of cascaded less that of direct runs, {gap['groups_passing']} items that pass both",
            estimate=gap["passing"],
            low=gap["passing_low"],
            high=gap["passing_high"],
            control=None,
            finding="if there is none, nothing is lost, or a step that fails alone explains it",
        )
    ]


def _spent(findings: Findings) -> dict[str, float]:
    """How much was run: answers, probed cells, patched runs."""
    made = findings.asking.made

    def rows(*names: str) -> int:
        return sum(len(table) for name, table in made.items() if name.split(".")[0] in names)

    cells = [made[name].groupby(["condition", "site", "span"]) for name in ("path", "reading", "form") if name in made]
    return {
        "answers": len(findings.asking.answers) + rows("longer") + 2 * rows("handed"),
        "probed_cells": sum(map(len, cells)),
        "patched_runs": rows("hold", "needs", "given", "severed") + 2 * rows("repairs"),
    }
