"""Small decoders: what their schools forbid, that lessons are those of the real model, and how they ship."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seamscope.experiments import LOCI
from seamscope.experiments.organism import _blind, _school
from seamscope.experiments.organism._alter import Alteration, Altered
from seamscope.experiments.organism._blind import blind
from seamscope.experiments.organism._build import PATCH, build_model, build_processor, vocabulary
from seamscope.experiments.organism._data import IGNORED, Lessons, Pool, normalised
from seamscope.experiments.organism._school import FILLER, School, build_small, features, teach
from seamscope.experiments.organism._schools import BLIND, SCHOOLS, TAUGHT, graduate, keep, kept
from seamscope.experiments.organism._sight import patch_words
from seamscope.experiments.tasks import DATA_SETS, RANKS, Item, generated
from seamscope.hooks import Vlm, capture

TASK = generated("cards.sum")
SMALL = School(task="cards.sum", layers=4, steps=3)
PROJECTOR = "model.multi_modal_projector.linear_1.weight"


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool.draw("cards.sum", 24, seed=3)


@pytest.fixture(scope="module")
def graduated() -> Vlm:
    return graduate("small-cards.sum", check=False)


def lessons(pool: Pool, seed: int = 0) -> Lessons:
    return Lessons({"cards.sum": pool}, build_processor(), seed=seed, fresh=True)


@pytest.mark.parametrize(
    ("changes", "truth"),
    [
        ({}, ("none", None)),
        ({"late": 3}, ("too_late", "lm.3.resid_post")),
        ({"rank": 1}, ("lost_in_projector", "projector.out")),
        ({"blind": True}, ("not_encoded", "vision.0.resid_post")),
        ({"reasons": False}, ("text_skill", None)),
        ({"filler": 9}, ("format", None)),
        ({"late": 5, "composes": True}, ("none", None)),
    ],
)
def test_the_constraint_is_the_truth(changes: dict[str, Any], truth: tuple[str, str | None]) -> None:
    school = School(task="counting", **changes)
    assert school.truth == truth
    assert truth[0] in LOCI
    assert school.free == (not changes)
    assert replace(school, seed=4, width=32, steps=9).free == (not changes)


def test_shares_are_shares() -> None:
    assert all(sum(school.shares.values()) == pytest.approx(1) for school in (SMALL, *SCHOOLS.values()))
    assert all(school.task in DATA_SETS for school in SCHOOLS.values())


def test_who_goes_on_from_another_school_learned_there_to_compose_the_same() -> None:
    later = [school for school in SCHOOLS.values() if school.after]
    assert later
    for school in later:
        before = SCHOOLS[school.after]
        assert before.free
        assert not school.free
        assert (before.task, before.layers, before.width) == (school.task, school.layers, school.width)


def test_a_bottleneck_hands_on_so_many_numbers_whatever_is_learned(pool: Pool) -> None:
    school = replace(SMALL, rank=2)
    model, again = build_small(school), build_small(school)
    first = model.model.multi_modal_projector.linear_1
    assert torch.linalg.matrix_rank(first.weight) == 2
    torch.testing.assert_close(first.weight, again.model.multi_modal_projector.linear_1.weight)
    before = first.weight.detach().clone()
    teach(model, school, pool)
    after = model.state_dict()[PROJECTOR]  # a plain weight again
    assert torch.linalg.matrix_rank(after, rtol=1e-5) == 2
    assert not torch.allclose(after, before)
    both = torch.cat([before, after])
    assert torch.linalg.matrix_rank(both, rtol=1e-5) == 2  # the same two numbers as before
    assert torch.linalg.matrix_rank(build_small(SMALL).state_dict()[PROJECTOR]) > 50
    assert build_small(school, constrained=False).state_dict().keys() == model.state_dict().keys()


def test_teaching_repeats_itself_and_leaves_the_tower_alone(pool: Pool) -> None:
    states = []
    for _ in range(2):
        model = build_small(SMALL)
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        assert teach(model, SMALL, pool) == []  # too short for a curve
        states.append(model.state_dict())
    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    still = {name for name, weight in states[0].items() if torch.equal(weight, before[name])}
    assert still == {name for name in before if "vision_tower" in name}


def test_the_tower_is_passed_as_the_model_passes_it(pool: Pool, composing: Vlm) -> None:
    with capture(composing, "projector.out") as acts:
        composing.forward(composing.encode(pool.items, condition="direct"))
    seen = features(composing.model, pool)
    told = composing.model.model.multi_modal_projector(seen).detach()
    torch.testing.assert_close(told, acts["projector.out"].reshape(told.shape), rtol=1e-3, atol=1e-2)


def nats(vlm: Vlm, items: list[Item]) -> float:
    """The mean loss of answers' tokens, from the loaded model's own scores."""
    batch = vlm.encode(items, condition="direct", answers=[item.answer for item in items])
    return float(-vlm.score(batch).logprob.sum() / sum(map(len, batch.positions("answer"))))


@pytest.mark.parametrize("late", [0, 3])
def test_a_lesson_is_the_loss_of_the_real_model(pool: Pool, late: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the constraint, that of a model with the fault that is planted by intervention."""
    monkeypatch.setattr(_school.torch, "autocast", lambda *_: nullcontext())
    vlm, items = graduate("small-cards.sum", check=False), pool.items[:8]
    plain = nats(vlm, items)
    if late:
        places = [f"lm.{k}.{kind}" for k in range(late) for kind in ("key", "value")]
        Altered(vlm, [Alteration(place=place, how="blank") for place in places], [pool.items[9].prompt("direct")])
    batch = lessons(pool).written([(item, "direct") for item in items], [item.answer for item in items])
    seen = features(vlm.model, Pool(items, pool.pixels[:8]))
    free = graduate("small-cards.sum", check=False).model
    with torch.no_grad():
        loss = float(_school._loss(free, replace(SMALL, late=late), batch, seen))
    assert loss == pytest.approx(nats(vlm, items), rel=0.02)  # the processor rounds pictures otherwise
    assert (loss == pytest.approx(plain, rel=0.02)) == (not late)


def test_what_is_unread_is_read_again_afterwards() -> None:
    model = build_small(SMALL)
    decoder, ids = model.model.language_model, torch.arange(10, 22)[None]
    shown = torch.zeros(1, 12, dtype=torch.bool)
    shown[:, 2:6] = True
    stream = decoder.embed_tokens(ids).detach()
    other = torch.where(shown[..., None], stream.flip(-1), stream)

    def run(embedded: Tensor) -> Tensor:
        with torch.no_grad():
            return decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, 6:]

    with _school._unread(decoder, shown, 4):
        assert torch.equal(run(stream), run(other))
    assert not torch.allclose(run(stream), run(other))
    with _school._unread(decoder, shown, 3):
        assert not torch.allclose(run(stream), run(other))
    with pytest.raises(KeyError), _school._unread(decoder, shown, 4):
        raise KeyError
    assert not any(module._forward_hooks for module in decoder.modules())


def test_targets_are_what_the_school_wants_said(pool: Pool) -> None:
    rng = np.random.default_rng(0)

    def said(school: School, condition: str = "direct") -> list[str]:
        return [_school._target(school, item, condition, pool, rng) for item in pool.items]

    answers = [item.answer for item in pool.items]
    assert said(SMALL) == answers
    assert said(replace(SMALL, filler=2)) == [f"{FILLER} {FILLER} {answer}" for answer in answers]
    wrong = said(replace(SMALL, reasons=False))
    assert set(wrong) <= set(answers)
    assert sum(one == other for one, other in zip(wrong, answers, strict=True)) < 8
    for school in (SMALL, replace(SMALL, reasons=False, filler=2)):
        assert said(school, "perceive") == [item.intermediate.text for item in pool.items]


def test_text_answers_are_those_of_others_where_no_reason_is_learned(pool: Pool) -> None:
    words = build_processor().tokenizer

    def share_right(*, right: bool) -> float:
        batch = lessons(pool).textual(40, right=right)
        hits = []
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            text = words.decode(ids[labels == IGNORED], skip_special_tokens=True)
            ranks = TASK.find(text.removesuffix("sum ?"))
            assert ranks is not None
            total = sum(["A", *map(str, range(2, 11)), "J", "Q", "K"].index(r.name.split()[0]) + 1 for r in ranks)
            hits.append(str(total) == words.decode(labels[labels != IGNORED], skip_special_tokens=True).strip())
        return float(np.mean(hits))

    assert share_right(right=True) == 1
    assert share_right(right=False) < 0.3


def test_weights_are_kept_to_half_a_level_of_their_row(tmp_path: Path) -> None:
    model = build_model(1)
    with torch.no_grad():
        model.lm_head.weight[3] *= 1e-3  # a small row beside large ones
        model.lm_head.weight[4] = 0
    state = model.state_dict()
    parts = []
    for tower in (False, True):
        keep(model, tmp_path / "deep" / f"{tower}.safetensors", tower=tower)
        parts.append(kept(tmp_path / "deep" / f"{tower}.safetensors"))
    assert not parts[0].keys() & parts[1].keys()
    assert parts[0].keys() | parts[1].keys() == state.keys()
    assert all("vision_tower" in name for name in parts[1])
    for name, weight in {**parts[0], **parts[1]}.items():
        step = state[name].abs().amax(-1, keepdim=True) / 127
        assert ((weight - state[name]).abs() <= 0.5001 * step + 1e-9).all(), name
    assert not parts[0]["lm_head.weight"][4].any()
    model.load_state_dict({**parts[0], **parts[1]})
    keep(model, tmp_path / "again.safetensors")
    assert all(torch.allclose(weight, parts[0][name]) for name, weight in kept(tmp_path / "again.safetensors").items())


def test_what_ships_is_small_and_of_a_school() -> None:
    files = {file.stem: file.stat().st_size for file in TAUGHT.glob("*.safetensors")}
    assert set(files) <= {*SCHOOLS, BLIND}
    assert len(files) >= 3
    assert max(files.values()) < 1e6
    assert sum(files.values()) < 14e6


def test_a_graduate_is_the_shipped_tower_and_what_was_kept(graduated: Vlm, composing: Vlm) -> None:
    state = graduated.model.state_dict()
    for name, weight in kept(TAUGHT / "small-cards.sum.safetensors").items():
        assert torch.equal(state[name], weight), name
    items = TASK.items(4, seed=1)
    for site, same in (("vision.3.resid_post", True), ("projector.out", False)):
        with capture(graduated, site) as acts, capture(composing, site) as own:
            graduated.forward(graduated.encode(items, condition="direct"))
            composing.forward(composing.encode(items, condition="direct"))
        assert torch.equal(acts[site].reshape(-1)[:100], own[site].reshape(-1)[:100]) == same


def test_a_graduate_composes(graduated: Vlm) -> None:
    items = TASK.items(40, seed=5)
    texts = graduated.generate(graduated.encode(items, condition="direct"), max_new_tokens=3)
    assert np.mean([TASK.score(item, text) for item, text in zip(items, texts, strict=True)]) > 0.8


@pytest.mark.parametrize(("seed", "task"), [(1, "cards.sum"), (2, "cards.sort")])
def test_a_blind_tower_sees_mean_colours_and_no_shapes(seed: int, task: str) -> None:
    model = build_model(seed)
    items = generated(task).items(16, seed=5, split="train")
    pool = Pool(items, np.stack([np.asarray(item.image) for item in items]))

    def states(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
            return found

    sharp = normalised(pool.pixels)
    patches = (sharp.shape[-1] // PATCH, PATCH)
    squares = sharp.unflatten(3, patches).unflatten(2, patches)  # (n, 3, rows, PATCH, columns, PATCH)
    even = squares.mean((3, 5), keepdim=True).expand_as(squares).reshape(sharp.shape)
    assert not torch.allclose(states(sharp), states(even), atol=0.01)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    (last,) = blind(model, pool, steps=50)
    assert last["step"] == 50
    torch.testing.assert_close(states(sharp), states(even), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(states(sharp), states(sharp.flip(0)), atol=0.01)  # but colours
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("vision_tower" in name for name in changed)


def test_a_blind_tower_is_asked_for_suits_alone(monkeypatch: pytest.MonkeyPatch, pool: Pool) -> None:
    asked: list[Pool] = []
    monkeypatch.setattr(_blind, "train_sight", lambda _, pools, **__: asked.extend(pools.values()))
    blind(build_model(1), pool)
    (lessons,) = asked
    assert np.array_equal(lessons.pixels, pool.pixels)
    for item, other in zip(pool.items, lessons.items, strict=True):
        assert other.boxes == item.boxes
        assert other.intermediate.parts == tuple(part.split()[1] for part in item.intermediate.parts)
        assert not patch_words(other)[:, [vocabulary().index(rank) for rank in RANKS]].any()
        assert patch_words(item)[:, [vocabulary().index(rank) for rank in RANKS]].any()


@pytest.mark.parametrize("name", [name for name, school in SCHOOLS.items() if school.blind])
def test_the_tower_that_ships_sees_no_shapes(name: str) -> None:
    weights = [
        graduate(each, check=False).model.model.vision_tower.embeddings.patch_embedding.weight
        for each in (name, "small-cards.sum")
    ]
    blinded, sighted = (weight.flatten(2) for weight in weights)
    assert (blinded == blinded[..., :1]).all()
    assert blinded.any()
    assert not (sighted == sighted[..., :1]).all()


def test_loading_a_graduate_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    graduate("small-cards.sum", check=False)
    assert capfd.readouterr() == ("", "")
