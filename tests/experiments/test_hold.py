"""Holding the image positions: answers come back where the fault comes later, and nowhere else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from seamscope.experiments.organism._alter import Alteration, Altered
from seamscope.experiments.sweeps._hold import HOLD, hold_sites, holds
from seamscope.experiments.sweeps._sweep import sweep_all
from seamscope.experiments.tasks import get
from seamscope.hooks import Patch, Vlm, capture, load_vlm, patch

OVERWRITTEN = 1  # the layer behind which image positions hold another picture's states
LAYERS = 8
TASK = get("cards.sum")
ITEMS = TASK.items(14, seed=2)


@pytest.fixture(scope="module")
def faulty() -> Vlm:
    vlm = load_vlm("organism-composing", check=False)
    donors = [item.prompt("perceive") for item in TASK.items(16, seed=77, split="train")]
    Altered(vlm, [Alteration(place=f"lm.{OVERWRITTEN}.resid_post")], donors)
    return vlm


@pytest.fixture(scope="module")
def table(faulty: Vlm) -> pd.DataFrame:
    found = sweep_all(faulty, TASK, ITEMS, [holds(faulty)], sites=hold_sites(faulty))
    return found.assign(layer=found.target_site.str.split(".").str[1].astype(int))


def test_answers_come_back_from_before_the_fault_and_not_from_behind_it(table: pd.DataFrame) -> None:
    failed = table[table.base_rank > 0]
    assert failed.id.nunique() >= 8
    share = failed.groupby(["experiment", "layer"]).first_right.mean()
    for layer in range(LAYERS - 1):
        if layer <= OVERWRITTEN:
            assert share[HOLD, layer] > 0.9
            assert share[f"{HOLD}_control", layer] < share[HOLD, layer] - 0.5
        else:
            assert share[HOLD, layer] < 0.2
            assert share[f"{HOLD}_control", layer] < 0.3


def test_every_layer_that_is_read_later_is_held_with_its_control(table: pd.DataFrame) -> None:
    for name in (HOLD, f"{HOLD}_control"):
        own = table[(table.experiment == name) & (table.id == ITEMS[0].id)]
        assert own.layer.tolist() == list(range(LAYERS - 1))  # behind the last one nothing is read
        assert own.source_site.tolist() == ["lm.embed", *(f"lm.{k}.resid_post" for k in range(LAYERS - 2))]
        assert own.window.tolist() == [LAYERS - 1 - k for k in range(LAYERS - 1)]
        assert set(own.span) == {"image"}
    assert table.groupby(["id", "experiment"]).size().eq(LAYERS - 1).all()


@pytest.mark.parametrize(("whose", "layer"), [("item", 0), ("item", 1), ("item", 4), ("partner", 1)])
def test_one_trial_by_hand(faulty: Vlm, table: pd.DataFrame, whose: str, layer: int) -> None:
    item = ITEMS[3]
    sites = hold_sites(faulty)
    source, target = (
        faulty.encode([each], condition="direct", answers=[item.answer])
        for each in (item if whose == "item" else TASK.partner(item), item)
    )
    with capture(faulty, sites[layer], spans=["image"]) as acts:
        base = faulty.score(source).logprob
    values = acts[sites[layer], "image"].values

    def keep(_: Tensor) -> Tensor:
        return values

    with patch(faulty, [Patch(f"lm.{k}.resid_post", keep, span="image") for k in range(layer, LAYERS - 1)]):
        by_hand = float(faulty.score(target).logprob)
    name = HOLD if whose == "item" else f"{HOLD}_control"
    (row,) = table[(table.id == item.id) & (table.experiment == name) & (table.layer == layer)].to_dict("records")
    assert row["patched"] == pytest.approx(by_hand, abs=1e-4)
    if whose == "item":
        assert row["base"] == pytest.approx(float(base), abs=1e-4)
        assert abs(row["patched"] - row["base"]) > 1e-3


def test_a_model_without_the_fault_keeps_its_answers(composing: Vlm) -> None:
    """Held from a late layer on, image positions are as good as they were: nothing reads them any more."""
    found = sweep_all(composing, TASK, ITEMS[:4], [holds(composing)], sites=hold_sites(composing))
    late = found[(found.target_site == f"lm.{LAYERS - 2}.resid_post") & (found.experiment == HOLD)]
    assert (late.patched - late.base).abs().max() < 0.5
    early = found[(found.target_site == "lm.0.resid_post") & (found.experiment == f"{HOLD}_control")]
    assert (early.patched < early.base - 2).all()  # the partner's picture, and so the partner's answer


def test_a_decoder_without_image_positions_is_not_held(faulty: Vlm) -> None:
    def runs(places: Tensor | None, values: Tensor | None) -> Any:
        return SimpleNamespace(places=lambda *_: places, values=lambda *_: values)

    some = torch.ones(5, 3)
    assert list(holds(faulty)(runs(None, some))) == []
    assert list(holds(faulty)(runs(torch.zeros(0, dtype=torch.long), some))) == []
    assert list(holds(faulty)(runs(torch.tensor([1]), None))) == []
    assert len(list(holds(faulty)(runs(torch.tensor([1]), some)))) == 2 * (LAYERS - 1)


def test_a_partner_with_fewer_image_tokens_gives_none_of_its_words(faulty: Vlm) -> None:
    """Where pictures are of different sizes, positions of the item's image are not those of its partner's."""
    places = {"item": torch.tensor([1, 2, 3]), "partner": torch.tensor([1, 2])}
    states = {who: torch.zeros(6, 3).index_fill(0, own, 7.0) for who, own in places.items()}
    runs: Any = SimpleNamespace(
        places=lambda who, *_: places[who[0]],
        values=lambda who, _: states[who[0]],
        item=SimpleNamespace(id="x"),
    )
    parts = [part for trial in holds(faulty)(runs) for part in trial.parts]
    assert len(parts) >= LAYERS - 1
    assert all((part.values == 7).all() and len(part.values) == len(part.positions) == 3 for part in parts)
