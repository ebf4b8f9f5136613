"""Every self-check passes on sound models, and fails on a model that is broken in its way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seamscope.hooks import ModelError, Vlm, _load, load_vlm, run_checks
from seamscope.hooks._checks import CHECKS
from seamscope.hooks.families._llava import LLAVA

from .conftest import footprint


@pytest.fixture
def fresh(siglip_folder: Path) -> Vlm:
    """A model of its own for each test, to be broken."""
    return load_vlm(siglip_folder, device="cpu", check=False)


def failures(vlm: Vlm) -> dict[str, str]:
    return {check.name: check.detail for check in run_checks(vlm) if not check.passed}


def with_table(vlm: Vlm, **changes) -> Vlm:
    return Vlm(name="broken", model=vlm.model, processor=vlm.processor, family=replace(LLAVA, **changes))


def test_sound_models_pass_quickly_and_are_left_clean(each: Vlm):
    before = footprint(each)
    checks = run_checks(each)
    assert [check.name for check in checks] == ["runs", *CHECKS]
    assert all(check.passed and check.detail == "as expected" for check in checks)
    assert sum(check.seconds for check in checks) < 2
    assert footprint(each) == before


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"parts": {"mid_in": "input_layernorm"}}, "residual_stream"),
        ({"parts": {"mlp_out": "self_attn"}}, "residual_stream"),
        ({"parts": {"attn_out": "mlp"}}, "residual_stream"),
        ({"parts": {"o_proj": "mlp.gate_proj"}}, "residual_stream"),
        ({"projector": "model.multi_modal_projector.linear_1"}, "spans"),
    ],
)
def test_a_wrong_table_is_found_out(fresh: Vlm, changes, check):
    assert check in failures(with_table(fresh, **changes))


def test_a_norm_that_is_not_the_last(fresh: Vlm):
    fresh.anatomy = replace(fresh.anatomy, norm=fresh.anatomy.layers[0].block.input_layernorm)
    assert "unembedding the last resid_post misses the logits by" in failures(fresh)["lens"]


def test_layers_in_another_order(fresh: Vlm):
    fresh.anatomy = replace(fresh.anatomy, layers=fresh.anatomy.layers[::-1])
    found = failures(fresh)
    assert found["capture"] == "lm.0.resid_pre is not the model's hidden state 0"
    assert "lens" in found


def test_families_that_do_not_mix_rows_pad_each_kind_by_itself(fresh: Vlm, monkeypatch):
    apart, sizes, encode = with_table(fresh, mixed_rows=False), [], Vlm.encode

    def counting(vlm: Vlm, prompts, **options):
        sizes.append({len(each.pictures) for each in prompts})
        return encode(vlm, prompts, **options)

    monkeypatch.setattr(Vlm, "encode", counting)
    assert not failures(apart)
    assert {0, 1} not in sizes
    assert not failures(fresh)
    assert {0, 1} in sizes


def test_a_table_that_does_not_fit_is_refused(fresh: Vlm):
    with pytest.raises(ModelError, match=r"LlavaForConditionalGeneration has no module 'model.tower'"):
        with_table(fresh, tower="model.tower")


def test_an_image_that_is_ignored(fresh: Vlm, monkeypatch):
    projector = fresh.anatomy.projector
    monkeypatch.setattr(projector, "forward", lambda features: torch.ones(*features.shape[:2], 32))
    assert failures(fresh)["visual_route"] == "another image gives the same logits"


def test_an_image_that_takes_another_way(fresh: Vlm, monkeypatch):
    """As DeepStack does, the tower's features are added again behind the projector."""
    add_behind(fresh, fresh.anatomy.tower.embeddings, monkeypatch)
    told = failures(fresh)["visual_route"]
    tower = "vision.0.resid_post, vision.1.resid_post, vision.2.resid_post"
    assert told.startswith(f"patching {tower} with the other image's misses its logits by")


def test_features_that_pass_the_projector_by(fresh: Vlm, monkeypatch):
    """They come from the tower's layers, so that only what comes to the decoder tells."""
    add_behind(fresh, fresh.anatomy.tower_layers[2], monkeypatch)
    told = failures(fresh)["visual_route"]
    assert told.startswith("patching projector.out with the other image's misses its logits by")


def add_behind(vlm: Vlm, source: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add what a module of the tower gives to the output of decoder layer 1."""
    seen, layer = {}, vlm.anatomy.layers[1].block
    source.register_forward_hook(lambda m, a, output: seen.update(x=output[:, :1, :1]))
    old = layer.forward

    def bypass(h, *args, **kwargs):
        return old(h, *args, **kwargs) + (seen["x"] if len(seen["x"]) == len(h) else 0)

    monkeypatch.setattr(layer, "forward", bypass)


def test_logits_that_are_not_the_heads(fresh: Vlm, monkeypatch):
    old = fresh.model.forward

    def capped(**inputs):
        out = old(**inputs)
        out.logits = out.logits.tanh()
        return out

    monkeypatch.setattr(fresh.model, "forward", capped)
    found = failures(fresh)
    assert "lm.logits miss the model's logits by" in found["capture"]
    assert "unembedding the last resid_post misses the logits" in found["lens"]


def test_padding_that_is_seen(fresh: Vlm, monkeypatch):
    old = fresh.model.forward
    monkeypatch.setattr(fresh.model, "forward", lambda attention_mask, position_ids, **inputs: old(**inputs))
    assert "padded on the left, a batch misses its items alone by" in failures(fresh)["padding"]


def test_attention_that_cannot_be_cut(fresh: Vlm, monkeypatch):
    """A model whose attention does not ask its configuration which function to use."""
    for layer in fresh.anatomy.layers:
        attn, config = layer.attn, layer.attn.config
        old = attn.forward

        def deaf(*args, attn=attn, config=config, old=old, **kwargs):
            mine, attn.config = attn.config, config
            try:
                return old(*args, **kwargs)
            finally:
                attn.config = mine

        monkeypatch.setattr(attn, "forward", deaf)
    assert "with the image cut off, it still changes the last logits" in failures(fresh)["knockout"]


def test_values_that_are_not_used_again(fresh: Vlm, monkeypatch):
    """A layer that keeps its own copy of the stream is not moved by a patch of its input."""
    layer, kept = fresh.anatomy.layers[2].block, {}
    old = layer.forward
    fresh.anatomy.layers[1].block.register_forward_hook(lambda m, a, output: kept.update(x=output))
    monkeypatch.setattr(layer, "forward", lambda h, *a, **k: old(kept["x"], *a, **k))
    assert failures(fresh)["layer_swap"].startswith("patching lm.2.resid_pre with the other prompt's misses")


def test_a_model_that_cannot_run_is_told_once(fresh: Vlm):
    fresh.processor.chat_template = None
    (check,) = run_checks(fresh)
    assert (check.name, check.passed) == ("runs", False)
    assert check.detail == "ModelError: the checkpoint's LlavaProcessor has no chat template"


def test_load_refuses_what_fails_and_names_the_check(siglip_folder: Path, monkeypatch):
    broken = replace(LLAVA, parts={"mid_in": "input_layernorm"})
    monkeypatch.setattr(_load, "family_of", lambda config: broken)
    with pytest.raises(ModelError, match=r"cannot be trusted: residual_stream: lm.0.resid_mid is not"):
        load_vlm(siglip_folder, device="cpu")


def test_a_model_with_numbers_that_are_none_is_refused(fresh: Vlm):
    with torch.no_grad():
        fresh.anatomy.layers[1].mlp_out.down_proj.weight[0, 0] = float("nan")
    assert "padding" in failures(fresh)
