"""The locator's procedure on made-up facts, of all objects together: every branch, every threshold from both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seamscope.experiments import LOCI
from seamscope.experiments._verdict import OVERTURN
from seamscope.experiments.locator import Decision, Thresholds, decide
from seamscope.experiments.locator._decide import lost_at

from ._made_up import (
    ARRIVES,
    BEHAVIOUR,
    EVER,
    LAYERS,
    NEVER,
    PLACES,
    READ,
    SHOWN,
    Made,
    T,
    around,
    held,
    outcome,
)


@pytest.mark.parametrize(
    ("known", "locus", "place"),
    [
        ({"oracle": 0.1}, "text_skill", None),
        ({"oracle": 1.0, "loss": 0.0}, "none", None),
        ({**BEHAVIOUR, "unreadable": 1.0, "longer": 1.0}, "format", None),
        ({**BEHAVIOUR, "words": 0.1}, "cannot_tell", None),
        ({**SHOWN, "path": held("vision.0.resid_post", after=0.1)}, "not_encoded", "vision.0.resid_post"),
        ({**SHOWN, "path": held("vision.1.resid_post")}, "not_encoded", "vision.1.resid_post"),
        ({**SHOWN, "path": held("projector.out")}, "lost_in_projector", "projector.out"),
        ({**SHOWN, "path": held("lm.1.resid_post"), "hold": EVER}, "overwritten", "lm.1.resid_post"),
        ({**SHOWN, "text_reading": NEVER}, "cannot_tell", None),
        ({**READ, "reading": NEVER}, "not_routed", None),
        ({**READ, "path": held("lm.1.resid_post"), "hold": NEVER, "reading": NEVER}, "not_routed", None),
        ({**READ, "path": held("lm.embed"), "reading": NEVER}, "not_routed", None),
        (ARRIVES, "not_used", "lm.2.resid_post"),
        ({**ARRIVES, "needs": np.array([1.0, 0.1, 0.1, 0.1])}, "too_late", "lm.2.resid_post"),
    ],
)
def test_each_class_from_no_more_than_it_takes(known: dict[str, Any], locus: str, place: str | None) -> None:
    found = outcome(known)
    assert (found.locus, found.place) == (locus, place)
    assert bool(found.reason) == (locus == "cannot_tell")
    assert locus in LOCI
    assert locus in OVERTURN


def test_landmarks_are_those_of_the_reading_positions() -> None:
    late = outcome({**ARRIVES, "needs": np.array([1.0, 0.1, 0.1, 0.1])})
    assert (late.arrival, late.deadline, late.layer) == (2, 1, 2)  # text runs hold it from layer 1 on
    used = outcome(ARRIVES)
    assert (used.arrival, used.deadline) == (2, 2)
    for found in (outcome({**READ, "reading": NEVER}), outcome({**SHOWN, "path": held("projector.out")})):
        assert (found.arrival, found.deadline) == (None, None)


@pytest.mark.parametrize(
    ("place", "layer"),
    [(None, None), ("projector.out", None), ("lm.embed", None), ("vision.3.resid_post", 3), ("lm.12.resid_post", 12)],
)
def test_the_layer_is_that_of_the_place(place: str | None, layer: int | None) -> None:
    assert Decision(locus="none", place=place).layer == layer


def class_of(known: dict[str, Any], **changes: Any) -> str:
    return decide(Made(**{**known, **changes}), T).locus


def test_thresholds_of_behaviour() -> None:
    around(T.skill, "text_skill", "none", lambda x: class_of({}, oracle=x, loss=0.0))
    around(T.loss, "none", "cannot_tell", lambda x: class_of(BEHAVIOUR, loss=x, words=0.0))
    form = {**BEHAVIOUR, "words": 0.0, "longer": 1.0}
    around(T.most, "cannot_tell", "format", lambda x: class_of(form, unreadable=x))
    around(T.most, "cannot_tell", "format", lambda x: class_of(form, unreadable=1.0, longer=x))
    outcome({**BEHAVIOUR, "words": 0.0}, unreadable=T.most - 0.001)  # a larger budget is not tried


def test_thresholds_of_probes_on_the_way() -> None:
    gone = {**SHOWN, "path": held("projector.out")}
    around(T.there, "cannot_tell", "lost_in_projector", lambda x: class_of(gone, words=x))
    kept = {**READ, "reading": NEVER}
    around(T.any, "not_encoded", "not_routed", lambda x: class_of(kept, path=np.full(8, x)))
    for most in (1.0, 0.6):  # half of the most, whatever that is
        away = [held("projector.out", before=most, after=x * most) for x in (T.there - 0.001, T.there + 0.001)]
        assert [class_of(kept, path=path) for path in away] == ["lost_in_projector", "not_routed"]


def test_thresholds_of_patches() -> None:
    over = {**READ, "path": held("lm.2.resid_post"), "reading": NEVER}

    def at(share: float, layer: int = 2) -> str:
        return class_of(over, hold=np.where(np.arange(LAYERS) == layer, share, 0.0))

    around(T.repair, "not_routed", "overwritten", at)
    assert at(1.0, layer=1) == at(1.0, layer=3) == "not_routed"  # holding it elsewhere is no evidence


def test_thresholds_at_the_reading_positions() -> None:
    flat = {**READ, "reading": NEVER}
    around(T.any, "cannot_tell", "not_routed", lambda x: class_of(flat, text_reading=np.full(4, x)))
    for most in (1.0, 0.6):  # half of what text runs hold
        text = np.array([0.0, most, most, most])

        def arrives(x: float, text: np.ndarray = text) -> str:
            return class_of(ARRIVES, text_reading=text, reading=np.array([0, 0, x, x]))

        around(T.there * most, "not_routed", "not_used", arrives)


def test_the_deadline_is_the_last_layer_that_needs_the_words_or_the_first_that_has_them() -> None:
    def decided(needs: list[float], text: list[float]) -> Decision:
        known = {**ARRIVES, "needs": np.array(needs), "text_reading": np.array(text)}
        return outcome({**known, "reading": np.array([0.0, 0.0, 1.0, 1.0])})

    early = [1.0, 1.0, 1.0, 1.0]
    around(T.most, "too_late", "not_used", lambda x: decided([1.0, 1.0, x, 0.0], early).locus)
    assert decided([1.0, 0.0, x := T.most, 0.0], early).deadline == 2, x
    assert decided([1.0, 1.0, 0.0, 0.0], early).deadline == 1
    assert decided([0.0, 0.0, 0.0, 0.0], early).deadline == 0
    assert decided([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.9, 1.0]).locus == "not_used"  # text runs have it no earlier
    assert decided([1.0, 0.0, 0.0, 0.0], [0.0, 0.9, 0.9, 1.0]).locus == "too_late"


def test_limits_are_those_that_are_given() -> None:
    facts = {**BEHAVIOUR, "words": 0.0}
    assert decide(Made(**facts), Thresholds(loss=0.9)).locus == "none"
    assert decide(Made(oracle=0.6), Thresholds(skill=0.7)).locus == "text_skill"
    strict = {**SHOWN, "path": held("projector.out", after=0.7), "text_reading": NEVER}
    assert decide(Made(**strict), Thresholds(there=0.8)).locus == "lost_in_projector"
    assert decide(Made(**strict), T).locus == "cannot_tell"


def test_what_was_not_measured_is_no_evidence() -> None:
    nan = float("nan")
    assert outcome({**BEHAVIOUR, "unreadable": 1.0, "longer": nan, "words": nan}).locus == "cannot_tell"
    gaps = held("projector.out")
    gaps[[0, 3, 5]] = nan
    assert outcome(SHOWN, path=gaps).place == "projector.out"
    gaps[2] = nan  # the first measured place without it
    assert outcome(READ, path=gaps, hold=NEVER, reading=NEVER).locus == "not_routed"
    late = np.array([nan, nan, 0.9, 0.9])
    assert outcome(ARRIVES, reading=late, text_reading=np.array([nan, 0.9, nan, 1.0])).arrival == 2
    assert outcome(SHOWN, text_reading=np.full(LAYERS, nan)).locus == "cannot_tell"


def test_a_way_of_which_nothing_was_measured_tells_nothing() -> None:
    assert decide(Made(**{**READ, "path": np.full(8, np.nan), "reading": NEVER}), T).locus == "cannot_tell"


def test_a_loss_behind_all_that_is_read_is_no_overwriting() -> None:
    """After the last layer nothing reads image positions, so holding them there is not tried."""
    path = held(f"lm.{LAYERS - 1}.resid_post")
    facts = Made(**{**READ, "path": path, "hold": np.ones(LAYERS - 1), "reading": NEVER})
    assert decide(facts, T).locus == "not_routed"


def test_where_it_goes_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    gone = 0
    for _ in range(300):
        path = np.where(rng.random(8) < 0.2, np.nan, rng.random(8).round(1))
        measured = [k for k in range(8) if not np.isnan(path[k])]
        wanted = next((PLACES[k] for k in measured if all(path[j] < 0.5 for j in measured if j >= k)), None)
        assert lost_at(path, PLACES, 0.5) == wanted
        gone += wanted is not None
    assert 50 < gone < 250
