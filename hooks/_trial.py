"""A small run of a model on noise, which the self-checks look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from seamscope.hooks._capture import Activations, capture
from seamscope.hooks._prompt import Picture, Prompt, Segment

if TYPE_CHECKING:
    from torch import Tensor

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._vlm import Vlm


@dataclass(frozen=True)
class Trial:
    """Two prompts with the same text and different images, run plainly and under capture.

    `logits` are those of the plain run, `watched` those under capture of `sites` (whole tensors in `acts`);
    `hidden` are the hidden states that the model itself returned in the second run.
    """

    vlm: Vlm
    batch: Batch
    logits: Tensor
    watched: Tensor
    sites: tuple[str, ...]
    acts: Activations
    hidden: tuple[Tensor, ...]
    layers: tuple[int, ...]


def run_trial(vlm: Vlm) -> Trial:
    """Run the two prompts; in the decoder, sites are captured in its first, middle and last layers only."""
    batch = vlm.encode([prompt(vlm, 4, image=number) for number in (0, 1)])
    layers = _some(vlm)
    kept = (*(f"lm.{layer}." for layer in layers), "vision.")
    sites = tuple(site for site in vlm.sites if site.count(".") == 1 or site.startswith(kept) or site in vlm.routes)
    logits = vlm.forward(batch)
    with capture(vlm, sites) as acts:
        out = vlm.run(batch, output_hidden_states=True)
    return Trial(vlm, batch, logits, out.logits, sites, acts, out.hidden_states, layers)


def prompt(vlm: Vlm, n_words: int, *, image: int | None) -> Prompt:
    """Ask a few words of the model's own vocabulary about an image of noise, or about none."""
    segment = Segment(" ".join(_words(vlm)[:n_words]), ("question",))
    pictures = () if image is None else (Picture(image=_noise(image)),)
    return Prompt(segments=(segment,), pictures=pictures)


def _some(vlm: Vlm) -> tuple[int, ...]:
    n = vlm.n_layers
    crossed = [layer for layer, parts in enumerate(vlm.anatomy.layers) if parts.crossed]
    return tuple(sorted({0, n // 2, n - 1, *crossed[:1]}))


def _noise(seed: int) -> Image.Image:
    """Wide enough that a tower with windows has more than one of them."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 168, 3), dtype=np.uint8))


def _words(vlm: Vlm) -> list[str]:
    """Give words that the tokenizer knows, spread over its vocabulary; a tiny one may not know any others."""
    tokenizer = vlm.processor.tokenizer
    special = set(tokenizer.all_special_tokens)
    bare = (token.lstrip("Ġ▁") for token in sorted(set(tokenizer.get_vocab()) - special))
    known = [token for token in bare if token.isascii() and token.isalnum()] or ["a"]
    return (known[:: max(1, len(known) // 6)] * 4)[:8]
