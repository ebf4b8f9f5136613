"""The decision procedure: from what was measured to the class of the loss. Read it from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What counts as how much; shares in 0 to 1."""

    gap: float = 0.05  # a smaller gap is not worth explaining
    skill: float = 0.5  # the textual skill must answer this share from the gold intermediate
    there: float = 0.5  # a variable is there when a probe recovers this share of what chance leaves open
    most: float = 0.5  # most of an effect, or most of the failures
    repair: float = 0.25  # a repair that brings back this share of the failed answers has an effect
    probe: float = 0.8  # probes must recover this of the intermediate where it stands as text, to deny it elsewhere
    sure: float = 0.8  # of the resamples must agree


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was measured, in one sample of the items; curves run over decoder layers 0 to L - 1.

    `tower`, `projector`, `image` (own object's image tokens): the share of what chance leaves open that probes recover
    of the intermediate in direct runs. `reading` (question and last token): the same, as a share of the most that they
    recover there in text runs; NaN where nothing was measured. `text_needs`: in text runs, the share of the answer's
    log-probability that is lost when the intermediate's words are exchanged after a layer. `earlier`: the share of
    failed answers that come right when the direct run's own later state is written into an earlier layer. `used`: how
    much the direct answer depends on the intermediate, as a share of how much the text answer does. `probes`: what the
    probes recover where the intermediate stands as text, their positive control.
    """

    gap: float
    oracle: float
    unreadable: float
    tower: float
    projector: float
    image: Sequence[float]
    reading: Sequence[float]
    text_needs: Sequence[float]
    earlier: float
    used: float = 0.0
    probes: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The class of the loss and its layer, with the landmarks that led there (`None`: never).

    `reason` says why the evidence does not tell, where it does not.
    """

    locus: str
    reason: str = ""
    layer: int | None = None
    deadline: int | None = None
    arrival: int | None = None
    leaves: int | None = None


DENIALS = {"not_encoded", "lost_in_projector", "overwritten", "not_routed"}  # "it is not there", say the probes


def decide(facts: Facts, limits: Thresholds) -> Decision:
    """Name the first place on the intermediate's way at which it is lost."""
    found = _first_loss(facts, limits)
    starved = not facts.probes >= limits.probe
    if starved and found.locus in DENIALS:
        return _cannot("the probes fail where the intermediate stands as text: there are too few items for them")
    return found


def _cannot(reason: str, **marks: int | None) -> Decision:
    return Decision(locus="cannot_tell", reason=reason, **marks)


def _first_loss(facts: Facts, limits: Thresholds) -> Decision:
    if facts.oracle < limits.skill:
        return Decision(locus="text_skill")
    if math.isnan(facts.gap):
        return _cannot("no item passes both steps alone")
    if facts.gap < limits.gap:
        return Decision(locus="none")
    if facts.unreadable >= limits.most:
        return Decision(locus="format")
    if any(all(map(math.isnan, probed)) for probed in ([facts.projector], facts.image, facts.reading)):
        return _cannot("probes say nothing after the projector, at the image or at the reading positions")
    if facts.projector >= limits.there:
        return _within_the_decoder(facts, limits)
    if math.isnan(facts.tower):
        return _cannot("it is not there after the projector, and nothing was probed before")
    return Decision(locus="not_encoded" if facts.tower < limits.there else "lost_in_projector")


def _within_the_decoder(facts: Facts, limits: Thresholds) -> Decision:
    """The textual skill reads the intermediate up to a deadline: is it still there, and was it handed on?"""
    needed = max(facts.text_needs)
    deadline = _last(facts.text_needs, lambda share: share >= limits.most * needed and needed >= limits.repair)
    arrival = _first(facts.reading, lambda share: share >= limits.there)
    last_seen = _last(facts.image, lambda share: share >= limits.there)
    leaves = None if last_seen == len(facts.image) - 1 else (-1 if last_seen is None else last_seen) + 1
    marks: dict[str, Any] = {"deadline": deadline, "arrival": arrival, "leaves": leaves}
    if deadline is None:
        return _cannot("text runs do not read the intermediate where it stands", **marks)
    if arrival is None and leaves is not None and leaves <= deadline:
        return Decision(locus="overwritten", layer=leaves, **marks)
    if arrival is None:
        return Decision(locus="not_routed", layer=deadline, **marks)
    if arrival > deadline and math.isnan(facts.earlier):
        return _cannot("it arrives late, and delivering it earlier was not tried", **marks)
    if arrival > deadline and facts.earlier >= limits.repair:
        return Decision(locus="too_late", layer=arrival, **marks)
    if not facts.used < limits.most:
        return _cannot("it is there in time, and the answer depends on it: something else goes wrong", **marks)
    return Decision(locus="not_used", layer=arrival, **marks)


def _first(curve: Sequence[float], holds: Callable[[float], bool]) -> int | None:
    return next((layer for layer, value in enumerate(curve) if holds(value)), None)


def _last(curve: Sequence[float], holds: Callable[[float], bool]) -> int | None:
    return next((layer for layer in reversed(range(len(curve))) if holds(curve[layer])), None)
