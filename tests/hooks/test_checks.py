"""Every self-check passes on sound models, and fails on a model that is broken in its way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seamscope.hooks import ModelError, Vlm, _load, load_vlm, run_checks
from seamscope.hooks._checks import CHECKS
from seamscope.hooks._families import LLAVA

from .conftest import footprint


@pytest.fixture
def fresh(siglip_folder: Path) -> Vlm:
    """A model of its own for each test, to be broken."""
    return load_vlm(siglip_folder, device="cpu", check=False)


def failures(vlm: Vlm) -> dict[str, str]:
    return {check.name: check.detail for check in run_checks(vlm) if not check.passed}


def with_table(vlm: Vlm, **changes: str) -> Vlm:
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
        ({"layer_mid_norm": "input_layernorm"}, "residual_stream"),
        ({"layer_mlp_out": "self_attn"}, "residual_stream"),
        ({"layer_attn_out": "mlp"}, "residual_stream"),
        ({"layer_o_proj": "mlp.gate_proj"}, "residual_stream"),
        ({"norm": "layers.0.input_layernorm"}, "lens"),
        ({"projector": "model.multi_modal_projector.linear_1"}, "spans"),
    ],
)
def test_a_wrong_table_is_found_out(fresh: Vlm, changes, check):
    assert check in failures(with_table(fresh, **changes))


def test_a_table_that_does_not_fit_is_refused(fresh: Vlm):
    with pytest.raises(ModelError, match=r"LlavaForConditionalGeneration has no module 'model.tower'"):
        with_table(fresh, tower="model.tower")


def test_an_image_that_is_ignored(fresh: Vlm, monkeypatch):
    projector = fresh.anatomy.projector
    monkeypatch.setattr(projector, "forward", lambda features: torch.ones(*features.shape[:2], 32))
    assert failures(fresh)["visual_route"] == "another image gives the same logits"


def test_an_image_that_takes_another_way(fresh: Vlm, monkeypatch):
    """As DeepStack does, the tower's features are added again behind the projector."""
    seen, layer = {}, fresh.anatomy.layers[1]
    fresh.anatomy.tower.embeddings.register_forward_hook(lambda m, a, output: seen.update(x=output[:, :1, :1]))
    old = layer.forward

    def bypass(h, *args, **kwargs):
        return old(h, *args, **kwargs) + (seen["x"] if len(seen["x"]) == len(h) else 0)

    monkeypatch.setattr(layer, "forward", bypass)
    assert "patching vision.2.resid_post with the other image's misses its logits" in failures(fresh)["visual_route"]


def test_logits_that_are_not_the_heads(fresh: Vlm, monkeypatch):
    old = fresh.model.forward

    def capped(**inputs):
        out = old(**inputs)
        out.logits = out.logits.tanh()
        return out

    monkeypatch.setattr(fresh.model, "forward", capped)
    found = failures(fresh)
    assert found["capture"] == "lm.logits are not the model's logits"
    assert "unembedding the last resid_post misses the logits" in found["lens"]


def test_padding_that_is_seen(fresh: Vlm, monkeypatch):
    old = fresh.model.forward
    monkeypatch.setattr(fresh.model, "forward", lambda attention_mask, position_ids, **inputs: old(**inputs))
    assert "padded on the left, a batch misses its items alone by" in failures(fresh)["padding"]


def test_attention_that_cannot_be_cut(fresh: Vlm, monkeypatch):
    """A model whose attention does not ask its configuration which function to use."""
    for layer in fresh.anatomy.layers:
        attn, config = layer.self_attn, layer.self_attn.config
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
    layer, kept = fresh.anatomy.layers[2], {}
    old = layer.forward
    fresh.anatomy.layers[1].register_forward_hook(lambda m, a, output: kept.update(x=output))
    monkeypatch.setattr(layer, "forward", lambda h, *a, **k: old(kept["x"], *a, **k))
    assert failures(fresh)["layer_swap"].startswith("patching lm.2.resid_pre with the other prompt's misses")


def test_a_model_that_cannot_run_is_told_once(fresh: Vlm):
    fresh.processor.chat_template = None
    (check,) = run_checks(fresh)
    assert (check.name, check.passed) == ("runs", False)
    assert check.detail == "ModelError: the checkpoint's LlavaProcessor has no chat template"


def test_load_refuses_what_fails_and_names_the_check(siglip_folder: Path, monkeypatch):
    broken = replace(LLAVA, norm="layers.0.input_layernorm")
    monkeypatch.setattr(_load, "family_of", lambda config: broken)
    with pytest.raises(ModelError, match="cannot be trusted: lens: unembedding the last resid_post misses"):
        load_vlm(siglip_folder, device="cpu")


def test_a_model_with_numbers_that_are_none_is_refused(fresh: Vlm):
    with torch.no_grad():
        fresh.anatomy.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    assert "padding" in failures(fresh)
