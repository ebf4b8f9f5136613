"""The decision procedure: each class from facts made for it, and each threshold from both sides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from seamscope.experiments import LOCI, Decision, Facts, Thresholds, decide

FULL = (1.0,) * 6
# the textual skill reads the intermediate up to layer 2; the direct run has it at the last position from layer 1 on
HEALTHY_ROUTE = Facts(
    gap=0.6,
    oracle=1.0,
    unreadable=0.0,
    tower=0.95,
    projector=0.95,
    image=FULL,
    reading=(0.0, 0.8, 0.9, 0.9, 0.9, 0.9),
    text_needs=(1.0, 1.0, 0.6, 0.1, 0.0, 0.0),
    earlier=0.0,
)


@pytest.mark.parametrize(
    ("changes", "locus", "layer"),
    [
        ({}, "not_used", 1),
        ({"oracle": 0.3}, "text_skill", None),
        ({"gap": 0.01}, "none", None),
        ({"unreadable": 0.7}, "format", None),
        ({"tower": 0.1, "projector": 0.1}, "not_encoded", None),
        ({"projector": 0.1}, "lost_in_projector", None),
        ({"reading": (0.0,) * 6}, "not_routed", 2),
        ({"reading": (0.0,) * 6, "image": (1.0, 1.0, 0.1, 0.0, 0.0, 0.0)}, "overwritten", 2),
        ({"reading": (0.0,) * 6, "image": (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)}, "not_routed", 2),
        ({"reading": (0, 0, 0, 0, 0.9, 0.9), "earlier": 0.8}, "too_late", 4),
        ({"reading": (0, 0, 0, 0, 0.9, 0.9), "earlier": 0.0}, "not_used", 4),
        ({"text_needs": (0.05, 0.0, 0.0, 0.0, 0.0, 0.0)}, "cannot_tell", None),
        ({"tower": math.nan, "projector": 0.1}, "cannot_tell", None),
        ({"tower": math.nan}, "not_used", 1),  # a model without a tower, whose projector has it
        ({"projector": math.nan}, "cannot_tell", None),
        ({"image": (math.nan,)}, "cannot_tell", None),
        ({"reading": (math.nan,)}, "cannot_tell", None),
        ({"reading": (0, 0, 0, 0, 0.9, 0.9), "earlier": math.nan}, "cannot_tell", None),
    ],
)
def test_each_class_from_facts_made_for_it(changes: dict[str, object], locus: str, layer: int | None) -> None:
    decision = decide(replace(HEALTHY_ROUTE, **changes), Thresholds())  # type: ignore[arg-type]
    assert (decision.locus, decision.layer) == (locus, layer)
    assert locus in LOCI


def test_layer_zero_is_a_layer() -> None:
    decision = decide(replace(HEALTHY_ROUTE, reading=FULL), Thresholds())
    assert decision == Decision(locus="not_used", layer=0, deadline=2, arrival=0, leaves=None)


@pytest.mark.parametrize(
    ("name", "fact", "below", "above", "given"),
    [
        ("gap", "gap", "none", "not_used", {}),
        ("skill", "oracle", "text_skill", "not_used", {}),
        ("most", "unreadable", "not_used", "format", {}),
        ("there", "tower", "not_encoded", "lost_in_projector", {"projector": 0.1}),
        ("there", "projector", "lost_in_projector", "not_used", {}),
    ],
)
def test_every_threshold_decides(name: str, fact: str, below: str, above: str, given: dict[str, float]) -> None:
    limits = Thresholds()
    edge = getattr(limits, name)
    for value, locus in ((edge - 0.01, below), (edge + 0.01, above)):
        assert decide(replace(HEALTHY_ROUTE, **given, **{fact: value}), limits).locus == locus
