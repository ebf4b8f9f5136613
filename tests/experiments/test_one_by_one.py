"""Objects that are lost at different places, on made-up facts: who is followed alone, and what is said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from seamscope.experiments.locator import Decision, Thresholds, decide
from seamscope.experiments.locator._decide import ENOUGH, NO_LOSS, ORDER

from ._made_up import ARRIVES, EVER, LAYERS, NEVER, PLACES, Made, T, around, held

MANY = 10_000  # pairs, so that there is no noise to speak of
TEXT = ARRIVES["text_reading"]
Own = Mapping[str, np.ndarray]

# One object alone. Text runs need its words up to layer 2, and hold it at the reading positions from layer 1 on.
USED = {"path": held(None), "reading": np.array([0.0, 0.1, 0.9, 0.9])}
UNREAD = {"path": held(None), "reading": NEVER}
LATE = {"path": held(None), "reading": np.array([0.0, 0.0, 0.0, 0.9])}
UNSEEN = {"path": held("vision.1.resid_post"), "reading": NEVER}
STOPPED = {"path": held("projector.out"), "reading": NEVER}


def gone(layer: int, reading: np.ndarray = NEVER) -> Own:
    return {"path": held(f"lm.{layer}.resid_post"), "reading": reading}


def facts_of(*own: Own, **shared: Any) -> Made:
    """Facts of a model with such objects; what is read of all of them together is the mean."""
    known = {**ARRIVES, "hold": NEVER, "pairs": MANY, **shared}
    together = {name: np.mean([each[name] for each in own], axis=0) for name in ("path", "reading")}
    return Made(**{**known, **together}, objects=[Made(**{**known, **each}) for each in own])


def followed(*own: Own, limits: Thresholds = T, **shared: Any) -> Decision:
    return decide(facts_of(*own, **shared), limits)


def told(found: Decision) -> list[tuple[str, str | None, tuple[int, ...]]]:
    """All losses: what, where, and of which objects."""
    return [(each.locus, each.place, each.objects) for each in (found, *found.also)]


ONE = {
    "not_encoded": (UNSEEN, "vision.1.resid_post"),
    "lost_in_projector": (STOPPED, "projector.out"),
    "overwritten": (gone(1), "lm.1.resid_post"),
    "not_routed": (UNREAD, None),
    "too_late": (LATE, "lm.3.resid_post"),
}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("locus", ONE)
def test_one_of_three_is_lost(locus: str, number: int) -> None:
    """Named with its own place and number; of the others, which arrive in time, no loss is claimed."""
    lost, place = ONE[locus]
    found = followed(*(lost if k == number else USED for k in range(3)), hold=EVER)
    assert told(found) == [(locus, place, (number,))]
    assert (found.deadline is None) == (locus != "too_late")


@pytest.mark.parametrize("locus", ONE)
def test_what_all_objects_suffer_is_said_of_none(locus: str) -> None:
    lost, place = ONE[locus]
    assert told(followed(lost, lost, lost, hold=EVER)) == [(locus, place, ())]


PAIRS = [(first, second) for first in ONE for second in ONE if ORDER.index(first) < ORDER.index(second)]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_that_are_lost_at_different_places(first: str, second: str) -> None:
    """The first on the way is named first, whichever object it is; holding one of them brings no answer back."""
    (one, here), (other, there) = ONE[first], ONE[second]
    assert told(followed(one, other)) == [(first, here, (0,)), (second, there, (1,))]
    assert told(followed(other, one)) == [(first, here, (1,)), (second, there, (0,))]
    assert told(followed(other, USED, one)) == [(first, here, (2,)), (second, there, (0,))]
    assert told(followed(one, other, one)) == [(first, here, (0, 2)), (second, there, (1,))]


def test_three_losses_are_told_in_the_order_of_the_way() -> None:
    found = followed(LATE, gone(0), UNSEEN)
    assert [each.locus for each in (found, *found.also)] == ["not_encoded", "overwritten", "too_late"]
    assert [each.objects for each in (found, *found.also)] == [(2,), (1,), (0,)]
    assert all(each.also == () for each in found.also)
    layers = followed(gone(2), USED, gone(0))
    assert told(layers) == [("overwritten", "lm.0.resid_post", (2,)), ("overwritten", "lm.2.resid_post", (0,))]


def test_objects_lost_in_neighbouring_layers_are_lost_together() -> None:
    """The first of both layers is named; two layers apart they are not, and neither are different classes."""
    assert told(followed(gone(2), gone(1), USED)) == [("overwritten", "lm.1.resid_post", (0, 1))]
    assert told(followed(gone(2), gone(1))) == [("overwritten", "lm.1.resid_post", ())]
    assert len(told(followed(gone(2), gone(0)))) == 2
    assert len(told(followed(gone(0), UNSEEN))) == 2  # tower layer 1 and decoder layer 0


def test_objects_that_go_one_way_are_decided_together() -> None:
    """Nothing of theirs is asked beyond what may part them: the facts of all decide."""
    for own, locus in ((gone(1), "overwritten"), (UNREAD, "not_routed"), (LATE, "too_late"), (USED, "not_used")):
        facts = facts_of(own, own, own, hold=EVER)
        found = decide(facts, T)
        assert (found.locus, found.objects, found.also) == (locus, (), ())
        assert "words" in facts.asked
        for each in facts.objects:
            assert each.asked <= {"path", "reading", "text_reading", "pairs"}
            assert ("reading" in each.asked) == (locus != "overwritten")


def test_a_single_object_has_no_other_way_to_go() -> None:
    for own, locus in ((gone(1), "overwritten"), (UNREAD, "not_routed"), (USED, "not_used")):
        assert told(followed(own, hold=EVER))[0][::2] == (locus, ())


def test_behaviour_and_controls_come_before_any_object() -> None:
    for known, locus in (({"oracle": 0.1}, "text_skill"), ({"loss": 0.1}, "none"), ({"words": 0.1}, "cannot_tell")):
        facts = facts_of(UNSEEN, USED, **known)
        assert decide(facts, T).locus == locus
        assert not any(each.asked for each in facts.objects)


# What parts them


def parted(*own: Own, **shared: Any) -> bool:
    """Whether the first object, which arrives, was followed on its own."""
    facts = facts_of(*own, **shared)
    decide(facts, T)
    return "needs" in facts.objects[0].asked


@pytest.mark.parametrize("place", range(len(PLACES)))
def test_so_much_more_at_one_place_of_the_way_parts_them(place: int) -> None:
    def dips(share: float) -> Own:
        return {**USED, "path": np.where(np.arange(len(PLACES)) == place, 1 - share, 1.0)}

    around(T.apart, False, True, lambda x: parted(USED, dips(x)))
    assert parted(USED, USED, dips(T.apart))
    assert not parted(dips(1.0), dips(1.0))


def test_so_much_more_of_what_text_runs_hold_parts_them_at_the_reading_positions() -> None:
    for most in (1.0, 0.7, T.any):
        text = np.array([0.0, most, most, most])
        around(
            T.apart,
            False,
            True,
            lambda x, most=most, text=text: parted(
                {**USED, "reading": np.array([0.0, 0.0, most * x + 1e-9, 0.0])}, UNREAD, text_reading=text
            ),
        )


@pytest.mark.parametrize("locus", ["not_encoded", "lost_in_projector", "overwritten"])
def test_few_items_do_for_what_is_lost_on_the_way(locus: str) -> None:
    own, place = ONE[locus]
    hold = EVER if locus == "overwritten" else NEVER
    found = followed(USED, own, USED, pairs=ENOUGH - 1, hold=hold)
    assert told(found) == [(locus, place, (1,))]


@pytest.mark.parametrize("locus", ["not_routed", "too_late"])
def test_few_items_part_nothing_at_the_reading_positions(locus: str) -> None:
    """Neither by themselves nor beside an object that is lost on the way."""
    own, _ = ONE[locus]
    assert followed(USED, own, USED, pairs=ENOUGH - 1).objects == ()
    assert followed(USED, own, USED, pairs=ENOUGH).objects == ()  # three standard errors are more than there is
    assert followed(USED, own, USED, pairs=MANY).objects == (1,)
    assert told(followed(UNSEEN, own, USED, pairs=ENOUGH - 1)) == [("not_encoded", "vision.1.resid_post", (0,))]
    assert len(told(followed(UNSEEN, own, USED, pairs=ENOUGH))) == 2


def test_few_pairs_part_them_only_beyond_their_noise() -> None:
    """Each object's level has a standard error of 1 / sqrt(pairs) at chance; 3 of their difference are asked for."""
    away = {"path": held(None), "reading": np.zeros(LAYERS)}

    def parted(level: float, pairs: int) -> bool:
        there = {"path": held(None), "reading": np.full(LAYERS, level)}
        return followed(there, there, away, pairs=pairs).objects == (2,)

    assert parted(T.apart + 0.01, 51)  # 3 * sqrt(2 / 51) is just below the share that always is asked for
    assert not parted(T.apart + 0.01, 40)
    beyond = T.errors * float(np.sqrt(2 / 40))
    around(beyond, False, True, lambda level: parted(level, 40))


def test_little_in_text_runs_makes_no_great_difference() -> None:
    """What they hold counts as `any` at least: noise is not divided by next to nothing."""
    facts = facts_of({**USED, "reading": np.array([0.3, 0.3, 0.6, 0.6])}, {**USED, "reading": np.full(LAYERS, 0.3)})
    for most in (0.1, 0.0, np.nan):
        facts.objects[1].known["text_reading"] = np.full(LAYERS, most)
        decide(facts, T)
        assert "needs" not in facts.objects[0].asked
    assert followed(USED, UNREAD, text_reading=NEVER).locus == "cannot_tell"


def test_the_limit_is_the_one_that_is_given() -> None:
    half = {**USED, "path": held("lm.0.resid_post", after=0.45)}
    assert followed(USED, half, hold=EVER).objects == ()
    assert followed(USED, half, hold=EVER, limits=Thresholds(apart=0.5)).objects == (1,)
    assert followed(USED, UNSEEN, limits=Thresholds(apart=1.01)).objects == ()


def test_places_at_which_one_was_not_measured_part_nothing() -> None:
    path = held("lm.1.resid_post")
    path[PLACES.index("lm.1.resid_post") :] = np.nan
    assert not parted(USED, {**USED, "path": path})
    path[-1] = 0.0  # but one that was measured does
    assert told(followed(USED, {**USED, "path": path}, hold=EVER)) == [("overwritten", "lm.3.resid_post", (1,))]
    assert not parted(USED, {**USED, "path": np.full(len(PLACES), np.nan)})


def test_ways_that_part_without_a_loss_are_decided_together() -> None:
    """One goes from image positions once it is read, in a layer in which text runs do not read it any more."""
    read = np.array([0.0, 0.9, 0.9, 0.9])
    found = followed({**USED, "reading": read}, {**gone(3), "reading": read})
    assert told(found) == [("not_used", "lm.1.resid_post", ())]
    assert (found.arrival, found.deadline) == (1, 2)
    assert set(NO_LOSS) == {"not_used", "cannot_tell"}


def test_an_object_of_which_text_runs_hold_nothing_is_not_called_lost() -> None:
    facts = facts_of(UNSEEN, UNREAD)
    facts.objects[1].known["text_reading"] = np.full(LAYERS, T.any - 0.001)
    assert told(decide(facts, T)) == [("not_encoded", "vision.1.resid_post", (0,))]
    facts.objects[1].known["text_reading"] = TEXT
    assert told(decide(facts, T))[1:] == [("not_routed", None, (1,))]


# Gone from image positions beside another loss


def needed_to(layer: int) -> np.ndarray:
    return (np.arange(LAYERS) <= layer).astype(float)


@pytest.mark.parametrize("layer", range(1, LAYERS))
def test_beside_another_loss_it_is_gone_early_if_text_runs_still_read_it_then(layer: int) -> None:
    """The first layers have read enough of it to be told at the reading positions; holding it cannot help."""
    for deadline in range(1, LAYERS):  # no earlier than text runs hold it
        found = followed(UNSEEN, gone(layer, USED["reading"] + 0.9), needs=needed_to(deadline))
        also = [("overwritten", f"lm.{layer}.resid_post", (1,))] if layer <= deadline else []
        assert told(found) == [("not_encoded", "vision.1.resid_post", (0,)), *also]


def test_text_runs_read_it_no_earlier_than_they_hold_it() -> None:
    text = np.array([0.0, 0.0, 0.9, 1.0])
    early = USED["reading"] + 0.9
    assert len(told(followed(UNSEEN, gone(2, early), needs=needed_to(0), text_reading=text))) == 2
    assert len(told(followed(UNSEEN, gone(2, early), needs=needed_to(0)))) == 1


def test_alone_it_is_overwritten_only_if_holding_it_helps() -> None:
    """Negative control: without another loss, what text runs still read is not asked for."""
    early = gone(1, USED["reading"])
    assert told(followed(USED, early, needs=needed_to(2))) == [("not_used", "lm.2.resid_post", ())]
    assert told(followed(USED, gone(1), needs=needed_to(2))) == [("not_routed", None, (1,))]

    def at(share: float) -> list[Any]:
        return told(followed(USED, early, hold=np.where(np.arange(LAYERS) == 1, share, 0.0)))

    around(T.repair, "not_used", "overwritten", lambda x: at(x)[0][0])
    assert at(T.repair) == [("overwritten", "lm.1.resid_post", (1,))]


def test_beside_another_loss_only_what_was_in_the_decoder_can_be_gone_early() -> None:
    assert told(followed(STOPPED, UNSEEN)) == [
        ("not_encoded", "vision.1.resid_post", (1,)),
        ("lost_in_projector", "projector.out", (0,)),
    ]
    assert told(followed(UNSEEN, {**UNREAD, "path": held("lm.embed")}))[1][0] == "not_routed"  # before any layer
    assert told(followed(UNSEEN, LATE, needs=needed_to(2)))[1][0] == "too_late"  # it never goes
    assert told(followed(UNSEEN, gone(3, LATE["reading"]), needs=needed_to(2)))[1][0] == "too_late"


# By brute force


def drawn(rng: np.random.Generator) -> Own:
    kinds: Sequence[Own] = (USED, UNREAD, LATE, UNSEEN, STOPPED, *(gone(k) for k in range(3)))
    return kinds[rng.integers(len(kinds))]


def test_any_objects_by_what_was_done_to_each() -> None:
    """Every object is told with the class that it was made for, whatever becomes of the others."""
    rng, seen = np.random.default_rng(0), set[int]()
    made = {id(lost): locus for locus, (lost, _) in ONE.items()}
    for _ in range(300):
        own = [drawn(rng) for _ in range(rng.integers(2, 5))]
        wanted = {k: made.get(id(each), "overwritten") for k, each in enumerate(own) if each is not USED}
        found = followed(*own, hold=EVER)
        if not wanted:
            assert found.locus == "not_used"
            continue
        losses = (found, *found.also)
        named = {k: each.locus for each in losses for k in each.objects or range(len(own))}
        assert named == wanted
        order = [(ORDER.index(each.locus), each.layer or 0) for each in losses]
        assert order == sorted(order)
        assert sum(len(each.objects) for each in losses) in (0, len(wanted))
        seen.add(len(losses))
    assert seen >= {1, 2, 3}
