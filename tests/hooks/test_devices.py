"""A model spread over places: accelerate replaces `forward`, and keeps some weights on disk until they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seamscope.hooks import ModelError, Patch, Vlm, capture, knockout, load_vlm, patch
from seamscope.hooks._trial import prompt

from ..checkpoints import BUILDERS
from .conftest import footprint

pytestmark = pytest.mark.filterwarnings("ignore:.*meta device.*")


def spread(vlm: Vlm) -> dict[str, str]:
    """Every module with weights on the CPU, but for one decoder layer and the projector, which stay on disk."""
    layer, projector = vlm.anatomy.layers[1].block, vlm.anatomy.projector
    away = {id(module) for part in (layer, projector) for module in part.modules()}
    owners = ((name, module) for name, module in vlm.model.named_modules() if name)
    owners = ((name, module) for name, module in owners if list(module.parameters(recurse=False)))
    return {name: "disk" if id(module) in away else "cpu" for name, module in owners}


@pytest.fixture(scope="module", params=["llava", "qwen3_vl", "mllama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Vlm, Vlm]:
    """The same checkpoint in one place, and spread; its self-checks pass in both."""
    folder: Path = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    whole = load_vlm(folder, device="cpu", attn_implementation="eager")
    return whole, load_vlm(folder, device_map=spread(whole), attn_implementation="eager")


def test_a_spread_model_gives_the_same_tensors(pair: tuple[Vlm, Vlm]) -> None:
    whole, apart = pair
    assert apart.anatomy.layers[1].o_proj.weight.device.type == "meta", "one layer should not be in memory"
    batch = whole.encode([prompt(whole, 5, image=0), prompt(whole, 2, image=1)])
    with capture(whole, "*") as wanted:
        logits = whole.forward(batch)
    with capture(apart, "*") as found:
        assert torch.equal(apart.forward(apart.encode([prompt(apart, 5, image=0), prompt(apart, 2, image=1)])), logits)
    assert set(found) == set(wanted)
    assert all(torch.equal(found[site], wanted[site]) for site in wanted)


def test_a_spread_model_can_be_patched_and_cut_and_keeps_its_own_hooks(pair: tuple[Vlm, Vlm]) -> None:
    whole, apart = pair
    batch = whole.encode([prompt(whole, 5, image=0), prompt(whole, 2, image=1)])
    before, results = footprint(apart), []
    for vlm in pair:
        zero = [Patch("lm.1.resid_mid", torch.zeros_like, span="last"), Patch("lm.1.mlp_out", torch.neg, span="last")]
        with patch(vlm, zero), knockout(vlm, queries="last", keys="question", layers=[0, 1]):
            results.append(vlm.forward(batch))
    assert torch.equal(*results)
    assert not torch.equal(results[0], whole.forward(batch))
    assert footprint(apart) == before
    assert hasattr(apart.anatomy.layers[1].o_proj, "_hf_hook")


def test_a_device_map_takes_the_place_of_a_device(tmp_path: Path) -> None:
    folder = BUILDERS["llava"](tmp_path)
    with pytest.raises(ModelError, match="takes the place of device"):
        load_vlm(folder, device="cpu", device_map="auto")
    with pytest.raises(ModelError, match="trained weights"):
        load_vlm(folder, untrained=True, device_map="auto")
