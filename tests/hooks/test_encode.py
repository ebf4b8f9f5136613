from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from seamscope.hooks import ModelError, Prompt, RunError, SpanError, Vlm

from .conftest import ask, make_encoder, picture, word_tokenizer


@dataclass(frozen=True)
class Item:
    id: str

    def prompt(self, condition: str) -> Prompt:
        return ask("red card ?", *[picture(1)] * (condition == "direct"))


def test_items_are_asked_under_a_condition(vlm: Vlm):
    direct = vlm.encode([Item("a"), Item("b")], condition="direct")
    assert direct.ids == ("a", "b")
    assert direct.condition == "direct"
    assert "image" in direct.spans[0]
    assert "image" not in vlm.encode([Item("a")], condition="cascaded").spans[0]
    assert len(vlm.encode([Item("a")] * 3, condition="direct")) == 3


def test_every_key_of_the_processor_is_kept_and_equals_what_it_gives(vlm: Vlm, prompts):
    batch = vlm.encode(prompts)
    images = [each.image for prompt in prompts for each in prompt.pictures]
    given = vlm.processor(text=list(batch.texts), images=images, padding=True, padding_side="left", return_tensors="pt")
    assert set(batch.inputs) == set(given) | {"position_ids"}
    text = vlm.processor(
        text=list(batch.texts),
        images=images,
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    )
    assert all(torch.equal(batch.inputs[key], text[key]) for key in text)


def test_text_alone_has_no_pixels(vlm: Vlm):
    batch = vlm.encode([ask("red ?")])
    assert "pixel_values" not in batch.inputs
    assert batch.visual is None


@pytest.mark.parametrize("padding", ["left", "right"])
def test_positions_count_from_each_rows_first_token(vlm: Vlm, prompts, padding):
    batch = vlm.encode(prompts, padding=padding)
    for row in range(3):
        real = batch.inputs["attention_mask"][row].bool()
        assert batch.inputs["position_ids"][row][real].tolist() == list(range(int(real.sum())))


def test_a_template_that_begins_the_sequence_is_not_begun_twice(vlm: Vlm):
    ids = vlm.encode([ask("red")]).inputs["input_ids"][0].tolist()
    assert ids.count(vlm.processor.tokenizer.bos_token_id) == 1


def test_a_batch_tells_its_spans(vlm: Vlm, prompts):
    batch = vlm.encode(prompts)
    assert len(batch) == 3
    assert batch.width == batch.inputs["input_ids"].shape[1]
    assert set(batch.span_names) == {
        "image",
        "question",
        "prompt",
        "last",
        "image.object.0",
        "image.object.1",
    }
    assert [len(each) for each in batch.positions("image.object.1")] == [2, 0, 0]
    with pytest.raises(SpanError, match="unknown span 'imgae'; nearest: image"):
        batch.positions("imgae")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": []}, "nothing to encode"),
        ({"items": [Item("a")]}, r"items are encoded under a condition: encode\(items, condition=...\)"),
        ({"items": ["red card"]}, "cannot encode a str; expected a Prompt"),
        ({"items": [ask("red")], "answers": ["1", "2"]}, "2 answers were given for 1 items"),
        ({"items": [ask("red")], "padding": "lfet"}, "unknown padding 'lfet'; nearest: left"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(vlm: Vlm, arguments, message):
    items = arguments.pop("items")
    with pytest.raises(RunError, match=message):
        vlm.encode(items, **arguments)


def test_a_tokenizer_without_offsets_is_refused():
    encoder = make_encoder("siglip", word_tokenizer())

    class Slow:
        is_fast = False

    encoder.processor.tokenizer = Slow()
    encoder.processor.tokenizer.bos_token = None
    with pytest.raises(ModelError, match="Slow gives no character offsets"):
        encoder._process([], [], "left")
