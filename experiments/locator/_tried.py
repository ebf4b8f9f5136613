"""What became of the repairs: those that the verdict names, beside the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, cast

import numpy as np
import pandas as pd

from .._verdict import Repair, named
from ._decide import Decision, Thresholds
from ._evidence import Findings
from ._hand_over import Spot
from ._items import Floats, interval
from ._patched import held, usable
from ._repairs import MENDS, WORDS, Spots

KEEP: Final = "keep"
TOGETHER: Final = "hand over before"
BEHIND: Final = "hand over behind"
ALONE: Final = "alone"  # ends the names of repairs of one loss of several
LOSSES: Final = ("not_encoded", *MENDS.values())


class _Plan(NamedTuple):
    """What is told from where, one spot for all objects or one for each; and in words."""

    spots: tuple[Spot, ...]
    words: str


def tried(findings: Findings, decision: Decision, limits: Thresholds) -> tuple[Repair, ...]:
    """Every repair, on the failed answers; none where nothing is lost, or where it is not known what."""
    if decision.locus not in LOSSES:
        return ()
    return (*_handed_over(findings, decision), *_in_place(findings, decision, limits))


def all_needed(findings: Findings, decision: Decision) -> bool:
    """Whether all losses have to be repaired: repairing any of them alone brings back fewer answers."""
    plans = _plans(findings, decision)
    if not plans:
        return False
    rows = findings.asking.handed({name: plan.spots for name, plan in plans.items()})
    own = {name: _failed(findings, rows[rows.name == name], "right") for name in plans}
    alone = [name for name in plans if name.endswith(ALONE)]
    return bool(alone) and all(interval(findings.items.mean(own[TOGETHER] - own[name]))[0] > 0 for name in alone)


def _handed_over(findings: Findings, decision: Decision) -> Iterator[Repair]:
    """In words, from the last places before the loss, and from the first ones behind it."""
    plans = _plans(findings, decision)
    if not plans:
        return
    rows = findings.asking.handed({name: plan.spots for name, plan in plans.items()})
    for name, plan in plans.items():
        table = rows[rows.name == name]
        own, control = (_failed(findings, table, column) for column in ("right", "control"))
        yield _repair(findings, name, plan.words, decision.locus, own, control, named=name == TOGETHER)


def _plans(findings: Findings, decision: Decision) -> dict[str, _Plan]:
    if decision.objects:
        return _plans_by_object(findings, decision)
    found = {}
    before, behind = _around(findings, decision)
    for name, spot, where in ((TOGETHER, before, "before"), (BEHIND, behind, "behind")):
        if spot is not None:
            words = f"the objects' words, told from {spot.name}, {where} the loss, are handed over as text"
            found[name] = _Plan((spot,), words)
    return found


def _plans_by_object(findings: Findings, decision: Decision) -> dict[str, _Plan]:
    """All losses repaired, each alone, and none."""
    losses = (decision, *decision.also)
    around = [_around(findings, each) for each in losses]
    if any(before is None for before, _ in around):
        return {}
    of = {number: k for k, loss in enumerate(losses) for number in loss.objects}

    def best(number: int | None = None) -> Spot:
        path = findings.of("path")[0] if number is None else findings.of_object("path", number)[0]
        return best() if np.isnan(path).all() else Spot(site=findings.places[int(np.nanargmax(path))])

    def told(mended: set[int]) -> tuple[Spot, ...]:
        chosen = []
        for number in range(1 + max(findings.curves.objects)):
            before, behind = around[of[number]] if number in of else (best(number), None)
            chosen.append(cast("Spot", before if of.get(number) in mended or behind is None else behind))
        return (*chosen, best())  # the last is that of all objects that are not followed

    every, phrase = set(range(len(losses))), "the objects' words are told and handed over as text"
    found = {TOGETHER: _Plan(told(every), f"{phrase}, from before their loss")}
    if len(losses) > 1:
        for k, loss in enumerate(losses):
            words = f"{phrase}, {named(loss.objects)} from before the loss, the others from behind it"
            found[f"hand over {named(loss.objects)} {ALONE}"] = _Plan(told({k}), words)
    found[BEHIND] = _Plan(told(set()), f"{phrase}, from behind their loss")
    return found


def _around(findings: Findings, decision: Decision) -> tuple[Spot | None, Spot | None]:
    """The last place that still holds the intermediate, and the first that should and does not."""
    places = findings.places
    end = f"lm.{findings.n_layers - 1}.resid_post"
    if decision.locus == "not_routed":
        image = [place for place in places if place.startswith("lm.")]
        return Spot(site=image[-1] if image else places[-1]), Spot(site=end, reading=True)
    if decision.locus == "too_late":
        return Spot(site=end, reading=True), Spot(site=f"lm.{decision.deadline}.resid_post", reading=True)
    if decision.locus == "not_used":
        return Spot(site=f"lm.{decision.deadline}.resid_post", reading=True), None
    number = places.index(decision.place or places[0])
    return Spot(site=places[number - 1]) if number else None, Spot(site=places[number])


def _in_place(findings: Findings, decision: Decision, limits: Thresholds) -> Iterator[Repair]:
    """In the direct run itself, one for each class; none of them repairs two losses."""
    rows = findings.asking.repairs(_spots(findings, limits))
    rows = rows[~rows.base_right.astype(bool)]
    made = {str(name): table for name, table in rows.groupby("name", sort=False)}
    for name, mends in MENDS.items():
        if name == KEEP:
            own, control = _kept(findings, decision)
        elif name in made:
            own, control = (_failed(findings, made[name], column) for column in ("right", "control"))
        else:
            continue
        yield _repair(
            findings, name, WORDS[name], mends, own, control, named=mends == decision.locus and not decision.also
        )


def _failed(findings: Findings, table: pd.DataFrame, column: str) -> Floats:
    """A column by item, of those that direct runs fail on."""
    return np.where(findings.failing, findings.items.column(table, column), np.nan)


def _repair(
    findings: Findings, name: str, words: str, mends: str, own: Floats, control: Floats, *, named: bool
) -> Repair:
    share = findings.items.mean(own)
    low, high = interval(share)
    return Repair(
        name=name,
        words=words,
        mends=mends,
        named=named,
        restored=float(share[0]),
        low=low,
        high=high,
        control=float(findings.items.mean(control)[0]),
        n=int((~np.isnan(own)).sum()),
    )


def _spots(findings: Findings, limits: Thresholds) -> Spots:
    """The last places of tower and decoder that hold the intermediate."""
    path, places = findings.of("path")[0], findings.places
    most = np.nanmax(path, initial=0.0)
    held = [place for place, level in zip(places, path, strict=True) if level >= limits.there * most > 0]
    tower = [place for place in held if place.startswith("vision.")]
    image = [place for place in held if place.startswith("lm.")]
    return Spots(tower=tower[-1] if tower else None, image=image[-1] if image else None, layer=usable(findings))


def _kept(findings: Findings, decision: Decision) -> tuple[Floats, Floats]:
    """Holding the image positions from the verdict's layer on; or from the layer that does most, by the other half."""
    own, control = held(findings)
    if decision.locus == "overwritten" and decision.layer is not None:
        return own[:, decision.layer], control[:, decision.layer]
    half = np.arange(len(own)) % 2 == 0
    best = [int(np.argmax(np.nan_to_num(pd.DataFrame(own[chosen]).mean().to_numpy()))) for chosen in (~half, half)]
    number, rows = np.where(half, *best), np.arange(len(own))
    return own[rows, number], control[rows, number]
