"""What is said in the end: what resamples agree on, and a second loss if repairs confirm it; and in which words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments import LOCI, Run, Settings, Study, Verdict
from seamscope.experiments._verdict import Loss
from seamscope.experiments.locator import Decision, Thresholds, _locate, locate
from seamscope.experiments.locator._decide import ENOUGH
from seamscope.experiments.locator._locate import RARE, _decided, _summary, _told, _unseen

from ._made_up import (
    EVER,
    GROUPS,
    NEVER,
    PLACES,
    N,
    T,
    Tables,
    along,
    answered,
    found_in,
    held,
    needing,
    read,
    swept,
)

RIGHT = np.arange(N) % 5 == 0  # one in five


def test_resamples_of_a_clear_case_agree_and_ask_for_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_in(monkeypatch, answered(RIGHT), path=along(held("projector.out")))
    first, others = _decided(found, T)
    assert (first.locus, first.place) == ("lost_in_projector", "projector.out")
    assert len(others) == 200
    assert {(each.locus, each.place) for each in others} == {("lost_in_projector", "projector.out")}
    assert set(found.asking.run) == {"path"}  # type: ignore[attr-defined]


def test_resamples_ask_for_what_many_of_them_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is just too small for the sample; for half of its resamples it is not."""
    right = np.arange(N) >= round(T.loss * N) - 1
    found = found_in(monkeypatch, answered(right), path=along(held("projector.out")))
    first, others = _decided(found, T)
    assert first.locus == "none"
    loss = found.of("loss")[1:]
    wanted = np.where(loss < T.loss, "none", "lost_in_projector")
    assert [each.locus for each in others] == wanted.tolist()
    assert 0.1 < (loss < T.loss).mean() < 0.9


def test_what_few_resamples_need_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    right = np.arange(N) >= 3
    found = found_in(monkeypatch, answered(right), path=along(held(None)))
    rare = (found.of("loss")[1:] >= T.loss).mean()
    assert 0 < rare < RARE
    first, others = _decided(found, T)
    assert first.locus == "none"
    assert found.asking.run == []  # type: ignore[attr-defined]
    assert sum(each.locus == "cannot_tell" for each in others) == round(200 * rare)


def test_resamples_that_differ_in_a_second_loss_ask_for_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second object is named by so many that it parts from the first in half of the resamples."""
    share = np.where(np.arange(N) < round(N * (1 - T.apart)), 1.0, 0.0)
    path = along(*([held(None)[:, None] + np.zeros(N)] * 2))
    fades = (path.object == 1) & (path.site == "lm.3.resid_post") & (path.condition == "direct")
    path.loc[fades, "named"] = 0.2 + 0.8 * share
    tables = {"path": path, "reading": read(EVER, EVER), "needs": needing([1, 1, 1, 0]), "hold": swept("hold", EVER)}
    found = found_in(monkeypatch, answered(RIGHT), **tables)
    _, others = _decided(found, T)
    parted = 1 - found.of_object("path", 1)[1:, -1] >= T.apart
    assert 0.3 < parted.mean() < 0.7
    assert [each.objects for each in others] == [(1,) if part else () for part in parted]
    assert {each.locus for each, part in zip(others, parted, strict=True) if part} == {"overwritten"}
    assert {each.locus for each, part in zip(others, parted, strict=True) if not part} == {"not_used"}


# What is told of a decision and those on resamples

ONE = Decision(locus="not_encoded", place="vision.1.resid_post", objects=(0,))
OTHER = Decision(locus="overwritten", place="lm.1.resid_post", objects=(2,))
BOTH = replace(ONE, also=(OTHER,))
GONE = Loss(locus=OTHER.locus, place=OTHER.place, objects=OTHER.objects)
NOT_USED = Decision(locus="not_used", place="lm.2.resid_post", arrival=2, deadline=2)


def mixed(n: int = 1000, **counts: int) -> list[Decision]:
    """So many resamples of each kind; the rest find both losses."""
    kinds = {"one": ONE, "other": OTHER, "unused": NOT_USED}
    found = [kinds[name] for name, count in counts.items() for _ in range(count)]
    return [*found, *[BOTH] * (n - len(found))]


def test_both_losses_are_told_where_most_resamples_find_them() -> None:
    assert _told(BOTH, mixed(), T) == (BOTH, 1.0)
    assert _told(BOTH, mixed(one=400), T) == (BOTH, 0.6)
    assert _told(BOTH, mixed(one=500), T) == (BOTH, T.most)
    assert _told(BOTH, mixed(one=501), T) == (ONE, 1.0)


def test_resamples_that_disagree_about_the_second_keep_the_first() -> None:
    """Its objects, too; and it is as sure as those that find it, whatever they say of the second."""
    third = replace(ONE, also=(Decision(locus="too_late", objects=(2,)),))
    assert _told(BOTH, [*mixed(400, one=100), *[third] * 600], T) == (ONE, 1.0)
    assert _told(BOTH, [*mixed(400, other=100), *[third] * 600], T) == (ONE, 0.9)
    assert _told(ONE, mixed(), T) == (ONE, 1.0)  # the sample has no second one


def test_a_second_loss_is_another_than_the_first() -> None:
    """Which is found first matters; where both are, and of which objects, does not."""
    reverse = replace(OTHER, also=(ONE,))
    assert _told(BOTH, [reverse] * 600 + [BOTH] * 400, T)[0].locus == "cannot_tell"
    moved = Decision(locus="not_encoded", place="vision.0.resid_post", objects=BOTH.objects, also=(OTHER,))
    assert _told(BOTH, [moved] * 1000, T) == (BOTH, 1.0)


def test_a_loss_is_said_of_some_objects_if_most_resamples_name_them() -> None:
    others = replace(ONE, objects=(1,))
    assert _told(ONE, [ONE] * 500 + [others] * 500, T) == (ONE, 1.0)
    assert _told(ONE, [ONE] * 499 + [others] * 501, T) == (replace(ONE, objects=()), 1.0)
    assert _told(BOTH, [replace(BOTH, objects=())] * 1000, T) == (replace(BOTH, objects=(), also=()), 1.0)


@pytest.mark.parametrize("first", [ONE, NOT_USED, Decision(locus="none")])
def test_nothing_is_told_on_which_resamples_disagree(first: Decision) -> None:
    """From both sides of what counts as sure."""
    limit = round(T.sure * 1000)
    for agree, sure in ((limit - 1, False), (limit, True), (limit + 1, True)):
        others = [first] * agree + [OTHER] * (1000 - agree)
        told, share = _told(first, others, T)
        assert share == agree / 1000
        assert told == first if sure else (told.locus, told.place, told.objects) == ("cannot_tell", None, ())
        assert bool(told.reason) != sure
    told, _ = _told(first, [first] * 500 + [OTHER] * 300 + [BOTH] * 200, T)
    assert f"{first.locus} in {70 if first is ONE else 50} %, overwritten in 30 %" in told.reason
    assert _told(first, [first] * 500 + [OTHER] * 500, Thresholds(sure=0.5))[0] == first


def test_what_cannot_be_told_stays_so_however_sure() -> None:
    unknown = Decision(locus="cannot_tell", reason="probes fail")
    assert _told(unknown, [unknown] * 300 + [ONE] * 700, T) == (unknown, 0.3)


# In words


def test_all_losses_are_said_of_their_objects() -> None:
    late = Decision(locus="too_late", place="lm.3.resid_post", arrival=3, deadline=2, objects=(1, 3))
    unread = Decision(locus="not_routed", objects=(4,))
    text = _summary(replace(ONE, also=(late, unread)))
    assert text == (
        f"Of object 0: {LOCI['not_encoded']}, at vision.1.resid_post. "
        f"Of objects 1, 3: {LOCI['too_late']}, at lm.3.resid_post. "
        f"Of object 4: {LOCI['not_routed']}."
    )
    assert _summary(ONE) == f"Of object 0: {LOCI['not_encoded']}, at vision.1.resid_post."


def test_a_loss_of_all_objects_is_said_of_none() -> None:
    assert "object" not in _summary(Decision(locus="overwritten", place="lm.1.resid_post"))
    assert _summary(Decision(locus="overwritten", place="lm.1.resid_post")).endswith(
        "at lm.1.resid_post it can no longer be read."
    )
    unseen = Decision(locus="not_encoded", place=PLACES[0])
    assert _summary(unseen, nowhere=True).endswith("it is read nowhere.")
    assert "from layer 2 on; text runs need it by layer 2" in _summary(NOT_USED)
    assert _summary(Decision(locus="cannot_tell", reason="why")).endswith("the classes: why.")
    for locus in ("none", "not_routed", "text_skill"):
        assert _summary(Decision(locus=locus)).lower() == f"{LOCI[locus]}.".lower()


# The whole of it, on made-up tables

TWICE = {
    "path": along(held("vision.1.resid_post"), held(None), held("lm.1.resid_post")),
    "reading": read(NEVER, EVER, NEVER),
    "needs": needing([1, 1, 1, 0]),
    "hold": swept("hold", NEVER),
    "given": swept("cross", EVER),
}
TOGETHER, FIRST, SECOND, BEHIND = (
    *("hand over before", "hand over object 0 alone", "hand over object 2 alone", "hand over behind"),
)
PLANNED = {TOGETHER: 0.9, FIRST: 0.1, SECOND: 0.1, BEHIND: 0.0}


def handing(shares: Mapping[str, float]) -> Callable[..., pd.DataFrame]:
    """So many of the answers come right by each plan; nothing does with the partner's states."""

    def handed(plans: Mapping[str, Any]) -> pd.DataFrame:
        order = (np.arange(N) % 20 + 0.5) / 20  # failed answers are among them as often as others
        return pd.concat(
            pd.DataFrame({"name": name, "group": GROUPS, "right": order < shares[name], "control": False})
            for name in plans
        )

    return handed


def repairing(_: Any) -> pd.DataFrame:
    return pd.DataFrame({"name": "bridge", "group": GROUPS, "right": True, "control": False, "base_right": False})


def located(monkeypatch: pytest.MonkeyPatch, shares: Mapping[str, float], **changes: pd.DataFrame) -> Verdict:
    monkeypatch.setattr("seamscope.experiments.locator._items.RESAMPLES", 200)
    tables = Tables(answered(RIGHT), **{**TWICE, **changes}, handed=handing(shares), repairs=repairing)
    monkeypatch.setattr(_locate, "Asking", lambda study, there: tables)
    gap = pd.DataFrame(columns=["task", "condition", "subset"])
    settings, task = SimpleNamespace(model="one of ours", seed=0), SimpleNamespace(name="a task")
    return locate(SimpleNamespace(task=task, settings=settings, gap=gap))  # type: ignore[arg-type]


def test_two_losses_that_both_have_to_be_repaired_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = located(monkeypatch, PLANNED)
    assert (verdict.locus, verdict.place, verdict.also) == ("not_encoded", "vision.1.resid_post", (GONE,))
    assert (verdict.layer, verdict.interval, verdict.confidence) == (1, (1, 1), 1.0)
    assert verdict.summary.startswith("Of object 0: ")
    assert "Of object 2: " in verdict.summary
    repairs = {each.name: each for each in verdict.repairs}
    assert [each.name for each in verdict.repairs] == [*PLANNED, "bridge", "keep"]
    assert [name for name, each in repairs.items() if each.named] == [TOGETHER]
    for name, share in PLANNED.items():
        assert repairs[name].restored == pytest.approx(share, abs=0.06)
        assert repairs[name].n == (~RIGHT).sum()
    assert verdict.spent["answers"] == 3 * N + 2 * 4 * N


@pytest.mark.parametrize("enough", [FIRST, SECOND])
def test_a_second_loss_that_need_not_be_repaired_is_not_told(monkeypatch: pytest.MonkeyPatch, enough: str) -> None:
    verdict = located(monkeypatch, {**PLANNED, enough: PLANNED[TOGETHER]})
    assert (verdict.locus, verdict.place, verdict.also) == ("not_encoded", "vision.1.resid_post", ())
    first, _, second = verdict.summary.partition(" Also suspected, and not confirmed by repairs: ")
    assert first == f"Of object 0: {LOCI['not_encoded']}, at vision.1.resid_post."
    assert second == "overwritten of object 2."
    assert [each.name for each in verdict.repairs][:2] == [TOGETHER, BEHIND]
    assert not any(each.name.endswith("alone") for each in verdict.repairs)


@pytest.mark.parametrize(("rest", "locus", "sure"), [(ONE, "not_encoded", 1.0), (OTHER, "cannot_tell", 0.6)])
def test_without_the_second_loss_the_first_is_as_sure_as_by_itself(
    monkeypatch: pytest.MonkeyPatch, rest: Decision, locus: str, sure: float
) -> None:
    monkeypatch.setattr(_locate, "_decided", lambda *_: (BOTH, [BOTH] * 60 + [rest] * 40))
    verdict = located(monkeypatch, {**PLANNED, FIRST: PLANNED[TOGETHER]})
    assert (verdict.locus, verdict.also, verdict.confidence) == (locus, (), sure)
    both = located(monkeypatch, PLANNED)  # negative control: repairs confirm it
    assert (both.locus, both.also, both.confidence) == ("not_encoded", (GONE,), 0.6)


def test_one_loss_needs_no_confirmation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the last object is not lost, and repairs are asked for once only."""
    changes = {"path": along(held("vision.1.resid_post"), held(None), held(None)), "reading": read(NEVER, EVER, EVER)}
    verdict = located(monkeypatch, PLANNED, **changes)
    assert (verdict.locus, verdict.also) == ("not_encoded", ())
    assert [each.name for each in verdict.repairs][:2] == [TOGETHER, BEHIND]
    assert verdict.spent["answers"] == 3 * N + 2 * 2 * N


def test_at_the_reading_positions_the_route_is_cut_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decided by it: it stands beside the class."""
    cut = pd.DataFrame({"experiment": ["severed", "severed_control"], "difference": [1.0, 2.5]})
    severed = pd.DataFrame({"group": GROUPS, "base_difference": 3.0}).merge(cut, how="cross")
    seen = {"path": along(held(None)), "reading": read(EVER), "form": read(EVER), "severed": severed}
    verdict = located(monkeypatch, {"hand over before": 0.9, "hand over behind": 0.9}, **seen)
    assert verdict.locus == "not_used"
    (row,) = (each for each in verdict.evidence if "cutting the route" in each.question)
    assert (row.estimate, row.control) == (pytest.approx(1.5), pytest.approx(0.5))
    assert not any("the gap" in each.question for each in verdict.evidence)  # no item passes both steps


def test_of_a_healthy_model_only_the_answers_are_asked(tmp_path: Path) -> None:
    settings = Settings(model="fault:none.small-counting", task="counting", n=30)
    verdict = locate(Study(Run(tmp_path / "run", settings)))
    assert (verdict.locus, verdict.place, verdict.layer) == ("none", None, None)
    assert verdict.spent["answers"] == 30 * 4
    assert verdict.spent["probed_cells"] == verdict.spent["patched_runs"] == 0
    assert verdict.repairs == ()
    survives = verdict.evidence[0]
    assert survives.question.startswith("Does the gap survive")
    assert (survives.estimate, survives.low) == (verdict.gap["passing"], verdict.gap["passing_low"])
    assert {file.name for file in (tmp_path / "run").glob("*.csv")} <= {"answers.counting.csv", "gap.csv"}
    assert verdict.confidence >= T.sure
    again = locate(Study(Run(tmp_path / "run", settings)))
    assert json.dumps(again.to_json()) == json.dumps(verdict.to_json())
    assert locate(Study(Run(tmp_path / "run", settings)), thresholds=Thresholds(skill=1.01)).locus == "text_skill"


@pytest.mark.parametrize(
    ("locus", "pairs", "told"),
    [
        ("not_used", [ENOUGH, ENOUGH], None),
        ("not_used", [ENOUGH - 1], None),
        ("not_encoded", [3, 3], None),
        ("not_used", [ENOUGH, 7], "nothing is known of object 1 alone"),
        ("not_routed", [7, 40, 9], "nothing is known of objects 0, 2 alone"),
        ("too_late", [7, 9], f"it takes {ENOUGH} items whose partner has another object there, and there are 7;"),
    ],
)
def test_what_too_few_items_leave_open_may_overturn_it(locus: str, pairs: list[int], told: str | None) -> None:
    curves = SimpleNamespace(objects=tuple(range(len(pairs))), pairs=pairs.__getitem__)
    found = _unseen(SimpleNamespace(curves=curves), Decision(locus=locus))  # type: ignore[arg-type]
    assert [told in each for each in found] == ([] if told is None else [True])
