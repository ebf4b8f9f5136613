from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from seamscope.hooks import Box, ModelError, Prompt, RunError, Site, SpanError, Vlm, load_vlm
from seamscope.hooks.families._rules import plain_views

from ..checkpoints import BUILDERS
from .conftest import ask, picture


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


def test_a_tokenizer_without_offsets_is_refused(vlm: Vlm, monkeypatch):
    monkeypatch.setattr(type(vlm.processor.tokenizer), "is_fast", property(lambda self: False))
    with pytest.raises(
        ModelError, match=f"{type(vlm.processor.tokenizer).__name__} gives no character offsets; a fast"
    ):
        vlm.encode([ask("red")])


def test_a_plain_model_needs_nothing_besides(each: Vlm, prompts):
    assert each.encode(prompts).extra == {}


def counting(vlm: Vlm, sizes: list[int]) -> Vlm:
    """The same model, of a family that notes for how many pictures it is asked about a ramp."""

    def views(model, processor, inputs, n):
        sizes.append(n)
        return plain_views(model, processor, inputs, n)

    return Vlm(name="x", model=vlm.model, processor=vlm.processor, family=replace(vlm.family, views=views))


def test_a_picture_of_a_size_is_looked_at_once(vlm: Vlm):
    asked: list[int] = []
    model = counting(vlm, asked)
    for seed in range(3):
        model.encode([ask("red", picture(seed)), ask("ace", picture(9)), ask("one")])
    assert asked == [1]
    model.encode([ask("red", picture(1), picture(2))])
    assert asked == [1, 2]
    model.encode([ask("red", picture(1, size=(30, 20)))])
    assert asked == [1, 2, 1]


def test_pictures_in_one_batch_may_have_different_sizes(vlm: Vlm):
    """Boxes are in the pixels of each: the right half of one, the upper half of the other."""
    right, upper = Box(left=40, top=0, right=60, bottom=30), Box(left=0, top=0, right=24, bottom=16)
    both = ask("red", picture(1, size=(60, 30), boxes=(right,)), picture(2, size=(24, 48), boxes=(upper,)))
    batch = vlm.encode([ask("ace"), both])
    image = batch.spans[1]["image"]
    assert batch.spans[1]["image.object.0"].tolist() == image[[2, 5, 8]].tolist()
    assert batch.spans[1]["image.object.1"].tolist() == image[[9, 10, 11]].tolist()


def test_inputs_take_the_precision_of_the_model(siglip_folder: Path, prompts):
    vlm = load_vlm(siglip_folder, device="cpu", dtype="bfloat16", check=False)
    batch = vlm.encode(prompts)
    assert batch.inputs["pixel_values"].dtype == torch.bfloat16
    assert {batch.inputs[key].dtype for key in ("input_ids", "position_ids", "attention_mask")} == {torch.int64}


def test_a_family_that_cannot_mix_rows_refuses_to(vlm: Vlm, prompts):
    apart = Vlm(name="x", model=vlm.model, processor=vlm.processor, family=replace(vlm.family, mixed_rows=False))
    assert len(apart.encode(prompts[:2])) == 2
    assert len(apart.encode(prompts[2:])) == 1
    message = "LLaVA 1.5 sees blank pictures where a prompt has fewer than another .* with 0 and 1 and 2 pictures apart"
    with pytest.raises(RunError, match=message):
        apart.encode([*prompts, ask("red", picture(1), picture(2))])


def test_positions_that_a_family_gives_go_to_the_model_with_whatever_else_it_needs(vlm: Vlm):
    def extra(model, inputs):
        return {"position_ids": inputs["input_ids"] * 0, "pixel_weights": torch.ones(1)}

    odd = Vlm(name="x", model=vlm.model, processor=vlm.processor, family=replace(vlm.family, extra=extra))
    batch = odd.encode([ask("red card")])
    assert batch.inputs["position_ids"].tolist() == [[0] * batch.width]
    assert list(batch.extra) == ["pixel_weights"]


def test_spans_tell_where_they_are(each: Vlm, prompts):
    batch = each.encode(prompts)
    assert batch.has("vision.0.resid_post", "image.object.1")
    assert batch.has(Site("projector", "out"), "image")
    assert batch.has("lm.0.mlp_out", "question")
    assert not batch.has("vision.0.resid_post", "question")
    assert not batch.has("lm.0.mlp_out", "intermediate")
    assert not each.encode(prompts[2:]).has("projector.out", "image")


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1)])
def test_a_picture_one_pixel_wide_is_where_its_tokens_are(vlm: Vlm, size: tuple[int, int]):
    box = Box(left=0, top=0, right=size[0], bottom=size[1])
    batch = vlm.encode([ask("red ?", picture(0, size=size, boxes=(box,)))])
    assert torch.equal(batch.spans[0]["image.object.0"], batch.spans[0]["image"])


def test_what_the_processor_refuses_is_told_in_one_line(tmp_path: Path):
    vlm = load_vlm(BUILDERS["qwen2_vl"](tmp_path), device="cpu", check=False)
    with pytest.raises(RunError, match=r"^the processor refuses '0': .*aspect ratio"):
        vlm.encode([ask("red ?", picture(0, size=(2, 1000)))])
    with pytest.raises(SpanError, match=r"contains the placeholder '<\|video_pad\|>'"):
        vlm.encode([ask("red <|video_pad|> ?", picture(0))])


def test_a_flat_picture_in_a_tile_has_its_object(tmp_path: Path):
    """In the first tile a single row of pixels shows it."""
    vlm = load_vlm(BUILDERS["mllama"](tmp_path), device="cpu", check=False)
    box = Box(left=0, top=0, right=2000, bottom=20)
    visual = vlm.encode([ask("red ?", picture(0, size=(2000, 20), boxes=(box,)))]).visual
    assert visual is not None
    assert len(visual.spans["projector"][0]["image.object.0"]) >= 4


def test_answers_are_texts(vlm: Vlm):
    for answers in ("x", ["one", None], [3]):
        with pytest.raises(RunError, match="answers are a list of texts"):
            vlm.encode([ask("red ?")] * len(answers), answers=answers)


def test_a_box_has_its_edges_in_order():
    for edges in ((20, 0, 10, 5), (0, 9, 5, 3), (0, 0, float("nan"), 1)):
        with pytest.raises(SpanError, match="edges in the wrong order"):
            Box(left=edges[0], top=edges[1], right=edges[2], bottom=edges[3])
