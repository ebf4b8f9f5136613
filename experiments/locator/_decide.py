"""The decision procedure: from what was measured to the class of the loss. Read it from top to bottom.

It follows the intermediate on its way, from the picture to the answer, and names the first place at which it is lost.
What a step needs is measured when the step is reached; what no step needs is not measured at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from .._verdict import LOCI

ORDER: Final = tuple(LOCI)
ENOUGH: Final = 20  # items whose partner has another object there, or it is not followed at the reading positions
NO_LOSS: Final = ("not_used", "cannot_tell")  # of an object beside another that is lost

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as how much; shares in 0 to 1."""

    skill: float = 0.5  # the textual skill must answer this share from the gold intermediate
    loss: float = 0.2  # a smaller loss is not worth explaining
    most: float = 0.5  # most of the failures, or most of an effect
    there: float = 0.5  # of the most that is read anywhere
    any: float = 0.4  # what is read of less than this anywhere in the picture's own states is not encoded
    repair: float = 0.25  # of the failed answers; what brings back fewer has no effect to speak of
    apart: float = 0.6  # objects of which at one place so much more is held of one than of another go different ways
    errors: float = 3.0  # standard errors by which they do
    sure: float = 0.8  # of the resamples must agree


class Facts(Protocol):
    """What was measured, in one sample of the items.

    `oracle`: accuracy from the gold intermediate. `loss`: the share of the items right there that direct runs fail on.
    `unreadable`: the share of those failures in which no answer can be read; `longer`: of these, the share that comes
    right with a larger budget.

    `path`: how many of the items probes name at each of `places`, sites from the tower's first layer to the image
    positions in the decoder's last; 0 is chance, NaN where that was not measured. `words`: the same where the
    intermediate stands as text, the probes' positive control. `reading`, `text_reading`: how well probes tell an item
    from its partner at the reading positions, by layer, of direct runs and of text runs: the question is known there.

    `hold`: by layer, the share of failed answers that come right when the image positions keep, from that layer on,
    what they held before it, less the share that does with the partner's states. `needs`: by layer, the share of the
    text answer that is lost when the intermediate's words are exchanged behind it.

    `objects`: the same facts of each object; `path`, `reading` and `text_reading` are its own, the others are those of
    the answer, which takes all objects. `pairs`: how many items have another object there than their partner.
    """

    places: Sequence[str]

    @property
    def oracle(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def unreadable(self) -> float: ...
    @property
    def longer(self) -> float: ...
    @property
    def path(self) -> Floats: ...
    @property
    def words(self) -> float: ...
    @property
    def reading(self) -> Floats: ...
    @property
    def text_reading(self) -> Floats: ...
    @property
    def hold(self) -> Floats: ...
    @property
    def needs(self) -> Floats: ...
    @property
    def objects(self) -> Sequence[Facts]: ...
    @property
    def pairs(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The class of the loss, the site at which it happens, and landmarks (`None`: never, or not asked for).

    `objects` are the numbers of the objects that are lost there, where not all are; `also` is what happens to others
    that are lost at another place. `reason` says why the evidence does not tell, where it does not.
    """

    locus: str
    place: str | None = None
    arrival: int | None = None
    deadline: int | None = None
    reason: str = ""
    objects: tuple[int, ...] = ()
    also: tuple[Decision, ...] = ()

    @property
    def layer(self) -> int | None:
        """The number of the layer of the place."""
        numbers = [int(part) for part in (self.place or "").split(".") if part.isdigit()]
        return numbers[0] if numbers else None


def decide(facts: Facts, limits: Thresholds) -> Decision:
    """Name the first place on the intermediate's way at which it is lost."""
    if facts.oracle < limits.skill:
        return Decision(locus="text_skill")
    if facts.loss < limits.loss:
        return Decision(locus="none")
    if facts.unreadable >= limits.most and facts.longer >= limits.most:
        return Decision(locus="format")
    if not facts.words >= limits.there:
        return _cannot("probes fail where the intermediate stands as text, so they can deny it nowhere")
    if np.isnan(facts.path).all():
        return _cannot("the intermediate has no tokens of its own in this model, neither in a tower nor in the decoder")
    if _part([each.path for each in facts.objects], limits):
        return _one_by_one(facts, limits)
    found = _before_the_decoder(facts, limits) or _at_image_positions(facts, limits)
    if found is not None:
        return found
    known = [each for each in facts.objects if each.pairs >= ENOUGH]
    read = [each.reading / np.nanmax(each.text_reading, initial=limits.any) for each in known]
    if _part(read, limits, noise=_noise([each.pairs for each in known])):
        return _one_by_one(facts, limits)
    return _at_reading(facts, limits)


def _before_the_decoder(facts: Facts, limits: Thresholds) -> Decision | None:
    """Is it in the tower, and does the projector hand it on?"""
    place = _lost(facts, limits)
    if place is None or (place.startswith("lm.") and place != facts.places[0]):
        return None
    return Decision(locus="lost_in_projector" if place.startswith("projector") else "not_encoded", place=place)


def _at_image_positions(facts: Facts, limits: Thresholds) -> Decision | None:
    """If it goes from image positions: does holding it there bring the answer back?"""
    place = _lost(facts, limits)
    found = Decision(locus="overwritten", place=place)
    if found.layer is None or found.layer >= len(facts.hold):  # nothing reads what the last layer leaves there
        return None
    return found if facts.hold[found.layer] >= limits.repair else None


def _at_reading(facts: Facts, limits: Thresholds) -> Decision:
    """Does it reach the reading positions, in time, and in vain?"""
    most = np.nanmax(facts.text_reading, initial=0.0)
    if not most >= limits.any:
        return _cannot("text runs do not hold it at the reading positions either, so its absence there says nothing")
    arrival = first(facts.reading >= limits.there * most)
    if arrival is None:
        return Decision(locus="not_routed")
    deadline = _deadline(facts, limits)
    place = f"lm.{arrival}.resid_post"
    if arrival > deadline:
        return Decision(locus="too_late", place=place, arrival=arrival, deadline=deadline)
    return Decision(locus="not_used", place=place, arrival=arrival, deadline=deadline)


def _deadline(facts: Facts, limits: Thresholds) -> int:
    """The last layer behind which text runs need the words; no earlier than they hold them at the reading positions."""
    most = np.nanmax(facts.text_reading, initial=0.0)
    in_text = first(facts.text_reading >= limits.there * most) or 0
    return max(in_text, last(facts.needs >= limits.most) or 0)


def _part(curves: Sequence[Floats], limits: Thresholds, *, noise: float = 0.0) -> bool:
    """Whether objects go different ways: somewhere one is there and another is not. `noise`: a standard error."""
    if len(curves) < 2:
        return False
    levels = np.stack(curves)
    levels = levels[:, ~np.isnan(levels).any(axis=0)]
    return bool(np.ptp(levels, axis=0).max(initial=0.0) >= max(limits.apart, limits.errors * noise))


def _noise(pairs: Sequence[int]) -> float:
    """The standard error of a difference between those two objects of which least is known, at the level of chance."""
    fewest = sorted(pairs)[:2]
    return float(np.sqrt(sum(1 / n for n in fewest)))


def _one_by_one(facts: Facts, limits: Thresholds) -> Decision:
    """Follow each object on its own; the first place at which any is lost is named, and the others beside it."""
    found = [_way_of(each, limits) for each in facts.objects]
    lost = {k for k, each in enumerate(found) if each.locus not in NO_LOSS}
    if not lost:
        return _at_reading(facts, limits)
    for k, each in enumerate(facts.objects):
        if lost - {k}:  # then holding this one alone cannot bring the answer back
            found[k] = _gone_early(each, limits) or found[k]
    lost = {k for k, each in enumerate(found) if each.locus not in NO_LOSS}
    losses: list[Decision] = []
    for k in sorted(lost, key=lambda k: (ORDER.index(found[k].locus), found[k].layer or 0)):
        known = next((each for each in losses if _alike(each, found[k])), None)
        if known is None:
            losses.append(replace(found[k], objects=(k,)))
        else:
            losses[losses.index(known)] = replace(known, objects=tuple(sorted((*known.objects, k))))
    if losses[0].objects == tuple(range(len(found))):
        return replace(losses[0], objects=())
    return replace(losses[0], also=tuple(losses[1:]))


def _way_of(facts: Facts, limits: Thresholds) -> Decision:
    """What becomes of one object; too few items tell nothing of it at the reading positions."""
    found = _before_the_decoder(facts, limits) or _at_image_positions(facts, limits)
    if found is not None:
        return found
    return _at_reading(facts, limits) if facts.pairs >= ENOUGH else _cannot("too few items have another object there")


def _gone_early(facts: Facts, limits: Thresholds) -> Decision | None:
    """Gone from image positions in a layer in which text runs still read it at its words."""
    found = Decision(locus="overwritten", place=_lost(facts, limits))
    if found.layer is None or not (found.place or "").startswith("lm."):
        return None
    return found if found.layer <= _deadline(facts, limits) else None


def _alike(one: Decision, other: Decision) -> bool:
    """Whether two objects are lost at the same place, or in neighbouring layers."""
    return one.locus == other.locus and abs((one.layer or 0) - (other.layer or 0)) <= 1


def _lost(facts: Facts, limits: Thresholds) -> str | None:
    """The place on the way from which on less than half of the most is named."""
    most = np.nanmax(facts.path, initial=0.0)
    return lost_at(facts.path, facts.places, limits.there * most) if most >= limits.any else facts.places[0]


def lost_at(path: Floats, places: Sequence[str], there: float) -> str | None:
    """The first measured place from which on it is nowhere to be read; None where it is there to the end."""
    measured = np.flatnonzero(~np.isnan(path))
    absent = [place for place in reversed(measured) if not (path[measured] >= there)[measured >= place].any()]
    return places[absent[-1]] if absent else None


def first(holds: NDArray[np.bool_]) -> int | None:
    """The first layer for which it holds."""
    found = np.flatnonzero(holds)
    return int(found[0]) if len(found) else None


def last(holds: NDArray[np.bool_]) -> int | None:
    """The last layer for which it holds."""
    found = np.flatnonzero(holds)
    return int(found[-1]) if len(found) else None


def _cannot(reason: str) -> Decision:
    return Decision(locus="cannot_tell", reason=reason)
