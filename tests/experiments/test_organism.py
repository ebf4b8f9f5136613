"""The organism: what ships, that it does what its card says, and that its script trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seamscope.experiments import organism as shipped
from seamscope.experiments import run_conditions
from seamscope.experiments.organism._build import build_model, build_processor
from seamscope.experiments.organism._data import IGNORED, Lessons, Pool
from seamscope.experiments.organism._sight import patch_words, train_sight
from seamscope.experiments.organism._train import SHIPPED, STAGES, save, train_stage
from seamscope.experiments.tasks import DATA_SETS, get, held_out
from seamscope.hooks import Vlm, load_vlm

FOLDERS = {"natural": shipped.natural(), "composing": shipped.composing()}
MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "organism.json"


def share(vlm: Vlm, name: str, condition: str, *, n: int = 60) -> SimpleNamespace:
    task = get(name)
    table = run_conditions(vlm, task, task.items(n, seed=5), conditions=["cascaded", condition])
    asked, cascaded = (table[table.condition == c] for c in (condition, "cascaded"))
    return SimpleNamespace(right=asked.correct.mean(), cascaded=cascaded.correct.mean(), saw=cascaded.saw.mean())


def test_both_checkpoints_are_small_and_plain() -> None:
    files = [file for folder in FOLDERS.values() for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert {file.suffix for file in files} <= {".json", ".jinja", ".safetensors"}


def test_there_are_enough_layers_for_an_interior(organism: Vlm) -> None:
    assert type(organism.model).__name__ == "LlavaForConditionalGeneration"
    assert organism.n_vision_layers >= 3
    assert organism.n_layers >= 8


def test_the_natural_organism_has_both_skills_and_a_gap(organism: Vlm) -> None:
    """The benchmark measures 500 items of each data set; sixty are a smoke test."""
    found = {name: share(organism, name, "direct") for name in DATA_SETS}
    assert all(each.saw >= 0.85 and each.cascaded >= 0.8 for each in found.values()), found
    assert sum(each.cascaded - each.right >= 0.2 for each in found.values()) >= 2, found


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_composing_organism_composes(composing: Vlm, name: str) -> None:
    assert share(composing, name, "direct").right >= 0.8


def test_an_untrained_copy_has_no_skill() -> None:
    found = share(load_vlm("organism", untrained=True), "cards.sort", "oracle", n=20)
    assert found.right == 0
    assert found.saw == 0


def test_the_measured_skills_are_as_asked() -> None:
    found = json.loads(MEASURED.read_text())
    skill = {c: {d: {k: v["estimate"] for k, v in s.items()} for d, s in found[c].items()} for c in FOLDERS}
    for rates in skill["natural"].values():
        assert rates["perceive"] >= 0.95
        assert rates["reason"] >= 0.95
        assert rates["cascaded"] >= 0.90
    gaps = [rates["cascaded"] - rates["direct"] for rates in skill["natural"].values()]
    assert sum(gap >= 0.2 for gap in gaps) >= 2
    assert all(rates["direct"] >= 0.90 for rates in skill["composing"].values())


def test_the_card_states_what_was_measured() -> None:
    card = (FOLDERS["natural"].parent / "README.md").read_text()
    for checkpoint in FOLDERS:
        for name, rates in json.loads(MEASURED.read_text())[checkpoint].items():
            for rate in rates.values():
                cell = f"{100 * rate['estimate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
                assert any(cell in line for line in card.splitlines() if f"| {checkpoint} | {name} |" in line)


def test_nothing_held_out_is_trained_on() -> None:
    pool = Pool.draw("cards.sort", 50, seed=7)
    assert not any(held_out(item.intermediate.text) for item in pool.items)


def test_labels_stand_on_targets_only_and_words_round_trip() -> None:
    lessons = Lessons({"counting": Pool.draw("counting", 8, seed=1)}, build_processor(), seed=0)
    batch = lessons.pictured(8, shares={"perceive": 1.0})
    words = lessons.tokenizer
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        kept = labels != IGNORED
        assert torch.equal(ids[kept], labels[kept])
        said = words.decode(labels[kept], skip_special_tokens=True)
        assert said in {item.intermediate.text for item in lessons.pools["counting"].items}
        assert "<image>" not in words.decode(labels[kept])


def test_lessons_are_what_the_real_processor_makes() -> None:
    """Training builds its inputs fast; they must be those that a loaded model is given."""
    pool = Pool.draw("cards.sum", 1, seed=3)
    processor = build_processor()
    lessons = Lessons({"cards.sum": pool}, processor, seed=0)
    prompt = pool.items[0].prompt("perceive")
    content = [{"type": "image"}, {"type": "text", "text": prompt.text}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    real = processor(text=[text], images=[prompt.pictures[0].image], return_tensors="pt")
    assert real["input_ids"][0].tolist() == lessons._prompt(prompt)
    from seamscope.experiments.organism._data import normalised

    torch.testing.assert_close(real["pixel_values"], normalised(pool.pixels), atol=1e-2, rtol=0)


def test_patch_words_lie_under_their_boxes() -> None:
    (item,) = get("counting").items(1, seed=2)
    labels = patch_words(item)
    box = item.boxes[0]
    row, column = int((box.top + box.bottom) / 2 // 12), int((box.left + box.right) / 2 // 12)
    assert labels[6 * row + column].sum() >= 2
    assert (labels.sum(1) == 0).any()


def test_the_script_trains_and_what_it_saves_loads(tmp_path: Path) -> None:
    pools = {name: Pool.draw(name, 6, seed=1) for name in DATA_SETS}
    model = build_model(1)
    seen = train_sight(model, pools, steps=50, batch=4)
    curve = train_stage(replace(STAGES[0], pictured=14, textual=10), model, pools, steps=50)
    assert curve[-1]["pictured"] < 4.8  # less than knowing nothing: log of the number of words
    assert len(seen) == len(curve) == 1
    save(model, tmp_path / "tiny")
    loaded = load_vlm(str(tmp_path / "tiny"))
    assert loaded.n_layers == 8


def test_training_is_repeatable() -> None:
    pools = {name: Pool.draw(name, 4, seed=1) for name in DATA_SETS}
    states = []
    for _ in range(2):
        model = build_model(1)
        train_stage(STAGES[1], model, pools, steps=2)
        states.append(model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_what_ships_is_made_by_a_stage() -> None:
    assert set(SHIPPED) == set(FOLDERS) <= {stage.name for stage in STAGES}
