"""Fitting a tuned lens: the streams of all layers are captured once, and all translators trained together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from tqdm import tqdm

from seamscope.hooks import Batch, RunError, SpanError, Vlm, capture, choose
from seamscope.probes._lens import tokens_at_once
from seamscope.probes._tuned_lens import Translator, TunedLens, begun, losses_table, translated

if TYPE_CHECKING:
    from jaxtyping import Float

_TOKENS: Final = "read by a lens"  # the span of all tokens that a lens is fitted on


def fit_tuned_lens(
    vlm: Vlm,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch],
    spans: str | Sequence[str] | None = None,
    steps: int = 500,
    learning_rate: float = 1e-3,
    batch_size: int = 512,
    seed: int = 0,
    progress: bool = False,
) -> TunedLens:
    """Fit the translators of all layers at once, by Adam with a rate that falls to zero, starting from identity.

    The model runs once over each batch; its streams are kept in memory, `n_layers * d_model` numbers for each token.

    Args:
        vlm: the model, which stays as it is.
        batches: what it is fitted on.
        held_out: what it is only tried on; no image or question of it should be in `batches`.
        spans: names of the spans whose tokens count, each token once; None: every token but padding.
        steps: number of steps; with 0 it is the logit lens.
        learning_rate: the rate of the first step.
        batch_size: tokens of a step, drawn with replacement.
        seed: of these draws.
        progress: show a progress bar.

    Raises:
        SpanError: for spans that no batch has.
        RunError: for numbers out of range, no batches, or a fit that diverges.
    """
    if steps < 0 or learning_rate <= 0 or batch_size < 1:
        raise RunError(f"{steps=}, {learning_rate=}, {batch_size=}; expected at least 0, above 0, at least 1")
    names = [spans] if isinstance(spans, str) else spans
    seen, unseen = (_streams(vlm, each, names) for each in (batches, held_out))
    start = begun(vlm, vlm.device)
    made = _trained(vlm, seen, start, steps=steps, rate=learning_rate, size=batch_size, seed=seed, progress=progress)
    columns = [_divergences(vlm, streams, each) for streams in (seen, unseen) for each in (start, made)]
    losses = torch.stack(columns, dim=1)
    if not losses.isfinite().all() or losses[:, 1].sum() > losses[:, 0].sum():
        raise RunError(f"the fit diverges: it ends farther from the model than it began; lower {learning_rate=}")
    fitted = {"spans": None if names is None else list(names), "steps": steps, "learning_rate": learning_rate}
    sizes = {"batch_size": batch_size, "seed": seed, "tokens": seen.shape[1], "held_out_tokens": unseen.shape[1]}
    weights, biases = zip(*made, strict=True) if made else ((), ())
    return TunedLens(vlm, weights, biases, losses=losses_table(losses), fitted=fitted | sizes)


def _streams(vlm: Vlm, batches: Sequence[Batch], spans: Sequence[str] | None) -> Float[Tensor, "layers tokens d_model"]:
    """The output of every layer at the chosen tokens of all batches, each token once."""
    if not batches:
        raise RunError("nothing to fit or to try a lens on: an empty list of batches")
    known = dict.fromkeys(name for batch in batches for row in batch.spans for name in row)
    for name in spans or ():
        choose("span", name, known, SpanError)
    chosen = [replace(batch, spans=_marked(batch, spans)) for batch in batches]
    total = sum(len(row[_TOKENS]) for batch in chosen for row in batch.spans)
    if not total:
        raise SpanError(f"the batches have no tokens of the spans {spans}")
    sites = [f"lm.{layer}.resid_post" for layer in range(vlm.n_layers)]
    held = torch.empty(len(sites), total, vlm.d_model, dtype=vlm.dtype)
    start = 0
    for batch in chosen:
        with capture(vlm, sites, spans=_TOKENS) as acts:
            vlm.forward(batch, logits_to_keep=1)
        count = acts[sites[0], _TOKENS].values.shape[0]
        for layer, site in enumerate(sites):
            held[layer, start : start + count] = acts[site, _TOKENS].values
        start += count
    return held


def _marked(batch: Batch, spans: Sequence[str] | None) -> tuple[dict[str, Tensor], ...]:
    """One span for each row: all its tokens of some spans, or all but padding."""
    if spans is None:
        return tuple({_TOKENS: mask.nonzero().flatten().cpu()} for mask in batch.inputs["attention_mask"])
    return tuple({_TOKENS: _union([row[name] for name in spans if name in row])} for row in batch.spans)


def _union(positions: list[Tensor]) -> Tensor:
    return torch.unique(torch.cat([torch.zeros(0, dtype=torch.long), *positions]))  # type: ignore[no-any-return]


def _trained(
    vlm: Vlm,
    streams: Tensor,
    start: list[Translator],
    *,
    steps: int,
    rate: float,
    size: int,
    seed: int,
    progress: bool,
) -> list[Translator]:
    """Take all steps; only the translators get gradients, one layer's logits are held at a time."""
    made = [(weight.clone().requires_grad_(), bias.clone().requires_grad_()) for weight, bias in start]
    if not made or not steps:
        return start
    optimizer = torch.optim.Adam([each for pair in made for each in pair], lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="tuned lens", unit="step", disable=not progress):
        tokens = torch.randint(streams.shape[1], (size,), generator=draw)
        here = streams[:, tokens].to(vlm.device)
        final = _final(vlm, here[-1])
        for pair, stream in zip(made, here, strict=False):  # the last layer has no translator
            torch.autograd.backward(_divergence(vlm, final, translated(stream, *pair)), inputs=pair)
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    return [(weight.detach(), bias.detach()) for weight, bias in made]


def _divergences(vlm: Vlm, streams: Tensor, made: list[Translator]) -> Float[Tensor, " layers"]:
    """Mean KL(final || lens) of every layer, in nats; the last one's is 0."""
    sums = torch.zeros(len(streams), dtype=torch.float64)
    with torch.no_grad():
        for part in torch.split(streams, tokens_at_once(vlm), dim=1):
            here = part.to(vlm.device)
            final = _final(vlm, here[-1])
            for layer, stream in enumerate(here):
                read = translated(stream, *made[layer]) if layer < len(made) else stream
                sums[layer] += _divergence(vlm, final, read).cpu()
    return sums / streams.shape[1]


def _final(vlm: Vlm, stream: Tensor) -> Tensor:
    with torch.no_grad():
        return vlm.unembed(stream).float().log_softmax(-1)


def _divergence(vlm: Vlm, final: Tensor, stream: Tensor) -> Tensor:
    """KL(final || lens), summed over tokens: means would underflow as gradients of float16."""
    return kl_div(vlm.unembed(stream).float().log_softmax(-1), final, reduction="sum", log_target=True)
