"""Planted faults of some objects: the first or the last is lost, or both, and each at the place that is its own."""

from __future__ import annotations

import pytest

from seamscope.experiments.organism import _faults
from seamscope.experiments.organism._alter import Alteration
from seamscope.experiments.organism._faults import ENDS, Fault

from .test_faults import CATALOGUE, OBJECTS, accuracy, base_of, direct, is_plain, naming_each, wanted

PARTIAL = {name: fault for name, fault in CATALOGUE.items() if any(each.part != "all" for each in fault.alterations)}
ALONE = {name: fault for name, fault in PARTIAL.items() if not fault.also}
TWICE = {name: fault for name, fault in PARTIAL.items() if fault.also}
ON_THE_WAY = ("not_encoded", "lost_in_projector", "overwritten", "not_routed", "too_late")


def losses(fault: Fault) -> dict[str, Fault]:
    """Each loss as a fault by itself, by the part of the picture; they are told in the order of their classes."""
    parts = dict.fromkeys(each.part for each in fault.alterations)
    places = dict(zip(parts, (fault.place, *(None for _ in fault.also)), strict=True))
    return {
        part: Fault(
            name=fault.name,
            task=fault.task,
            base=fault.base,
            locus=locus,
            place=places[part] or placed(fault, locus, part),
            alterations=tuple(each for each in fault.alterations if each.part == part),
        )
        for part, locus in zip(parts, (fault.locus, *fault.also), strict=True)
    }


def placed(fault: Fault, locus: str, part: str) -> str | None:
    """The place of a further loss, by what is done to its part."""
    own = [each.place for each in fault.alterations if each.part == part]
    blank = 1 + max((int(place.split(".")[1]) for place in own if place.endswith("key")), default=0)
    return {"not_routed": None, "too_late": f"lm.{blank}.resid_post"}.get(locus, own[0])


@pytest.mark.parametrize("task", ENDS)
def test_the_models_of_a_data_set_lose_either_end_and_both(task: str) -> None:
    bases = {fault.base for fault in CATALOGUE.values() if is_plain(fault) and fault.task == task}
    for base in bases:
        own = [fault for fault in PARTIAL.values() if (fault.base, fault.task, fault.seed) == (base, task, 0)]
        once = [fault for fault in own if not fault.also]
        assert {each.part for fault in once for each in fault.alterations} == set(ENDS[task])
        assert len({fault.locus for fault in once}) == len(once) >= 3
        both = [(fault.locus, *fault.also) for fault in own if fault.also]
        assert len(set(both)) == len(both) >= 2
    assert {fault.base for fault in PARTIAL.values() if fault.task == task} == bases


def test_only_where_objects_have_ends() -> None:
    """Things to be counted stand anywhere."""
    assert {fault.task for fault in PARTIAL.values()} == set(ENDS) == set(OBJECTS) - {"counting"}
    assert not any(fault.also for fault in CATALOGUE.values() if fault.name not in PARTIAL)


@pytest.mark.parametrize("name", ALONE)
def test_one_loss_is_of_one_end(name: str) -> None:
    fault = ALONE[name]
    first, last = ENDS[fault.task]
    part = first if "-first" in name else last
    assert {each.part for each in fault.alterations} == {part}
    assert {(each.how, each.place) for each in fault.alterations} == wanted(fault)


@pytest.mark.parametrize("name", TWICE)
def test_two_losses_are_of_either_end_and_each_is_what_its_class_means(name: str) -> None:
    fault, (first, last) = TWICE[name], ENDS[TWICE[name].task]
    found = losses(fault)
    assert tuple(found) == (first, last)
    order = [ON_THE_WAY.index(each.locus) for each in found.values()]
    assert order[0] < order[1]  # the first on the way is named first
    for part, loss in found.items():
        done = {(each.how, each.place) for each in loss.alterations}
        assert done == wanted(loss), (name, part)
    assert name.index("-first") < name.index("-last")


def test_both_halves_have_models_that_lose_it_twice() -> None:
    for half in (False, True):
        assert sum(fault.held_back == half for fault in TWICE.values()) >= 3
        assert sum(fault.held_back == half for fault in ALONE.values()) >= 3


def test_a_part_may_be_named() -> None:
    assert _faults.at("projector.out", part="top") == (Alteration(place="projector.out", part="top"),)
    assert _faults.at("projector.out") == (Alteration(place="projector.out"),)
    assert {each.part for each in _faults.reading(range(3), "blank", part="right")} == {"right"}
    assert {each.part for each in _faults.reading(range(3), "blank")} == {"all"}


SITES = ("vision.2.resid_post", "projector.out", "lm.0.resid_post", "lm.6.resid_post")
LOST = {  # of which objects of three, from which of these sites on
    "none": {},
    "tower-2-first": {0: 0},
    "overwritten-0-last": {2: 2},
    "unrouted-last": {},
    "late-3-last": {},
    "tower-2-first-overwritten-0-last": {0: 0, 2: 2},
    "projector-first-unrouted-last": {0: 1},
}


@pytest.mark.parametrize("kind", LOST)
def test_probes_find_each_object_up_to_its_own_place(kind: str) -> None:
    """An object whose reading alone is broken stays at its tokens, and so do those between the ends."""
    found = naming_each(f"{kind}.composing-cards.sum", SITES)
    for number in range(3):
        shares = [found[site][number] for site in SITES]
        lost = LOST[kind].get(number, len(SITES))
        assert min(shares[:lost], default=1.0) > 0.75
        assert max(shares[lost:], default=0.0) < 0.2


@pytest.mark.parametrize("kind", [kind for kind in LOST if kind != "none"])
def test_an_answer_takes_all_objects(kind: str) -> None:
    name = f"{kind}.composing-cards.sum"
    assert direct(name) < 0.5 * direct(base_of(CATALOGUE[name]))
    assert accuracy(name, "oracle") == accuracy(base_of(CATALOGUE[name]), "oracle") > 0.9
