"""Which family a model belongs to, and what happens to models that no table, or a wrong one, describes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from seamscope.hooks import Family, ModelError, Patch, Vlm, capture, families, load_vlm, patch
from seamscope.hooks.families import FAMILIES, family_of
from seamscope.hooks.families._llava import LLAVA
from seamscope.hooks.families._rules import plain_layout, plain_views

from ..checkpoints import BUILDERS
from ..checkpoints._fuyu import build_fuyu
from .conftest import CORNERS, ask, make_config, make_processor, picture, word_tokenizer


def config(kind: str, tower: str | None = None) -> SimpleNamespace:
    vision = {} if tower is None else {"vision_config": SimpleNamespace(model_type=tower)}
    return SimpleNamespace(model_type=kind, **vision)


def refusal(folder: Path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_vlm(folder, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No family is known."""
    monkeypatch.setattr(families, "FAMILIES", ())


# ---- whose is it ----


def test_every_table_is_for_models_that_transformers_has_and_names_some():
    for family in FAMILIES:
        assert set(family.model_types) <= set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES), family.name
        assert family.tower_type is None or family.tower_type in CONFIG_MAPPING_NAMES
        assert all(len(name.split("/")) == 2 for name in family.published)
        assert family.published
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_no_two_tables_are_for_the_same_models():
    owners = [(kind, family.tower_type) for family in FAMILIES for kind in family.model_types]
    assert len(set(owners)) == len(owners)


@pytest.mark.parametrize(
    ("kind", "tower", "name"),
    [
        ("llava", "clip_vision_model", "LLaVA 1.5"),
        ("llava", None, "LLaVA 1.5"),
        ("vipllava", "clip_vision_model", "LLaVA 1.5"),
        ("llava", "pixtral", "Pixtral"),
        ("mistral3", "pixtral", "Mistral 3"),
        ("qwen2_5_vl", None, "Qwen2.5-VL"),
    ],
)
def test_models_are_known_by_their_type_and_that_of_their_tower(kind: str, tower: str | None, name: str):
    assert family_of(config(kind, tower)).name == name


def test_a_type_that_is_not_known_gets_a_plain_family_to_try():
    assert family_of(config("brandnew")) == Family(name="brandnew", model_types=("brandnew",))


def test_a_table_shows_itself_without_its_rules():
    assert repr(LLAVA).startswith("Family(name='LLaVA 1.5', model_types=('llava', 'vipllava'), ")
    assert "function" not in repr(LLAVA)


# ---- what the sites of the tower are ----


@pytest.mark.parametrize("chosen", [-4, -3, -2, -1, 1, 2, 3])  # transformers itself takes 0 for none
def test_the_layers_that_are_read_are_those_that_matter(siglip_folder: Path, chosen: int):
    """`vision_feature_layer` counts hidden states, of which number 0 is the input of layer 0.

    Whichever the projector takes, layers up to the one that wrote it matter, later ones do not.
    """
    vlm = load_vlm(siglip_folder, device="cpu", check=False)
    vlm.model.config.vision_feature_layer = chosen
    batch = vlm.encode([ask("red ?", picture(1))])
    plain, read = vlm.forward(batch), chosen % 4 - 1
    for layer in range(3):
        with patch(vlm, Patch(f"vision.{layer}.resid_post", torch.zeros_like)):
            assert torch.equal(vlm.forward(batch), plain) == (layer > read)


@pytest.mark.parametrize("chosen", [[-1], [-2, 1], [1, 2, 3]])
def test_several_layers_may_be_read(tmp_path: Path, chosen: list[int]):
    """VipLLaVA, whose projector takes them end to end."""
    tokenizer = word_tokenizer()
    base = make_config("clip", tokenizer)
    settings = VipLlavaConfig(
        vision_config=base.vision_config,
        text_config=base.text_config,
        image_token_index=base.image_token_id,
        vision_feature_layers=chosen,
    )
    torch.manual_seed(0)
    VipLlavaForConditionalGeneration(settings).save_pretrained(tmp_path)
    make_processor("clip", tokenizer).save_pretrained(tmp_path)
    vlm = load_vlm(tmp_path, device="cpu")
    batch = vlm.encode([ask("red ?", picture(1))])
    plain, read = vlm.forward(batch), max(each % 4 - 1 for each in chosen)
    for layer in range(3):
        with patch(vlm, Patch(f"vision.{layer}.resid_post", torch.zeros_like)):
            assert torch.equal(vlm.forward(batch), plain) == (layer > read)


def test_image_tokens_find_their_place_in_a_tower_with_a_class_token(clip: Vlm):
    visual = clip.encode([ask("red", picture(1), picture(2)), ask("card", picture(3, boxes=CORNERS))]).visual
    assert visual.sizes == {"vision": 30, "projector": 27, "lm": 27}
    assert [row["image"].tolist() for row in visual.spans["vision"]] == [
        [*range(1, 10), *range(11, 20)],
        [*range(21, 30)],
    ]
    assert visual.spans["vision"][1]["image.object.1"].tolist() == [25, 26]
    assert visual.spans["projector"][1]["image.object.1"].tolist() == [22, 23]


# ---- models without a table ----


@pytest.mark.parametrize("name", ["llava", "internvl", "gemma3"])
def test_a_plain_model_of_an_unknown_family_is_read_off_its_modules(name: str, tmp_path: Path, unknown, monkeypatch):
    """It passes its self-checks, and everything in it is what it is with its family's table."""
    folder = BUILDERS[name](tmp_path / name)
    found = load_vlm(folder, device="cpu")
    assert found.family.published == ()
    assert found.family.name == found.model.config.model_type
    monkeypatch.setattr(families, "FAMILIES", FAMILIES)
    known = load_vlm(folder, device="cpu")
    assert known.family.published
    assert found.sites == known.sites
    asked = [ask("what is the sum ?", picture(1, size=(50, 37), boxes=CORNERS)), ask("red card")]
    first, second = found.encode(asked), known.encode(asked)
    for row, other in zip(first.spans, second.spans, strict=True):
        assert {name: index.tolist() for name, index in row.items()} == {name: i.tolist() for name, i in other.items()}
    with capture(found, "*") as acts, capture(known, "*") as wanted:
        assert torch.equal(found.forward(first), known.forward(second))
    assert all(torch.equal(acts[site], wanted[site]) for site in found.sites)


def test_fuyu_is_refused_by_what_it_lacks(tmp_path: Path):
    told = refusal(build_fuyu(tmp_path / "fuyu"))
    assert told.startswith("models of type 'fuyu' are not covered: its processor has no chat template")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen2_vl", "Qwen2VLForConditionalGeneration has no projector under any of the names multi_modal_projector"),
        ("gemma4_unified", "Gemma4UnifiedForConditionalGeneration has no vision tower under any of the names"),
        ("llava_next", "fails 1 self-checks, so its sites cannot be trusted: runs: SpanError: cannot tell which part"),
        ("mllama", "runs: SpanError: cannot tell which part of a picture of 4x4 patches its 0 tokens show"),
        pytest.param(
            *("paligemma", "runs: SpanError: item '0': the processor changes the text of question"),
            marks=pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # its processor's
        ),
    ],
)
def test_models_that_are_not_plain_are_refused_without_their_table(name: str, message: str, tmp_path: Path, unknown):
    assert message in refusal(BUILDERS[name](tmp_path / name))


# ---- tables that are wrong ----


def backwards(model, processor, inputs, n):
    """Says that the last image token shows the top left."""
    layout = plain_layout(model, processor, inputs, n)
    return replace(layout, lm=layout.lm[::-1])


def one_short(model, processor, inputs, n):
    """Says that the tower has a token less."""
    layout = plain_layout(model, processor, inputs, n)
    return replace(layout, vision=layout.vision[1:])


def too_few(model, processor, inputs, n):
    """Says that a picture has fewer image tokens than it has."""
    layout = plain_layout(model, processor, inputs, n)
    return replace(layout, lm=layout.lm[1:])


def warped(model, processor, inputs, n):
    """Gives a picture whose columns are not evenly spread."""
    return [
        view[:, :, np.arange(view.shape[2]) ** 2 // view.shape[2]] for view in plain_views(model, processor, inputs, n)
    ]


def late(model, inputs):
    """Counts padding as if it were tokens."""
    return {"position_ids": torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": backwards}, ": spans: lm.embed at the span image is not projector.out ("),
        ({"layout": one_short}, ": spans: vision.0.resid_post holds 18 tokens, its layout says 16"),
        ({"layout": too_few}, ": runs: SpanError: item '0' has 9 image tokens, but its pictures should give 8"),
        (
            {"projector": "model.multi_modal_projector.linear_1"},
            ": spans: lm.embed at the span image is not projector.out (",
        ),
        ({"parts": {"mid_in": "input_layernorm"}}, ": residual_stream: lm.0.resid_mid is not resid_pre + attn_out ("),
        ({"parts": {"attn_out": "mlp"}}, ": residual_stream: lm.0.head_z does not give attn_out ("),
        ({"parts": {"mlp_out": "self_attn"}}, ": residual_stream: lm.0.resid_post is not resid_mid + mlp_out ("),
        ({"tower_layers": ("model.language_model.layers",)}, "so its sites cannot be trusted: spans: vision.0.resid"),
        ({"tower": "model.tower"}, "LlavaForConditionalGeneration has no module 'model.tower', where its family keeps"),
        ({"views": warped}, ": spans: SpanError: cannot follow boxes: the processor does more to a picture than scale"),
    ],
)
def test_a_wrong_table_is_refused_by_the_check_that_fails(siglip_folder: Path, changes, message: str):
    """The same table passes without the change, which is what every other test loads."""
    told = refusal(siglip_folder, family=replace(LLAVA, **changes))
    assert message in told


def test_positions_that_count_padding_are_found_where_they_matter(siglip_folder: Path, vlm: Vlm):
    """Rotary positions are relative, so a row that starts late is as good; a family need not be refused for it."""
    shifted = load_vlm(siglip_folder, device="cpu", family=replace(LLAVA, extra=late))
    asked = [ask("what is the sum ?", picture(1)), ask("red")]
    got, wanted = (each.forward(each.encode(asked))[:, -1] for each in (shifted, vlm))
    assert torch.allclose(got, wanted, atol=1e-4)


def test_a_table_given_at_load_comes_before_the_known_one(siglip_folder: Path, monkeypatch):
    mine: Callable[..., Vlm] = load_vlm
    given = Family(name="Mine", model_types=("llava",))
    assert mine(siglip_folder, device="cpu", family=given).family is given
    monkeypatch.setattr(families, "FAMILIES", (replace(LLAVA, projector="model.gone"),))
    assert "has no module 'model.gone'" in refusal(siglip_folder)
