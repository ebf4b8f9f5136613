"""Which repairs are planned of one loss and of several, whether all are needed, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments.locator import Decision
from seamscope.experiments.locator._evidence import Findings
from seamscope.experiments.locator._hand_over import Spot
from seamscope.experiments.locator._probed import of_object
from seamscope.experiments.locator._repairs import MENDS
from seamscope.experiments.locator._tried import BEHIND, KEEP, TOGETHER, _plans, all_needed, named, tried

from ._made_up import (
    EVER,
    GROUPS,
    LAYERS,
    PLACES,
    N,
    T,
    along,
    answered,
    found_in,
    held,
    needing,
    patched,
    read,
    swept,
)

RIGHT = np.arange(N) % 5 == 0  # one in five
FAILING = ~RIGHT
EVERY = np.ones(N, dtype=bool)
END = Spot(site=f"lm.{LAYERS - 1}.resid_post", reading=True)

UNSEEN = Decision(locus="not_encoded", place="vision.1.resid_post")
STOPPED = Decision(locus="lost_in_projector", place="projector.out")
GONE = Decision(locus="overwritten", place="lm.1.resid_post")
UNREAD = Decision(locus="not_routed")
LATE = Decision(locus="too_late", place="lm.3.resid_post", arrival=3, deadline=2)
UNUSED = Decision(locus="not_used", place="lm.1.resid_post", arrival=1, deadline=2)
# the last place before each loss, and the first behind it
AROUND = {
    UNSEEN: (Spot(site="vision.0.resid_post"), Spot(site="vision.1.resid_post")),
    STOPPED: (Spot(site="vision.1.resid_post"), Spot(site="projector.out")),
    GONE: (Spot(site="lm.0.resid_post"), Spot(site="lm.1.resid_post")),
    UNREAD: (END, END),  # below
    LATE: (END, Spot(site="lm.2.resid_post", reading=True)),
}
AROUND[UNREAD] = (Spot(site=f"lm.{LAYERS - 1}.resid_post"), END)
BEST = ("vision.0.resid_post", "projector.out", "lm.2.resid_post")  # where most of each object is named


def best(number: int) -> Spot:
    return Spot(site=BEST[number])


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Findings]:
    """Findings of three objects, each of which is named a little better at one place than elsewhere."""
    ways = [held(None, before=0.9) + 0.1 * (np.array(PLACES) == site) for site in BEST]
    tables = {
        "path": along(*ways),
        "reading": read(EVER, EVER, EVER),
        "needs": needing([1, 1, 1, 0]),
        "hold": swept("hold", [0.2, 0.8, 0.4, 0.1], control=0.1),
        "given": swept("cross", EVER),
    }
    return lambda **changes: found_in(monkeypatch, answered(RIGHT), **{**tables, **changes})


def spots(plans: Mapping[str, Any]) -> dict[str, tuple[Spot, ...]]:
    """One for all objects; or one for each that is followed, without that of all others."""
    return {name: plan.spots[:-1] if len(plan.spots) > 1 else plan.spots for name, plan in plans.items()}


# What is planned


@pytest.mark.parametrize("loss", AROUND, ids=lambda loss: loss.locus)
def test_a_loss_of_all_objects_is_repaired_for_all_at_once(make: Callable[..., Findings], loss: Decision) -> None:
    before, behind = AROUND[loss]
    found = _plans(make(), loss)
    assert spots(found) == {TOGETHER: (before,), BEHIND: (behind,)}
    assert f"told from {before.name}, before the loss" in found[TOGETHER].words
    assert f"told from {behind.name}, behind the loss" in found[BEHIND].words


def test_what_is_there_in_time_is_told_from_there_alone(make: Callable[..., Findings]) -> None:
    assert spots(_plans(make(), UNUSED)) == {TOGETHER: (Spot(site="lm.2.resid_post", reading=True),)}


def test_what_is_lost_at_the_first_place_is_told_from_no_place_before(make: Callable[..., Findings]) -> None:
    blind = replace(UNSEEN, place=PLACES[0])
    assert spots(_plans(make(), blind)) == {BEHIND: (Spot(site=PLACES[0]),)}
    assert _plans(make(), replace(blind, objects=(1,))) == {}
    assert _plans(make(), replace(GONE, objects=(0,), also=(replace(blind, objects=(1,)),))) == {}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("loss", AROUND, ids=lambda loss: loss.locus)
def test_a_loss_of_one_object_leaves_the_others_where_they_are_named_best(
    make: Callable[..., Findings], loss: Decision, number: int
) -> None:
    before, behind = AROUND[loss]
    found = spots(_plans(make(), replace(loss, objects=(number,))))
    assert list(found) == [TOGETHER, BEHIND]
    for name, spot in ((TOGETHER, before), (BEHIND, behind)):
        assert found[name] == tuple(spot if k == number else best(k) for k in range(3))


PAIRS = [(one, other) for one in AROUND for other in AROUND if one is not other]


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda loss: loss.locus)
def test_of_two_losses_both_are_repaired_and_each_alone_and_none(
    make: Callable[..., Findings], one: Decision, other: Decision
) -> None:
    (before, behind), (first, second) = AROUND[one], AROUND[other]
    found = _plans(make(), replace(one, objects=(0,), also=(replace(other, objects=(2,)),)))
    assert spots(found) == {
        TOGETHER: (before, best(1), first),
        "hand over object 0 alone": (before, best(1), second),
        "hand over object 2 alone": (behind, best(1), first),
        BEHIND: (behind, best(1), second),
    }
    assert "object 2 from before the loss, the others from behind it" in found["hand over object 2 alone"].words
    assert len({plan.words for plan in found.values()}) == 4


def test_several_objects_of_one_loss_are_repaired_together(make: Callable[..., Findings]) -> None:
    (before, behind), (first, second) = AROUND[GONE], AROUND[LATE]
    found = spots(_plans(make(), replace(GONE, objects=(0, 1), also=(replace(LATE, objects=(2,)),))))
    assert found["hand over objects 0, 1 alone"] == (before, before, second)
    assert found["hand over object 2 alone"] == (behind, behind, first)
    assert [named((4,)), named((0, 2))] == ["object 4", "objects 0, 2"]


def test_of_three_losses_each_is_repaired_alone(make: Callable[..., Findings]) -> None:
    three = replace(UNSEEN, objects=(1,), also=(replace(GONE, objects=(0,)), replace(LATE, objects=(2,))))
    found = spots(_plans(make(), three))
    assert list(found) == [TOGETHER, *(f"hand over object {k} alone" for k in (1, 0, 2)), BEHIND]
    around = {0: AROUND[GONE], 1: AROUND[UNSEEN], 2: AROUND[LATE]}
    for mended, name in (
        ({0, 1, 2}, TOGETHER),
        (set(), BEHIND),
        *(({k}, f"hand over object {k} alone") for k in range(3)),
    ):
        assert found[name] == tuple(around[k][0 if k in mended else 1] for k in range(3))


def test_an_object_that_no_probe_looks_for_is_told_from_where_all_are_named_best(make: Callable[..., Findings]) -> None:
    path = along(held(None, before=0.9) + 0.1 * (np.array(PLACES) == BEST[1]), held(None), held("lm.1.resid_post"))
    found = make(path=path[path.object != 1], reading=read(EVER, EVER, EVER))
    assert found.curves.objects == (0, 2)
    (before, _) = AROUND[GONE]
    assert spots(_plans(found, replace(GONE, objects=(2,))))[TOGETHER] == (best(1), best(1), before)


def test_objects_that_are_not_followed_are_told_from_where_all_are_named_best(make: Callable[..., Findings]) -> None:
    way = held(None, before=0.9) + 0.1 * (np.array(PLACES) == BEST[1])
    plans = _plans(make(path=along(way, way, way)), replace(GONE, objects=(2,)))
    assert {plan.spots[3:] for plan in plans.values()} == {(Spot(site=BEST[1]),)}


@pytest.mark.parametrize(
    ("loss", "fact", "site", "number"),
    [
        (GONE, "path", "lm.1.resid_post", PLACES.index("lm.1.resid_post")),
        (STOPPED, "path", "projector.out", PLACES.index("projector.out")),
        (LATE, "reading", "lm.2.resid_post", 2),
        (replace(LATE, deadline=0), "reading", "lm.0.resid_post", 0),
        (UNREAD, "reading", f"lm.{LAYERS - 1}.resid_post", LAYERS - 1),
    ],
)
def test_what_is_left_of_an_object_is_noted(
    make: Callable[..., Findings], loss: Decision, fact: str, site: str, number: int
) -> None:
    """On its way at the place of the loss; at the reading positions where text runs need it, or at the end."""
    found = make(path=along(held("lm.1.resid_post"), held(None), held(None)))
    of_object(found, 0, loss)
    note = found.notes[-1]
    assert (note.question, note.site) == ("Is object 0 there?", site)
    assert note.estimate == found.of_object(fact, 0)[0, number]
    assert note.low <= note.estimate <= note.high


# Whether all are needed

TWICE = replace(UNSEEN, objects=(0,), also=(replace(GONE, objects=(2,)),))
FIRST, SECOND = "hand over object 0 alone", "hand over object 2 alone"


def handing(**right: np.ndarray | float) -> Callable[..., pd.DataFrame]:
    """Which answers come right: together, by the first alone, by the second alone, and behind."""
    names = {"together": TOGETHER, "first": FIRST, "second": SECOND, "behind": BEHIND}
    told = {names[key]: np.broadcast_to(value, N).astype(bool) for key, value in right.items()}

    def handed(plans: Mapping[str, Any]) -> pd.DataFrame:
        assert all(isinstance(spot, Spot) for each in plans.values() for spot in each)
        rows = [pd.DataFrame({"name": name, "group": GROUPS, "right": told[name]}) for name in plans if name in told]
        return pd.concat(rows).assign(control=np.tile(np.arange(N) % 10 == 1, len(rows)))

    return handed


def first_of_failing(count: int) -> np.ndarray:
    return np.cumsum(FAILING) * FAILING <= count


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [(0, 0, True), (0.0, 1, False), (1, 0, False), (1, 1, False)],
)
def test_both_are_needed_if_neither_alone_does_as_much(
    make: Callable[..., Findings], first: float, second: float, wanted: bool
) -> None:
    found = make(handed=handing(together=1, first=first, second=second, behind=0))
    assert all_needed(found, TWICE) == wanted
    assert not all_needed(make(handed=handing(together=0, first=0, second=0, behind=0)), TWICE)


def test_as_many_more_as_chance_would_not_give(make: Callable[..., Findings]) -> None:
    """The interval of the difference, over items, has to leave out 0: a few answers of thirty-two do not do that."""
    needed = []
    for more in range(9):
        alone = FAILING & ~first_of_failing(more)
        found = make(handed=handing(together=1, first=alone, second=0, behind=0))
        needed.append(all_needed(found, TWICE))
        swapped = make(handed=handing(together=1, first=0, second=alone, behind=0))
        assert all_needed(swapped, TWICE) == needed[-1]
    assert needed == sorted(needed)
    assert not needed[1]
    assert needed[8]


def test_each_item_is_held_against_itself(make: Callable[..., Findings]) -> None:
    """Half come right by one, the other half by the other: shares are alike, and so is both together."""
    half = np.arange(N) % 2 == 0
    assert not all_needed(make(handed=handing(together=half, first=half, second=0, behind=0)), TWICE)
    assert not all_needed(make(handed=handing(together=half, first=~half, second=0, behind=0)), TWICE)
    assert all_needed(make(handed=handing(together=1, first=half, second=~half, behind=0)), TWICE)


def test_answers_that_did_not_fail_confirm_nothing(make: Callable[..., Findings]) -> None:
    assert not all_needed(make(handed=handing(together=RIGHT, first=0, second=0, behind=0)), TWICE)
    assert all_needed(make(handed=handing(together=FAILING, first=RIGHT, second=RIGHT, behind=1)), TWICE)


def test_one_loss_has_no_other_to_be_needed(make: Callable[..., Findings]) -> None:
    found = make(handed=handing(together=1, behind=0))
    assert not all_needed(found, replace(UNSEEN, objects=(0,)))
    assert not all_needed(found, UNSEEN)


def test_what_cannot_be_told_from_before_each_loss_is_not_confirmed(make: Callable[..., Findings]) -> None:
    """One is never there: nothing is handed over."""
    assert not all_needed(make(), replace(TWICE, place=PLACES[0]))


# What is told of them


def mended(_: Any) -> pd.DataFrame:
    """Bridging mends the first half; one answer was right with nothing written, though the direct run failed."""
    order, begun = np.arange(N), np.arange(N) == 1
    rows = {"bridge": order < N // 2, "earlier": order < 0, "reread": order >= 0}
    return pd.concat(
        pd.DataFrame({"name": name, "group": GROUPS, "right": right, "control": order % 4 == 1, "base_right": begun})
        for name, right in rows.items()
    )


def test_repairs_of_two_losses_are_told_with_the_named_one(make: Callable[..., Findings]) -> None:
    some = np.arange(N) % 4 > 0
    tables = {"handed": handing(together=1, first=some, second=0, behind=0), "repairs": mended}
    found = {each.name: each for each in tried(make(**tables), TWICE, T)}
    assert list(found) == [TOGETHER, FIRST, SECOND, BEHIND, "bridge", KEEP, "earlier", "reread"]
    assert [name for name, each in found.items() if each.named] == [TOGETHER]
    assert {each.mends for name, each in found.items() if name.startswith("hand over")} == {"not_encoded"}
    assert all(found[name].mends == MENDS[name] for name in ("bridge", KEEP, "earlier", "reread"))
    counted = {"bridge": FAILING & (np.arange(N) != 1)}
    for name, right in ((TOGETHER, EVERY), (FIRST, some), (SECOND, ~EVERY), ("bridge", np.arange(N) < N // 2)):
        rows = counted.get(name, FAILING)
        assert found[name].restored == pytest.approx(right[rows].mean())
        assert found[name].n == rows.sum()
        assert found[name].low <= found[name].restored <= found[name].high
    assert found[TOGETHER].control == pytest.approx((np.arange(N) % 10 == 1)[FAILING].mean())


def test_without_a_loss_nothing_is_tried(make: Callable[..., Findings]) -> None:
    for locus in ("none", "format", "text_skill", "cannot_tell"):
        found = make()
        assert tried(found, Decision(locus=locus), T) == ()
        assert found.asking.run == []  # type: ignore[attr-defined]


def test_what_cannot_be_told_from_before_is_repaired_in_place_alone(make: Callable[..., Findings]) -> None:
    blind = replace(UNSEEN, place=PLACES[0], objects=(0,))
    assert [each.name for each in tried(make(repairs=mended), blind, T)] == ["bridge", KEEP, "earlier", "reread"]


def test_keeping_is_tried_from_the_layer_of_the_loss_on(make: Callable[..., Findings]) -> None:
    """Where another loss is named: from the layer that does most on the other half of the items."""
    tables = {"handed": handing(together=1, first=0, second=0, behind=0), "repairs": mended}
    hold = pd.concat(
        patched(name, k, np.arange(N) < share)
        for name, shares in (("hold", (4, 30, 20, 8)), ("hold_control", (0, 4, 0, 0)))
        for k, share in enumerate(shares)
    )
    found = {
        loss.locus: {each.name: each for each in tried(make(**tables, hold=hold), loss, T)}[KEEP]
        for loss in (replace(GONE, place="lm.2.resid_post", objects=(0,)), replace(LATE, objects=(0,)))
    }
    assert found["overwritten"].restored == pytest.approx(FAILING[:20].sum() / FAILING.sum())
    assert found["overwritten"].named
    assert found["too_late"].restored == pytest.approx(FAILING[:30].sum() / FAILING.sum())
    assert found["too_late"].control == pytest.approx(FAILING[:4].sum() / FAILING.sum())
    assert not found["too_late"].named
