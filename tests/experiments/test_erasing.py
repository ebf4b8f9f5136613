"""Erasing and pushing on the organism: ranks decide its answers, suits do not, and late image tokens do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from seamscope.experiments._erasing import erase_sweep, push_sweep
from seamscope.experiments._erasing_effects import (
    WARNING,
    decodable_and_causal,
    summarise_erasing,
    summarise_pushes,
)
from seamscope.experiments._halves import Place, Run, Sample
from seamscope.experiments.tasks import Item, get
from seamscope.hooks import Batch, Patch, RunError, SiteError, SpanError, TaskError, Vlm, capture, patch

TASK = get("cards.sum")
ITEMS = TASK.items(60)
RANKS = [f"card.{k}.rank" for k in range(3)]
SUITS = ["card.1.suit", "card.2.suit"]
FIRST, LAST = "lm.0.resid_post", "lm.7.resid_post"


def together(table: pd.DataFrame) -> pd.DataFrame:
    """The variables of one kind as one cell."""
    return table.assign(variable=table.variable.str[-4:], span="objects")


@pytest.fixture(scope="module")
def erased(composing: Vlm) -> pd.DataFrame:
    first = erase_sweep(composing, TASK, ITEMS, variables=[*RANKS[1:], *SUITS], sites=[FIRST], spans=["objects"])
    last = erase_sweep(composing, TASK, ITEMS, variables=RANKS[2:], sites=[LAST], spans=["objects"])
    return pd.concat([first, last], ignore_index=True)


@pytest.fixture(scope="module")
def effects(erased: pd.DataFrame) -> pd.DataFrame:
    return summarise_erasing(together(erased)).set_index(["site", "variable"])


@pytest.fixture(scope="module")
def pushed(composing: Vlm) -> pd.DataFrame:
    return push_sweep(composing, TASK, ITEMS, variables=RANKS[1:], sites=[FIRST, LAST], spans=["objects"])


def test_erasing_ranks_costs_answers_and_a_random_subspace_does_not(effects: pd.DataFrame) -> None:
    found = effects.loc[FIRST, "rank"]
    assert found.effect_high < 0
    assert found.difference_high < -0.2
    assert found.random_effect > -0.9
    assert found.lost > found.random_lost + 0.15
    assert found.q < 0.01


def test_the_control_has_the_rank_of_the_erasure_not_its_size(effects: pd.DataFrame) -> None:
    found = effects.loc[FIRST, "rank"]
    assert 0 < found.random_changed < found.changed < 1


def test_erasing_ranks_is_seen_by_probes_and_a_random_subspace_is_not(effects: pd.DataFrame) -> None:
    found = effects.loc[FIRST, "rank"]
    assert found.read_before > 0.75
    assert found.read_random > 0.65
    assert found.read_after < found.chance + 0.15
    assert found.read_anew < found.read_before - 0.3


def test_suits_are_there_and_not_used(effects: pd.DataFrame) -> None:
    """A sum does not depend on them: what is decodable need not be causal."""
    found = effects.loc[FIRST, "suit"]
    assert found.read_before > 0.7
    assert found.read_after < found.read_before - 0.2
    assert found.effect > -0.15
    assert found.difference_high > 0
    assert found.q > 0.05


class Shuffled(type(TASK)):  # type: ignore[misc]
    """The task with the labels of other items and their partners, which mean nothing."""

    def __init__(self, items: Sequence[Item], seed: int) -> None:
        order = np.random.default_rng(seed).permutation(len(items))
        self._named = {item.id: items[number] for item, number in zip(items, order, strict=True)}
        self.shuffled = [replace(item, variables=self._named[item.id].variables) for item in items]

    def partner(self, item: Item) -> Item:
        return replace(super().partner(item), variables=super().partner(self._named[item.id]).variables)


def test_erasing_a_label_that_means_nothing_costs_no_more_than_the_control(composing: Vlm) -> None:
    """Were each token given random numbers of its own, the control would cost less."""
    task = Shuffled(ITEMS, seed=2)
    how = {"variables": RANKS[1:], "sites": [FIRST], "spans": ["objects"], "seed": 2}
    found = summarise_erasing(together(erase_sweep(composing, task, task.shuffled, **how))).iloc[0]
    assert found.read_before < found.chance + 0.1
    assert found.effect_high < 0
    assert found.difference_high > 0.1
    assert found.q > 0.05


def test_after_the_last_layer_nothing_is_read_from_objects(erased: pd.DataFrame, pushed: pd.DataFrame) -> None:
    for table, before, after in (
        (erased, "base", ("erased", "random")),
        (pushed, "own", ("own_pushed", "own_random")),
        (pushed, "partner", ("partner_pushed", "partner_random")),
    ):
        last = table[table.site == LAST]
        assert len(last)
        for name in after:
            assert (last[name] == last[before]).all()
            assert (last[f"{name}_right"] == last[f"{before}_right"]).all()


def test_in_text_runs_the_words_of_an_object_count(organism: Vlm) -> None:
    table = erase_sweep(
        organism,
        TASK,
        TASK.items(100),
        variables=["card.2.rank", "card.2.suit"],
        sites=["lm.embed", LAST],
        spans=["objects"],
        conditions=["oracle"],
    )
    assert set(table.span) == {"intermediate.2"}
    found = summarise_erasing(table).set_index(["site", "variable"])
    assert found.loc[("lm.embed", "card.2.rank"), "difference_high"] < -1
    assert found.loc[("lm.embed", "card.2.suit"), "effect"] > -0.2
    assert found.loc[(LAST, "card.2.rank"), "effect"] == 0


def test_one_row_for_each_item_and_cell(erased: pd.DataFrame) -> None:
    assert len(erased) == 60 * 5
    assert not erased.duplicated(["id", "site", "span", "variable"]).any()
    assert (erased.span == "image.object." + erased.variable.str[5]).all()
    assert (erased.layer == erased.site.str[3].astype(int)).all()
    assert (erased.n_left_out == 0).all()
    suits = erased[erased.variable.str.endswith("suit")]
    assert (suits["rank"] == 3).all()
    assert erased["rank"].max() <= 12


def other_half(items: Sequence[Item], of: Item, seed: int) -> list[Item]:
    """Items that what is erased from one is learnt on, by the rule: groups in random order, dealt out."""
    groups = sorted(item.group for item in items)
    place = dict(zip(groups, np.random.default_rng(seed).permutation(len(groups)), strict=True))
    return [item for item in items if (place[item.group] - place[of.group]) % 2]


def rows_of(vlm: Vlm, items: Sequence[Item], site: str, span: str) -> list[torch.Tensor]:
    """Every item's tokens, each run alone."""
    found = []
    for item in items:
        with capture(vlm, site, spans=span) as acts:
            vlm.score(vlm.encode([item], condition="direct", answers=[item.answer]))
        found.append(acts[site, span].values.double())
    return found


def test_one_erasure_by_hand(composing: Vlm) -> None:
    """With the package's eraser on standardised tokens, one item at a time."""
    from concept_erasure import LeaceFitter  # torch warns where it is imported first

    items, site, span, variable = ITEMS[:12], "lm.1.resid_post", "image.object.1", "card.1.suit"
    item = items[5]
    taught = [each for one in other_half(items, item, 3) for each in (one, TASK.partner(one))]
    tokens = rows_of(composing, taught, site, span)
    X = torch.cat(tokens)
    names = sorted({each.variables[variable] for each in taught})
    codes = torch.tensor([names.index(each.variables[variable]) for each in taught])
    Z = torch.nn.functional.one_hot(codes.repeat_interleave(torch.tensor([len(each) for each in tokens]))).double()
    mean, spread = X.mean(0), X.std(0, correction=0)
    eraser = LeaceFitter.fit((X - mean) / spread, Z, svd_tol=1e-6).eraser

    def by_hand(there: torch.Tensor) -> torch.Tensor:
        return (eraser((there.double() - mean) / spread) * spread + mean).to(there)

    batch = composing.encode([item], condition="direct", answers=[item.answer])
    with patch(composing, Patch(site, by_hand, span=span)):
        expected = composing.score(batch)
    table = erase_sweep(composing, TASK, items, variables=[variable], sites=[site], spans=["objects"], seed=3)
    (row,) = table[table.id == item.id].to_dict("records")
    assert row["erased"] == pytest.approx(float(expected.logprob), abs=1e-4)
    assert row["base"] == pytest.approx(float(composing.score(batch).logprob), abs=1e-4)
    assert abs(row["erased"] - row["base"]) > 1e-3
    whole = [*other_half(items, item, 3)]
    mine = torch.cat(rows_of(composing, [each for each in items if each not in whole], site, span)).numpy()
    moved = by_hand(torch.from_numpy(mine)).numpy() - mine
    assert row["changed"] == pytest.approx((moved**2).sum() / ((mine - mine.mean(0)) ** 2).sum(), rel=1e-4)
    assert 0 < row["random_changed"] != row["changed"]


def test_one_push_by_hand(composing: Vlm) -> None:
    site, how = FIRST, {"variables": ["card.2.rank"], "spans": ["objects"], "strength": 1.5}
    table = push_sweep(composing, TASK, ITEMS[:30], sites=[site], **how)
    row = table.iloc[0]
    item = next(each for each in ITEMS if each.id == row.id)
    partner = TASK.partner(item)
    taught = [each for one in other_half(ITEMS[:30], item, 0) for each in (one, TASK.partner(one))]
    tokens = rows_of(composing, taught, site, "image.object.2")
    ranks = [each.variables["card.2.rank"] for each in taught]
    start, end = (
        torch.cat([each for each, rank in zip(tokens, ranks, strict=True) if rank == who.variables["card.2.rank"]])
        for who in (item, partner)
    )
    shift = 1.5 * (end.mean(0) - start.mean(0))
    batch = composing.encode([item, item], condition="direct", answers=[item.answer, partner.answer])
    with patch(composing, Patch(site, lambda there: (there + shift).to(there), span="image.object.2")):
        own, other = composing.score(batch).logprob.tolist()
    assert (row.own_pushed, row.partner_pushed) == pytest.approx((own, other), abs=1e-3)
    assert (row.own, row.partner) == pytest.approx(composing.score(batch).logprob.tolist(), abs=1e-3)
    assert row.strength == 1.5


def test_what_is_erased_from_an_item_was_not_learnt_on_its_group(composing: Vlm) -> None:
    """A wrong label changes nothing for the half that it is in, and something for the other."""
    wrong = replace(ITEMS[3], variables={**ITEMS[3].variables, "card.1.suit": "S", "card.1.rank": "9"})
    assert wrong.variables["card.1.rank"] != ITEMS[3].variables["card.1.rank"]
    items, how = ITEMS[:20], {"variables": ["card.1.rank"], "sites": [FIRST], "spans": ["objects"]}
    right = erase_sweep(composing, TASK, items, **how)
    told = erase_sweep(composing, TASK, [wrong if item.id == wrong.id else item for item in items], **how)
    others = {item.id for item in other_half(items, wrong, 0)}
    same = ~right.id.isin(others)
    assert same.sum() == 10
    assert (right.erased == told.erased)[same].all()
    assert (right.erased != told.erased)[~same].all()


def test_a_group_is_in_one_half(composing: Vlm) -> None:
    items = [replace(item, group=f"g{k // 2}") for k, item in enumerate(ITEMS[:24])]
    sample = Sample(composing, Paired(), items, seed=1)
    dealt = pd.Series(sample.dealt).groupby([item.group for item in sample.members])
    assert (dealt.nunique() == 1).all()
    assert np.bincount(sample.dealt).tolist() == [4] * 12
    assert (sample.half == sample.dealt % 2).all()
    again = Sample(composing, Paired(), items[::-1], seed=1)
    assert {member.id: hand for member, hand in zip(again.members, again.dealt, strict=True)} == {
        member.id: hand for member, hand in zip(sample.members, sample.dealt, strict=True)
    }


def test_a_picture_is_in_one_half(composing: Vlm) -> None:
    """Items of other groups with the same picture are halved together, in whatever order they come."""
    twins = [replace(item, image=ITEMS[k % 12].image) for k, item in enumerate(ITEMS[:24])]
    sample, apart = (Sample(composing, Paired(), items, seed=1) for items in (twins, ITEMS[:24]))
    assert (sample.half[:12] == sample.half[12:24]).all()
    assert (sample.dealt[:24] == sample.dealt[24:]).all()
    assert sample.groups[:12].tolist() == [min(ITEMS[k].group, ITEMS[k + 12].group) for k in range(12)]
    assert np.bincount(sample.dealt).tolist() == [4] * 12
    assert (apart.half[:12] != apart.half[12:24]).any()
    again = Sample(composing, Paired(), twins[::-1], seed=1)
    assert again.dealt[:24][::-1].tolist() == sample.dealt[:24].tolist()


def test_what_shares_a_picture_is_one_group_of_an_interval(composing: Vlm) -> None:
    twins = [replace(item, image=ITEMS[k % 6].image) for k, item in enumerate(ITEMS[:12])]
    table = erase_sweep(composing, TASK, twins, variables=["card.1.suit"], sites=[LAST], spans=["objects"])
    assert table.group.nunique() == 6
    assert set(table.group) < {item.group for item in twins}
    with pytest.raises(RunError, match=r"items of 1 group cannot be halved; .* share no picture"):
        Sample(composing, TASK, [replace(item, image=ITEMS[0].image) for item in twins], seed=0)


class Paired(type(TASK)):  # type: ignore[misc]
    """The task, with partners in their items' groups, whatever these are called."""

    def partner(self, item: Item) -> Item:
        return replace(super().partner(item), group=item.group)


def test_batches_do_not_matter(composing: Vlm) -> None:
    how = {"variables": ["card.2.rank"], "sites": ["lm.1.resid_post"], "spans": ["objects", "reading"]}
    for measure in (erase_sweep, push_sweep):
        whole, pieces = (measure(composing, TASK, ITEMS[:20], batch_size=size, **how) for size in (64, 7))
        pd.testing.assert_frame_equal(whole, pieces, rtol=1e-4, atol=1e-4)


def test_pushing_ranks_brings_the_partners_answer_nearer(pushed: pd.DataFrame) -> None:
    found = summarise_pushes(together(pushed)).set_index("site").loc[FIRST]
    assert found.effect_low > 0.5
    assert found.difference_low > 0.5
    assert found.own_difference_high < 0
    assert abs(found.random_effect) < 1
    assert found.read_before > 0.9
    assert found.read_after > 0.9


def test_items_whose_partner_has_the_same_label_are_counted(pushed: pd.DataFrame) -> None:
    for variable, table in pushed[pushed.site == FIRST].groupby("variable"):
        expected = set()
        for item in ITEMS:
            taught = [each for one in other_half(ITEMS, item, 0) for each in (one, TASK.partner(one))]
            pair = {each.variables[variable] for each in (item, TASK.partner(item))}
            if len(pair) == 2 and pair <= {each.variables[variable] for each in taught}:
                expected.add(item.id)
        assert set(table.id) == expected
        assert (table.n_left_out == 60 - len(table)).all()


def test_no_push_changes_nothing(composing: Vlm) -> None:
    how = {"variables": ["card.1.rank"], "sites": [FIRST, "projector.out"], "spans": ["objects"]}
    table = push_sweep(composing, TASK, ITEMS[:20], strength=0.0, **how)
    assert set(table.site) == {FIRST, "projector.out"}
    assert (table.own_pushed == table.own).all()
    assert (table.partner_random == table.partner).all()


def test_a_token_of_two_spans_is_pushed_once(composing: Vlm) -> None:
    """All of the question is in the prompt."""
    how = {"variables": ["card.1.rank"], "sites": [FIRST]}
    both, one = (
        push_sweep(composing, TASK, ITEMS[:20], spans=[spans], **how) for spans in ("prompt+question", "prompt")
    )
    assert set(both.span) == {"prompt+question"}
    np.testing.assert_allclose(both.own_pushed, one.own_pushed, rtol=1e-5, atol=1e-5)
    assert (abs(one.own_pushed - one.own) > 1e-3).any()


def test_owners_of_tokens() -> None:
    rows = ({"question": torch.tensor([3, 4]), "last": torch.tensor([4])}, {"last": torch.tensor([5, 6])})
    batch = Batch(
        inputs={}, extra={}, spans=rows, ids=("a", "b"), texts=("", ""), condition="direct", padding="left", visual=None
    )
    run = Run(batch=batch, members=[7, 2], acts={}, logprob=torch.zeros(2), right=torch.zeros(2))
    place = Place.of("direct", FIRST, "reading", "sum")
    assert place is not None
    assert {span: owner.tolist() for span, owner in run.owners(place).items()} == {
        "question": [7, 7],
        "last": [-1, 2, 2],
    }


def test_sites_of_the_tower_and_of_heads(composing: Vlm) -> None:
    sites = ["vision.3.resid_post", "projector.out", "lm.0.head_z"]
    table = erase_sweep(composing, TASK, ITEMS[:20], variables=["card.0.rank"], sites=sites, spans=["objects", "last"])
    cells = table[["site", "span"]].drop_duplicates().to_numpy().tolist()
    tower = [[site, "image.object.0"] for site in sites[:2]]
    assert cells == [*tower, ["lm.0.head_z", "image.object.0"], ["lm.0.head_z", "last"]]
    assert (table.erased != table.base).groupby([table.site, table.span]).any().all()
    assert table.layer.isna().tolist() == (table.site == "projector.out").tolist()


def test_an_item_without_a_label_is_left_out(composing: Vlm) -> None:
    bare = replace(ITEMS[2], variables={"card.1.rank": ITEMS[2].variables["card.1.rank"]})
    items = [bare if item.id == bare.id else item for item in ITEMS[:20]]
    table = erase_sweep(composing, TASK, items, variables=["card.0.suit"], sites=[FIRST], spans=["objects"])
    assert set(table.id) == {item.id for item in items} - {bare.id}
    assert (table.n_left_out == 1).all()


@pytest.mark.parametrize(
    ("condition", "site", "span_set", "variable", "spans"),
    [
        ("direct", FIRST, "objects", "card.1.rank", ("image.object.1",)),
        ("oracle", FIRST, "objects", "card.1.rank", ("intermediate.1",)),
        ("direct", "projector.out", "objects", "card.1.rank", ("image.object.1",)),
        ("oracle", "projector.out", "objects", "card.1.rank", None),
        ("direct", "vision.0.resid_post", "last", "card.1.rank", None),
        ("direct", FIRST, "objects", "sum", None),
        ("direct", FIRST, "objects+reading", "sum", None),
        ("direct", FIRST, "reading", "sum", ("question", "last", "answer")),
        ("direct", FIRST, "objects+last", "card.0.suit", ("image.object.0", "last")),
        ("direct", FIRST, "image.object.0", "card.1.rank", ("image.object.0",)),
    ],
)
def test_the_spans_of_a_variable(
    condition: str, site: str, span_set: str, variable: str, spans: tuple[str, ...] | None
) -> None:
    place = Place.of(condition, site, span_set, variable)
    assert (None if place is None else place.spans) == spans


@pytest.mark.parametrize("measure", [erase_sweep, push_sweep])
@pytest.mark.parametrize(
    ("asked", "error", "told"),
    [
        ({"variables": ["card.0.rnk"]}, RunError, r"unknown variable 'card.0.rnk'; nearest: card.0.rank"),
        ({"conditions": ["cascaded"]}, RunError, "unknown condition 'cascaded'; one of: direct, oracle"),
        ({"sites": ["lm.9.resid_post"]}, SiteError, r"lm\.9"),
        ({"spans": ["lst"]}, SpanError, "unknown span 'lst'; nearest: last"),
        ({"variables": ["sum"]}, RunError, "nothing to change: no site has a span of a variable"),
        ({"items": ITEMS[:1]}, RunError, "items of 1 group cannot be halved"),
        (
            {"items": ITEMS[:2], "variables": ["card.0.suit"]},
            RunError,
            "card.0.suit at lm.0.resid_post, image.object.0",
        ),
        ({"task": get("counting")}, TaskError, "is of task 'cards.sum'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    composing: Vlm, measure: object, asked: dict[str, object], error: type[Exception], told: str
) -> None:
    usual = {"task": TASK, "items": ITEMS[:4], "variables": ["card.0.rank"], "sites": [FIRST], "spans": ["objects"]}
    with pytest.raises(error, match=told):
        measure(composing, **{**usual, **asked})  # type: ignore[operator]


def test_a_variable_that_no_partner_changes_cannot_be_pushed(composing: Vlm) -> None:
    with pytest.raises(RunError, match=r"nothing can be pushed at .*another card\.0\.suit"):
        push_sweep(composing, TASK, ITEMS[:20], variables=["card.0.suit"], sites=[FIRST], spans=["objects"])


def by_hand(**columns: object) -> pd.DataFrame:
    """Four items of two groups in one cell."""
    cell = {"condition": "direct", "site": "lm.2.resid_post", "layer": 2, "span": "image.object.0"}
    return pd.DataFrame({"id": list("abcd"), "group": list("ggkk"), **cell, "variable": "card.0.rank", **columns})


ERASED = by_hand(
    base=[-1.0, -1.0, -2.0, -2.0], erased=[-3.0, -3.0, -3.0, -3.0], random=[-1.0, -2.0, -2.0, -2.0],
    base_right=[True, True, True, False], erased_right=[False, False, True, True],
    random_right=[True, True, True, False], read_before=[True, True, True, False], rank=12, n_left_out=3,
)  # fmt: skip


def test_effects_of_erasing_are_means_with_intervals() -> None:
    (row,) = summarise_erasing(ERASED).to_dict("records")
    assert (row["n"], row["layer"], row["stack"], row["rank"], row["n_left_out"]) == (4, 2, "lm", 12, 3)
    assert (row["base"], row["read_before"], row["base_right"]) == (-1.5, 0.75, 0.75)
    assert (row["effect"], row["effect_low"], row["effect_high"]) == (-1.5, -2, -1)
    assert (row["random_effect"], row["random_effect_low"]) == (-0.25, -0.5)
    assert row["difference"] == pytest.approx(-1.25)
    assert row["lost"] == pytest.approx(2 / 3)
    assert row["random_lost"] == row["random_lost_high"] == 0
    assert row["p"] == row["q"] == pytest.approx(0.5 - np.arctan(5) / np.pi), "groups cost 3 and 2 beyond the control"


def test_false_discoveries_are_controlled_over_the_cells() -> None:
    same = ERASED.assign(erased=ERASED.random, site="lm.3.resid_post")
    more = ERASED.assign(erased=ERASED.random, random=ERASED.erased, site="lm.4.resid_post")
    found = summarise_erasing(pd.concat([ERASED, same, more]))
    p = 0.5 - np.arctan(5) / np.pi
    assert found.p.to_list() == pytest.approx([p, 1, 1 - p])
    assert found.q.to_list() == pytest.approx([3 * p, 1, 1])


def test_effects_of_pushes_are_means_with_intervals() -> None:
    rights = {
        f"{who}_right": [False, True, True, True] for who in ("own_pushed", "own_random", "partner", "partner_pushed")
    }
    table = by_hand(
        own=-1.0, own_pushed=[-2.0, -2.0, -3.0, -3.0], own_random=-1.5, own_right=[True, True, False, False],
        partner=-9.0, partner_pushed=[-4.0, -4.0, -6.0, -6.0], partner_random=-8.0, strength=1.0, **rights,
    )  # fmt: skip
    (row,) = summarise_pushes(table).to_dict("records")
    assert (row["effect"], row["effect_low"], row["effect_high"]) == (4, 3, 5)
    assert (row["random_effect"], row["difference"]) == (1, 3)
    assert (row["own_effect"], row["own_random_effect"], row["own_difference"]) == (-1.5, -0.5, -1)
    assert (row["lost"], row["random_lost"], row["partner_pushed_right"]) == (0.5, 0.5, 0.75)
    assert row["p"] == row["q"] == pytest.approx(0.5 - np.arctan(3) / np.pi), "groups gain 8 and 4 beyond the control"


def test_there_and_used_stand_side_by_side() -> None:
    probe = {"accuracy": 0.9, "low": 0.8, "high": 1.0, "control_accuracy": 0.2, "chance": 0.1}
    probe |= {"selectivity": 0.7, "selectivity_low": 0.6, "selectivity_high": 0.8}
    cell = {"site": "lm.2.resid_post", "layer": 2, "stack": "lm", "span": "image.object.0", "condition": "direct"}
    probes = pd.DataFrame([{**cell, "target": target, **probe} for target in ("card.0.rank", "card.0.suit")])
    (row,) = decodable_and_causal(probes, summarise_erasing(ERASED)).to_dict("records")
    assert (row["variable"], row["condition"], row["layer"], row["stack"]) == ("card.0.rank", "direct", 2, "lm")
    assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"], row["chance"]) == (0.9, 0.8, 1.0, 0.1)
    assert (row["effect"], row["effect_low"], row["random_effect"], row["difference"]) == (-1.5, -2, -0.25, -1.25)
    assert row["p"] == row["q"] < 0.1
    assert row["warning"] == WARNING
    assert "2311.17030" in WARNING
    with pytest.raises(RunError, match="no cell is in both tables"):
        decodable_and_causal(probes.assign(condition="cascaded"), summarise_erasing(ERASED))
