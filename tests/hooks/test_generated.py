"""Activations at generated tokens, against one forward pass over prompt and continuation together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from seamscope.hooks import Batch, Ragged, SiteError, SpanError, Vlm, capture, load_vlm
from seamscope.hooks._trial import prompt

from ..checkpoints import BUILDERS

SITES = ("lm.*.resid_post", "lm.*.mlp_out", "lm.*.head_z", "lm.final_norm", "lm.logits")
LIMIT = 7


@pytest.fixture(scope="module", params=BUILDERS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    folder = BUILDERS[request.param](tmp_path_factory.mktemp(request.param))
    return load_vlm(folder, device="cpu", check=False)


def asked(vlm: Vlm) -> Batch:
    return vlm.encode([prompt(vlm, 6, image=0), prompt(vlm, 2, image=1), prompt(vlm, 3, image=2)])


def generate(vlm: Vlm, batch: Batch, *stops: int) -> Any:
    """Capture while generating; `stops` end a row as well, so that rows end at different steps."""
    config = vlm.model.generation_config
    before, config.eos_token_id = config.eos_token_id, [*stops, vlm.processor.tokenizer.eos_token_id]
    try:
        with capture(vlm, SITES, ["last", "generated"]) as acts:
            vlm.generate(batch, max_new_tokens=LIMIT)
    finally:
        config.eos_token_id = before
    return acts


def ending(rows: list[Tensor], stop: int) -> list[int]:
    """How many tokens of each row are read again if this one ends it."""
    return [row.tolist().index(stop) if stop in row else LIMIT - 1 for row in rows]


def continued(vlm: Vlm, batch: Batch, tokens: Ragged) -> Mapping[str, Tensor]:
    """The inputs of a batch with tokens written after each row, by hand."""
    new = torch.nn.utils.rnn.pad_sequence(tokens.split(), batch_first=True)
    there = torch.arange(new.shape[1]) < tokens.lengths[:, None]
    inputs = dict(batch.inputs)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], there.long()], dim=1)
    positions = inputs["position_ids"]
    steps = positions.max(0, keepdim=True)[0] if positions.ndim == 3 else positions
    later = steps[..., -1:] + 1 + torch.arange(new.shape[1])
    inputs["position_ids"] = torch.cat([positions, later.expand(*positions.shape[:-1], -1)], dim=-1)
    sees_all = "paligemma" in vlm.model.config.model_type  # there, type 0 is what is not causal
    for key in ("token_type_ids", "mm_token_type_ids"):
        if key in inputs:
            inputs[key] = torch.cat([inputs[key], torch.full_like(new, int(sees_all))], dim=1)
    if "cross_attention_mask" in inputs:
        mask = inputs["cross_attention_mask"]
        inputs["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, new.shape[1], -1, -1)], dim=1)
    return inputs


def test_generated_tokens_are_those_of_one_pass_over_everything(family: Vlm) -> None:
    batch = asked(family)
    free = generate(family, batch).generated.split()
    stop, ends = next((stop, ends) for stop in torch.cat(free).tolist() if len(set(ends := ending(free, stop))) > 1)
    acts = generate(family, batch, stop)

    assert acts.generated.lengths.tolist() == ends
    for row, whole, length in zip(acts.generated.split(), free, ends, strict=True):
        assert torch.equal(row, whole[:length])

    with torch.inference_mode(), capture(family, SITES) as whole:
        family.model(**continued(family, batch, acts.generated), use_cache=False)
    for site in acts.sites:
        found = acts[site, "generated"]
        assert found.lengths.tolist() == ends
        for row, tokens in enumerate(found.split()):
            torch.testing.assert_close(
                tokens, whole[site][row, batch.width : batch.width + len(tokens)], rtol=1e-4, atol=1e-4
            )
        last = whole[site][torch.arange(len(batch)), batch.width - 1]
        torch.testing.assert_close(acts[site, "last"].stack()[:, 0], last, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    return load_vlm(BUILDERS["llava"](tmp_path_factory.mktemp("llava")), device="cpu", attn_implementation="eager")


def test_a_step_is_read_at_its_own_token_and_not_at_a_prompt_position(vlm: Vlm) -> None:
    """In decoding the query is one token long: whoever indexes a prompt's position there gets the wrong row."""
    batch = asked(vlm)
    with capture(vlm, "lm.1.resid_post", ["last", "generated"]) as acts:
        vlm.generate(batch, max_new_tokens=4)
    last, steps = acts["lm.1.resid_post", "last"].stack(), acts["lm.1.resid_post", "generated"].stack()
    assert steps.shape[1] == 3
    for step in range(3):
        assert not torch.isclose(last[:, 0], steps[:, step]).all(-1).any()


def test_pooling_takes_all_steps_of_a_row_together(vlm: Vlm) -> None:
    batch = asked(vlm)
    with capture(vlm, "lm.2.mlp_out", "generated") as acts:
        vlm.generate(batch, max_new_tokens=4)
    with capture(vlm, "lm.2.mlp_out", "generated", pool="mean") as pooled:
        vlm.generate(batch, max_new_tokens=4)
    assert torch.equal(pooled["lm.2.mlp_out", "generated"].values, acts["lm.2.mlp_out", "generated"].mean())


def test_one_token_leaves_nothing_that_was_read_again(vlm: Vlm) -> None:
    with capture(vlm, "lm.0.resid_post", ["last", "generated"]) as acts:
        vlm.generate(asked(vlm), max_new_tokens=1)
    assert acts.generated is not None
    assert acts.generated.lengths.tolist() == [0, 0, 0]
    assert acts["lm.0.resid_post", "last"].lengths.tolist() == [1, 1, 1]
    assert acts["lm.0.resid_post", "generated"].lengths.tolist() == [0, 0, 0]


def test_generated_exists_while_generating_only(vlm: Vlm) -> None:
    batch = asked(vlm)
    with capture(vlm, "lm.0.resid_post", "generated"), pytest.raises(SpanError, match=r"inside vlm\.generate only"):
        vlm.forward(batch)
    with pytest.raises(SiteError, match="has no 'generated' tokens"), capture(vlm, "lm.0.pattern", "generated"):
        pass


def test_rows_that_end_at_once_are_empty_and_not_missing(vlm: Vlm) -> None:
    batch = vlm.encode([prompt(vlm, 6, image=0)])
    first = int(vlm.forward(batch)[0, -1].argmax())
    acts = generate(vlm, batch, first)
    assert acts.generated.lengths.tolist() == [0]
    found = acts["lm.2.resid_post", "generated"]
    assert found.lengths.tolist() == [0]
    assert found.values.shape == (0, vlm.d_model)
