"""Generated tasks: seeds, splits, partners, boxes, prompts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageChops

import seamscope.experiments.tasks as tasks
from seamscope.experiments.organism._build import vocabulary
from seamscope.experiments.tasks import (
    CONDITIONS,
    DATA_SETS,
    PROFILES,
    RENDERINGS,
    GeneratedTask,
    Item,
    Look,
    get,
    held_out,
)
from seamscope.experiments.tasks._style import _digits, handwritten_from
from seamscope.hooks import Box, TaskError

EVERY = [(name, profile) for name in DATA_SETS for profile in PROFILES]
seeds = st.integers(0, 2**31)


def content(item: Item) -> tuple[object, ...]:
    return (
        item.id,
        item.image.tobytes(),
        item.question,
        item.intermediate,
        item.answer,
        item.variables,
        item.types,
        item.boxes,
        item.group,
    )


def outside(item: Item, boxes: tuple[Box, ...]) -> np.ndarray:
    pixels = np.asarray(item.image).copy()
    kept = np.ones(pixels.shape[:2], bool)
    for box in boxes:
        kept[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = False
    return pixels[kept]


def test_exports() -> None:
    assert sorted(tasks.__all__) == [
        *("COLOURS", "CONDITIONS", "CardsSort", "CardsSum", "Counting", "DATA_SETS", "FONTS", "GAINS"),
        *("GeneratedTask", "HANDWRITTEN", "Intermediate", "Item", "JsonlTask", "LOSSES", "Look", "NAMES"),
        *("PROFILES", "Part", "RANKS", "RENDERINGS", "RenderedText", "SHAPES", "SUITS", "Task", "Wording"),
        *("contact_sheet", "generated", "get", "held_out"),
    ]
    assert all(hasattr(tasks, name) for name in tasks.__all__)
    assert DATA_SETS == ("rendered_text", "counting", "cards.sort", "cards.sum")


@pytest.mark.parametrize(("name", "profile"), EVERY)
class TestEvery:
    def test_an_item_depends_on_its_seed_and_place_only(self, name: str, profile: str) -> None:
        few = get(name).items(2, profile_name=profile, seed=3)
        more = get(name).items(4, profile_name=profile, seed=3)
        assert [content(item) for item in few] == [content(item) for item in more[:2]]
        assert len({item.image.tobytes() for item in more}) == 4
        assert content(get(name).items(1, profile_name=profile, seed=4)[0])[1:] != content(few[0])[1:]

    def test_partners_differ_in_what_changed_and_in_nothing_else(self, name: str, profile: str) -> None:
        task = get(name)
        single = 0
        for item in task.items(40, profile_name=profile, seed=5):
            partner = task.partner(item)
            assert (partner.question, partner.group, partner.task) == (item.question, item.group, item.task)
            assert partner.source.style == item.source.style
            assert partner.id != item.id
            assert partner.answer != item.answer
            assert partner.boxes == item.boxes
            parts = zip(item.intermediate.parts, partner.intermediate.parts, strict=True)
            changed = [k for k, (mine, theirs) in enumerate(parts) if mine != theirs]
            assert changed
            single += len(changed) == 1
            boxes = tuple(item.boxes[k] for k in changed)
            assert np.array_equal(outside(item, boxes), outside(partner, boxes))
            for box in boxes:
                corners = (int(box.left), int(box.top), int(box.right), int(box.bottom))
                assert ImageChops.difference(item.image.crop(corners), partner.image.crop(corners)).getbbox()
            again = task.partner(partner)
            assert again.answer != partner.answer
            assert again.boxes == item.boxes
        assert single >= 20, single  # where the split has no partner that near, two objects change

    def test_boxes_hold_all_ink(self, name: str, profile: str) -> None:
        task = get(name)
        assert isinstance(task, GeneratedTask)
        for font, layout in itertools.product(RENDERINGS, task.layouts):
            look = Look(fonts=(font,), layouts=(layout,))
            for item in task.items(20 if profile == "small" else 3, profile_name=profile, seed=6, look=look):
                assert item.source.style.font == font
                assert item.source.style.layout == layout
                assert len(item.boxes) == len(item.intermediate.parts)
                assert (outside(item, item.boxes) == np.array(item.source.style.paper)).all()
                for box in item.boxes:
                    assert 0 <= box.left < box.right <= PROFILES[profile].canvas
                    assert 0 <= box.top < box.bottom <= PROFILES[profile].canvas
                    within = item.image.crop((int(box.left), int(box.top), int(box.right), int(box.bottom)))
                    assert (np.asarray(within) != item.source.style.paper).any()

    def test_held_out_content_is_never_trained_on(self, name: str, profile: str) -> None:
        kept = {i.intermediate.text for i in get(name).items(60, profile_name=profile, split="held_out")}
        trained = {i.intermediate.text for i in get(name).items(60, profile_name=profile, split="train")}
        assert not kept & trained
        assert all(map(held_out, kept))
        assert not any(map(held_out, trained))

    def test_partners_stay_in_the_split(self, name: str, profile: str) -> None:
        for split in ("held_out", "train"):
            for item in get(name).items(5, profile_name=profile, seed=7, split=split):
                partner = get(name).partner(item)
                assert held_out(partner.intermediate.text) == (split == "held_out")
                assert partner.source.style.held_out_ink == (split == "held_out")

    def test_variables_have_types(self, name: str, profile: str) -> None:
        for item in get(name).items(5, profile_name=profile):
            assert item.variables.keys() == item.types.keys()
            assert item.answer in item.variables.values() or name == "cards.sort"

    def test_prompts_have_the_spans_of_their_condition(self, name: str, profile: str) -> None:
        item = get(name).items(1, profile_name=profile)[0]
        item = item.saying(item.intermediate)
        parts = {f"intermediate.{k}" for k in range(len(item.intermediate.parts))}
        for condition in CONDITIONS:
            prompt = item.prompt(condition)
            spans = {span for segment in prompt.segments for span in segment.spans}
            text_only = condition in ("oracle", "cascaded")
            assert spans == ({"question", "intermediate"} | parts if text_only else {"question"})
            assert [len(p.boxes) for p in prompt.pictures] == ([] if text_only else [len(item.boxes)])
            assert item.question in prompt.text
        assert item.prompt("oracle") == item.prompt("cascaded")

    @settings(max_examples=15, deadline=None)
    @given(seed=seeds)
    def test_what_a_perfect_model_says_is_read_back(self, name: str, profile: str, seed: int) -> None:
        task = get(name)
        item = task.items(1, profile_name=profile, seed=seed, split=None)[0]
        for condition in CONDITIONS:
            said = item.target(condition)
            assert task.score(item, said)
            assert task.score(item, said, condition=condition)
            assert not task.score(task.partner(item), said, condition=condition)
        assert task.read_answer(item.answer) == item.answer
        said = item.target("perceive")
        assert task.saw(item, said)
        assert not task.saw(task.partner(item), said)
        assert task.hand_over(item, said) == item.intermediate


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_organism_knows_every_word_of_the_small_profile(name: str) -> None:
    known = set(vocabulary())
    for split in ("train", "held_out"):
        for item in get(name).items(200, seed=8, split=split):
            said = [item.target(condition) for condition in ("perceive", *CONDITIONS)]
            asked = [item.prompt(condition).text for condition in ("perceive", "direct", "oracle", "cot")]
            assert set(" ".join(said + asked).split()) <= known


def test_held_out_handwriting_is_never_trained_on() -> None:
    images, labels = _digits()
    pixels: dict[bool, set[bytes]] = {True: set(), False: set()}
    for digit in range(10):
        for kept in (True, False):
            chosen = handwritten_from(digit, held_out=kept)
            assert (labels[chosen] == digit).all()
            pixels[kept] |= {images[k].tobytes() for k in chosen}
    assert not pixels[True] & pixels[False]
    assert len(pixels[True]) + len(pixels[False]) == 1797


def test_handwriting_of_what_did_not_change_is_the_same_in_both_partners() -> None:
    task, look = get("cards.sort"), Look(fonts=("handwritten",))
    for item in task.items(30, look=look, seed=9):
        partner = task.partner(item)
        for mine, theirs, box in zip(item.intermediate.parts, partner.intermediate.parts, item.boxes, strict=True):
            corners = (int(box.left), int(box.top), int(box.right), int(box.bottom))
            same = item.image.crop(corners).tobytes() == partner.image.crop(corners).tobytes()
            assert same == (mine == theirs)


def test_an_item_without_a_partner_in_its_split_gets_one_of_the_other() -> None:
    task = get("rendered_text")
    item = task.items(59, seed=0)[58]
    assert item.intermediate.text == "tom has 5 gets 3"
    scenes = [f"tom has {a} gets {b}" for a in range(10) for b in range(10)]
    assert [text for text in scenes if held_out(text)] == [item.intermediate.text]
    partner = task.partner(item)
    assert partner.answer != item.answer
    assert not held_out(partner.intermediate.text)
    assert partner.source.style.held_out_ink


def test_look_narrows_the_size() -> None:
    for item in get("counting").items(5, look=Look(size=(0.25, 0.25), jitter=0)):
        assert item.source.style.size == 0.25
        assert item.source.style.jitter == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get("card.sort"), "unknown task 'card.sort'; nearest: cards.sort"),
        (lambda: get("counting").items(0), "cannot make 0 items; at least 1"),
        (lambda: get("counting").items(1, seed=-1), "seed is -1; expected 0 or more"),
        (lambda: get("counting").items(1, split="test"), "unknown split 'test'; one of: held_out, train"),
        (lambda: get("counting").items(1, profile_name="big"), "unknown profile 'big'; one of: small, full"),
        (lambda: Look(fonts=("serrif",)), "unknown font 'serrif'; nearest: serif; one of: sans"),
        (lambda: Look(fonts=()), "fonts is empty; name at least one of: sans"),
        (lambda: Look(layouts=()), "layouts is empty"),
        (lambda: Look(size=(0.5, 0.2)), "size is (0.5, 0.2); expected (smallest, largest), both from 0 to 1"),
        (lambda: Look(jitter=9), "jitter is 9; expected 0 to 2"),
        (
            lambda: get("counting").items(1, look=Look(layouts=("rows",))),
            "unknown layout 'rows'; one of: grid, loose",
        ),
        (lambda: get("counting").items(1)[0].prompt("cot2"), "unknown condition 'cot2'; one of: perceive, d"),
        (lambda: get("counting").items(1)[0].target("cot2"), "unknown condition 'cot2'; one of: perceive, d"),
        (lambda: get("counting").items(1)[0].prompt("cascaded"), "needs what call 1 said; use item.saying"),
        (
            lambda: get("counting").partner(get("cards.sum").items(1)[0]),
            "item cards.sum-small-0-0 is of task 'cards.sum', not 'counting'",
        ),
    ],
)
def test_errors_are_one_line_that_says_what_is_expected(call: object, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        call()  # type: ignore[operator]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
