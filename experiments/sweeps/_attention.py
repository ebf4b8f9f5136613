"""Counterfactual attention: the same weight on the same tokens, but not where the model put it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from seamscope.hooks import Edit, ModelError, RunError, Site, Vlm, capture, choose

from ._experiment import Who
from ._routes import CUT, PAIRS, positions
from ._runs import Runs
from ._sweep import Plan
from ._trials import Trial

NEAR: Final = 1e-3  # of the largest number: how far weights times values may be from what a head gives


def _uniform(weights: Tensor, _: torch.Generator) -> Tensor:
    return weights.mean(-1, keepdim=True).expand_as(weights)


def _reversed(weights: Tensor, _: torch.Generator) -> Tensor:
    return weights.flip(-1)


def _shuffled(weights: Tensor, rng: torch.Generator) -> Tensor:
    return weights[..., torch.randperm(weights.shape[-1], generator=rng).to(weights.device)]


WAYS: Final[dict[str, Callable[[Tensor, torch.Generator], Tensor]]] = {
    "uniform": _uniform,
    "reversed": _reversed,
    "shuffled": _shuffled,
}


def counterfactual_attention(
    vlm: Vlm,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    ways: Sequence[str] = tuple(WAYS),
    run: Who = CUT,
    seed: int = 0,
) -> Plan:
    """Weights from one span set to another made `uniform`, `reversed` or `shuffled`, layer by layer (2410.04780).

    In every head and for every query, the weight that the span set gets altogether stays. An answer that does not
    change did not depend on which of the tokens that layer looked at; knockout asks whether it looked at any.

    Args:
        vlm: the model, with eager attention, whose weights are seen.
        pairs: (queries, keys), names of span sets.
        ways: of `WAYS`.
        run: (item or partner, condition) of the run that is changed.
        seed: of the shuffles, the same in all heads and layers of an item.
    """
    for way in ways:
        choose("way to change attention", way, WAYS, RunError)
    layers = [k for k, layer in enumerate(vlm.anatomy.layers) if not layer.crossed]
    for layer in layers:
        vlm.point(f"lm.{layer}.pattern")

    def trials(runs: Runs) -> Iterator[Trial]:
        batch, recording = runs.batch(run), runs.replay(run).recording
        drawn = seed + sum(map(ord, runs.item.id))
        with capture(vlm, [f"lm.{k}.{kind}" for k in layers for kind in ("pattern", "head_z")]) as acts:
            vlm.forward(batch, logits_to_keep=1)
        for layer in layers:
            weights, mixed = acts[f"lm.{layer}.pattern"][0], acts[f"lm.{layer}.head_z"][0]
            values = recording.values(layer)
            _check(weights @ values, mixed.transpose(0, 1), layer)
            for queries, keys in pairs:
                asked, seen = (positions(runs, run, name) for name in (queries, keys))
                seen = None if seen is None or asked is None else seen[seen < asked.min()]
                if asked is None or seen is None or len(seen) < 2:
                    continue
                own = weights[:, asked][:, :, seen]
                for way in ways:
                    change = WAYS[way](own, torch.Generator().manual_seed(drawn)) - own
                    edit = Edit(
                        site=f"lm.{layer}.head_z",
                        positions=asked,
                        values=mixed[asked] + (change @ values[:, seen]).transpose(0, 1),
                    )
                    labels = {"queries": queries, "keys": keys, "first": layer, "last": layer}
                    yield Trial(labels={"experiment": f"attention_{way}", **labels}, parts=[edit], target=run)

    return trials


def _check(made: Tensor, mixed: Tensor, layer: int) -> None:
    """Refuse heads that do more than to mix values by their weights."""
    if (made - mixed).abs().max() > NEAR * mixed.abs().max().clamp(min=1e-6):
        raise ModelError(
            f"heads of {Site('lm', 'head_z', layer)} give something else than values mixed by their weights"
        )
