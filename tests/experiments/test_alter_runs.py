"""Planted alterations are alike in every kind of run: continued, replayed in parts, alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seamscope.hooks import Batch, Cut, Edit, Patch, Vlm, capture, knockout, patch, replay
from seamscope.hooks._wiring import Wiring

from ._altered import EVERY, ITEMS, KINDS, altered, direct

Parts = list[Edit | Cut]


@KINDS
def test_a_continued_run_is_as_altered_as_a_whole_one(composing: Vlm, kind: str) -> None:
    """What is generated with a cache is what one pass over all of it finds likeliest, token by token, to the end."""
    vlm = altered(*EVERY[kind])
    said = vlm.generate(direct(vlm, condition="cot"), max_new_tokens=20)
    scores = vlm.score(vlm.encode(ITEMS, condition="cot", answers=said))
    assert scores.greedy.all()
    plain = composing.generate(direct(composing, condition="cot"), max_new_tokens=20)
    assert sum(one != other for one, other in zip(said, plain, strict=True)) >= 2
    assert not composing.score(composing.encode(ITEMS, condition="cot", answers=said)).greedy.all()
    assert vlm.generate(direct(vlm, condition="oracle"), max_new_tokens=3) == composing.generate(
        direct(composing, condition="oracle"), max_new_tokens=3
    )


def cells_of(vlm: Vlm, batch: Batch) -> list[Parts]:
    """Edits at image positions and behind them, at sites of every kind; several at once; and cut attention."""
    rng = torch.Generator().manual_seed(1)
    image, last = batch.spans[0]["image"], batch.spans[0]["last"]

    def edit(site: str, positions: Tensor) -> Edit:
        with capture(vlm, site) as acts:
            vlm.forward(batch)
        there = acts[site][0][positions]
        return Edit(site=site, positions=positions, values=there + torch.randn(there.shape, generator=rng))

    single = [
        edit(site, positions)
        for site in ("lm.embed", "lm.1.resid_pre", "lm.1.head_z", "lm.2.resid_post", "lm.2.attn_out", "lm.4.mlp_out")
        for positions in (image[5:9], torch.cat([image[-2:], last]))
    ]
    cut = Cut(layers=(1, 2), queries=last, keys=image[10:20])
    several: list[Parts] = [[single[0], single[7]], [single[2], single[10]], [single[4], single[9], cut], [cut]]
    return [*([each] for each in single), *several]


def by_whole_pass(vlm: Vlm, batch: Batch, parts: Parts) -> float:
    """The log-probability of the answer with all of it patched around one pass."""
    named = {f"{k}": part.positions for k, part in enumerate(parts) if isinstance(part, Edit)}
    named |= {f"{k} {s}": getattr(part, s) for k, part in enumerate(parts) if isinstance(part, Cut) for s in SIDES}
    own = replace(batch, spans=({**batch.spans[0], **named},))
    with ExitStack() as stack:
        for k, part in enumerate(parts):
            if isinstance(part, Cut):
                stack.enter_context(knockout(vlm, queries=f"{k} queries", keys=f"{k} keys", layers=part.layers))
            else:
                stack.enter_context(patch(vlm, Patch(part.site, _giving(part.values), span=f"{k}")))
        return float(vlm.score(own).logprob)


SIDES = ("queries", "keys")


def _giving(values: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: values


@KINDS
def test_a_replay_meets_the_same_fault(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = altered(*EVERY[kind])
    batch = vlm.encode(ITEMS[:1], condition="direct", answers=[ITEMS[0].answer])
    cells = cells_of(vlm, batch)
    wanted = torch.tensor([by_whole_pass(vlm, batch, cell) for cell in cells])
    assert wanted.std() > 1e-2
    run = replay(vlm, batch, proofs=3)  # a warning would be an error
    torch.testing.assert_close(run.score(cells).logprob, wanted, rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(run.score(cells, budget=1).logprob, wanted, rtol=2e-5, atol=2e-5)
    assert run.exact
    if kind in ("tower", "projector"):
        return  # before the decoder: no layer is run by itself
    monkeypatch.setattr(Wiring, "giving", lambda self, batch, positions: ExitStack())  # layers are told nothing
    assert (replay(vlm, batch, proofs=0).score(cells).logprob - wanted).abs().max() > 1e-2


@KINDS
def test_a_batch_is_its_rows(kind: str) -> None:
    """Of different lengths, under either padding."""
    vlm = altered(*EVERY[kind])
    prompts = [ITEMS[0].prompt("direct"), ITEMS[1].prompt("cot"), ITEMS[2].prompt("oracle"), ITEMS[3].prompt("direct")]
    for padding in ("left", "right"):
        batch = vlm.encode(prompts, padding=padding)
        logits, held = vlm.forward(batch), batch.inputs["attention_mask"].bool()
        for row, prompt in enumerate(prompts):
            alone = vlm.forward(vlm.encode([prompt]))[0]
            torch.testing.assert_close(logits[row, held[row]], alone, rtol=1e-4, atol=1e-4)
