"""The same promises on an accelerator, with values that come from the host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seamscope.hooks import Patch, capture, knockout, load_vlm, patch

from .conftest import footprint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_values_from_the_host_are_moved_to_where_they_are_written(siglip_folder: Path, prompts, attn):
    vlm = load_vlm(siglip_folder, device="cuda", attn_implementation=attn)
    assert vlm.device.type == "cuda"
    batch, before = vlm.encode(prompts), footprint(vlm)
    with capture(vlm, "*") as whole, capture(vlm, "*", spans="image") as acts:
        logits = vlm.forward(batch)
    for site in vlm.sites:
        for edit in (Patch(site, whole[site].cpu()), Patch(site, acts[site, "image"].to("cpu"), span="image")):
            with patch(vlm, edit):
                assert torch.allclose(vlm.forward(batch), logits, atol=1e-5), site
    with knockout(vlm, queries="prompt", keys="image", layers=range(4)):
        assert not torch.allclose(vlm.forward(batch), logits, atol=1e-3)
    assert vlm.score(vlm.encode(prompts, answers=["1", "2", "3"])).logprob.isfinite().all()
    assert len(vlm.generate(batch, max_new_tokens=2)) == 3
    assert footprint(vlm) == before
