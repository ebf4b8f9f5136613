"""Modules read off toy models by name, and what is said of those that are not there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seamscope.hooks import Family, ModelError, Vlm
from seamscope.hooks._anatomy import Layer, anatomy_of


def named(**children: nn.Module) -> nn.Module:
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


def attention(projection: str = "o_proj") -> nn.Module:
    return named(q_proj=nn.Linear(6, 8), **{projection: nn.Linear(8, 6)})


def plain_layer(**changes: nn.Module | None) -> nn.Module:
    parts = {"self_attn": attention(), "post_attention_layernorm": nn.LayerNorm(6), "mlp": nn.Linear(6, 6)} | changes
    return named(**{name: part for name, part in parts.items() if part is not None})


def toy(layer: nn.Module | None = None, **changes: nn.Module | None) -> nn.Module:
    """A tower of one layer, a projector, a decoder of one layer, a head; `changes` are made to the inner model."""
    tower_layer = named(proj=nn.Linear(3, 5), layer_norm1=nn.LayerNorm(5))
    parts = {
        "vision_tower": named(encoder=named(layers=nn.ModuleList([tower_layer]))),
        "multi_modal_projector": nn.Linear(5, 6),
        "language_model": named(layers=nn.ModuleList([layer or plain_layer()]), norm=nn.LayerNorm(6)),
    } | changes
    model = named(model=named(**{name: part for name, part in parts.items() if part is not None}))
    model.get_output_embeddings = lambda: "the head"
    return model


PLAIN = Family(name="Toy", model_types=("toy",))


def table(**changes) -> Family:
    return Family(name="Toy", model_types=("toy",), **changes)


def test_a_plain_model_needs_no_table():
    model = toy()
    inner, found = model.model, anatomy_of(model, PLAIN)
    (layer,), (block,) = found.layers, inner.language_model.layers
    assert found.tower is inner.vision_tower
    assert found.tower_layers == tuple(inner.vision_tower.encoder.layers)
    assert found.tower_width == 5
    assert (found.projector, found.decoder) == (inner.multi_modal_projector, inner.language_model)
    assert (found.norm, found.head, found.embed, found.deepstack) == (inner.language_model.norm, "the head", None, ())
    assert (layer.block, layer.attn, layer.attn_out) == (block, block.self_attn, block.self_attn)
    assert (layer.o_proj, layer.mid_in, layer.mlp_out) == (
        block.self_attn.o_proj,
        block.post_attention_layernorm,
        block.mlp,
    )
    assert not layer.crossed
    assert layer.head_width(4) == 2


def test_parts_may_be_at_the_top_of_the_model():
    inner = toy().model
    inner.get_output_embeddings = lambda: None
    assert anatomy_of(inner, PLAIN).tower is inner.vision_tower


def test_other_names_are_known_and_the_first_of_them_wins():
    layer = plain_layer(self_attn=None, attention=attention("wo"), mlp=None, feed_forward=nn.Linear(6, 6))
    layer.ffn = nn.Linear(6, 6)
    model = toy(layer, vision_tower=None, visual=named(blocks=nn.ModuleList([nn.LayerNorm(5)])))
    found = anatomy_of(model, PLAIN)
    assert found.tower is model.model.visual
    assert found.layers[0].attn is layer.attention
    assert found.layers[0].o_proj is layer.attention.wo
    assert found.layers[0].mlp_out is layer.feed_forward


def test_in_a_layer_with_norms_behind_its_parts_those_are_what_is_added():
    """As in Gemma: the norm called post_attention_layernorm belongs to what attention gives."""
    layer = plain_layer(pre_feedforward_layernorm=nn.LayerNorm(6), post_feedforward_layernorm=nn.LayerNorm(6))
    found = anatomy_of(toy(layer), PLAIN).layers[0]
    assert found.attn is layer.self_attn
    assert found.attn_out is layer.post_attention_layernorm
    assert found.mid_in is layer.pre_feedforward_layernorm
    assert found.mlp_out is layer.post_feedforward_layernorm


def test_paths_of_a_table_come_before_names():
    layer = plain_layer(other=nn.Linear(8, 6), early=nn.LayerNorm(6))
    model = toy(layer, odd=nn.Linear(5, 6), deep=nn.ModuleList([nn.Linear(5, 6)] * 2), words=nn.Embedding(9, 6))
    family = table(
        projector="model.odd",
        embed="model.words",
        deepstack="model.deep",
        parts={"o_proj": "other", "mid_in": "early", "attn_out": "other"},
    )
    found = anatomy_of(model, family)
    assert found.projector is model.model.odd
    assert found.embed is model.model.words
    assert len(found.deepstack) == 2
    assert (found.layers[0].o_proj, found.layers[0].attn_out, found.layers[0].mid_in) == (
        layer.other,
        layer.other,
        layer.early,
    )
    assert found.layers[0].attn is layer.self_attn


def test_a_tower_may_have_several_stacks_or_be_missing():
    stacks = [named(layers=nn.ModuleList([nn.LayerNorm(5)] * n)) for n in (1, 2)]
    model = toy(vision_tower=named(near=stacks[0], far=stacks[1]))
    found = anatomy_of(model, table(tower_layers=("model.vision_tower.near", "model.vision_tower.far")))
    assert found.tower_layers == (*stacks[0].layers, *stacks[1].layers)
    bare = anatomy_of(toy(vision_tower=None), table(tower=""))
    assert (bare.tower, bare.tower_layers) == (None, ())


def test_a_layer_that_attends_to_the_image_from_outside_is_told_apart():
    crossing = anatomy_of(toy(plain_layer(self_attn=None, cross_attn=attention())), PLAIN).layers[0]
    both = anatomy_of(toy(plain_layer(cross_attn=attention())), PLAIN).layers[0]
    assert (crossing.crossed, both.crossed) == (True, False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: toy(vision_tower=None), "Module has no vision tower under any of the names vision_tower, visual,"),
        (lambda: toy(multi_modal_projector=None), "Module has no projector under any of the names multi_modal_proj"),
        (lambda: toy(language_model=None), "Module has no decoder under any of the names language_model, text_model,"),
        (lambda: toy(language_model=nn.Linear(1, 1)), "Linear has no list of layers"),
        (lambda: toy(vision_tower=nn.Linear(1, 1)), "Linear has no list of layers"),
        (
            lambda: toy(language_model=named(layers=nn.ModuleList([plain_layer()]))),
            "Module has no final norm under any of the names norm, final_layernorm, ln_f",
        ),
        (lambda: toy(plain_layer(self_attn=None)), "Module has no attention under any of the names self_attn,"),
        (lambda: toy(plain_layer(self_attn=attention("w"))), "Module has no output projection under any of the names"),
        (lambda: toy(plain_layer(mlp=None)), "Module has no MLP under any of the names mlp, feed_forward, ffn"),
        (lambda: toy(plain_layer(post_attention_layernorm=None)), "Module has no norm before the MLP under any of the"),
    ],
)
def test_what_is_missing_is_named_in_one_line(model, message: str):
    with pytest.raises(ModelError) as caught:
        anatomy_of(model(), PLAIN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tower": "model.eye"}, "Module has no module 'model.eye', where its family keeps it"),
        ({"projector": "model.language_model.layers.9"}, "no module 'model.language_model.layers.9'"),
        ({"decoder": "model.get_submodule"}, "no module 'model.get_submodule'"),  # something else of that name
        ({"deepstack": "model.deep"}, "no module 'model.deep'"),
        ({"tower_layers": ("model.vision_tower.blocks",)}, "no module 'model.vision_tower.blocks'"),
        ({"embed": "model.embed"}, "no module 'model.embed'"),
        ({"parts": {"mid_in": "norm2"}}, "no module 'norm2'"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(changes, message: str):
    with pytest.raises(ModelError) as caught:
        anatomy_of(toy(), table(**changes))
    assert message in str(caught.value)


def layer_with(**values: float) -> Layer:
    layer = plain_layer()
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(torch.tensor([value])))
    return anatomy_of(toy(layer), PLAIN).layers[0]


def test_what_a_layer_adds_goes_through_its_gate_and_its_end_through_its_scale():
    stream, given = torch.full((2,), 3.0), torch.full((2,), 5.0)
    with torch.no_grad():
        plain = layer_with()
        assert torch.equal(plain.added("attn_out", given), given)
        assert plain.close(stream, given).tolist() == [8, 8]
        gated = layer_with(cross_attn_attn_gate=0.5, cross_attn_mlp_gate=-0.25)
        assert torch.equal(gated.added("attn_out", given), torch.tensor(0.5).tanh() * given)
        assert torch.equal(gated.close(stream, given), stream + torch.tensor(-0.25).tanh() * given)
        assert torch.equal(layer_with(cross_attn_mlp_gate=0.0).close(stream, given), stream)
        assert layer_with(layer_scalar=0.5).close(stream, given).tolist() == [4, 4]


def test_the_parts_of_a_real_model_are_its_own_modules(each: Vlm):
    inner, found = each.model.model, each.anatomy
    assert found.tower is inner.vision_tower
    assert found.tower_layers == tuple(inner.vision_tower.encoder.layers)
    assert found.projector is inner.multi_modal_projector
    assert found.tower_width == 24
    assert found.head is each.model.lm_head
    for layer, block in zip(found.layers, inner.language_model.layers, strict=True):
        assert layer.block is block
        assert layer.mid_in is block.post_attention_layernorm
        assert layer.head_width(each.n_heads) == 8
