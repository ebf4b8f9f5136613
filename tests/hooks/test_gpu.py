"""The same promises on an accelerator, with values that come from the host."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seamscope.hooks import Attribution, Cut, Edit, Patch, capture, direct_path, knockout, load_vlm, patch, replay

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


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_a_replay_equals_whole_passes(siglip_folder: Path, prompts, attn):
    vlm = load_vlm(siglip_folder, device="cuda", attn_implementation=attn)
    batch = vlm.encode(prompts[:1], answers=["1"])
    sites = ["lm.0.resid_post", "lm.1.mlp_out", "lm.2.head_z"]
    with capture(vlm, sites) as acts:
        vlm.forward(batch)
    at = torch.tensor([2, batch.width - 3])
    edits = [Edit(site=site, positions=at, values=2 * acts[site][0][at].cpu()) for site in sites]
    cut = Cut(layers=(1, 2), queries=torch.tensor([batch.width - 2]), keys=torch.tensor([1, 2, 3]))
    cells = [*edits, cut, [edits[0], cut], edits]
    run = replay(vlm, batch, proofs=len(cells))
    found = run.score(cells)
    assert run.exact
    assert found.logprob.std() > 1e-4
    assert run.score([direct_path(run, edits[1], "lm.3.mlp_out")]).logprob.isfinite().all()
    estimate = Attribution(vlm, batch, sites[:1]).estimate(sites[0], torch.ones_like(acts[sites[0]][0]))
    assert estimate.shape == (batch.width,)
