"""Cut attention from one span to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from seamscope.hooks._attention import edit_attention, require_editable, without
from seamscope.hooks._engine import require_here
from seamscope.hooks._errors import SiteError

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._visual import Visual
    from seamscope.hooks._vlm import Vlm


@contextmanager
def knockout(vlm: Vlm, *, queries: str, keys: str, layers: Iterable[int]) -> Iterator[None]:
    """Make the attention weights from tokens of span `queries` to those of span `keys` exactly 0.

    The other weights of those queries are renormalised by the softmax, as in attention knockout (Geva et
    al. 2023, arXiv 2304.14767). A query that could then see nothing at all keeps the weight on itself: the
    first token of a sequence has no other. In rows that lack either span nothing is cut. Layers of
    cross-attention are cut from the image's tokens outside the sequence. Works in every head, under eager and
    sdpa attention alike. Inside `vlm.generate` only the pass over the prompt is cut.

    Raises `SiteError` for layers that do not exist, `ModelError` for other attention implementations, and
    `SpanError` before the model runs if no item has a span.
    """
    require_here(vlm.engine, "knockout")
    chosen = _checked_layers(layers, vlm.n_layers)
    require_editable(vlm.attn_implementation)
    scissors = _Scissors(vlm, queries, keys)
    with ExitStack() as stack:
        stack.enter_context(vlm.wiring.listening(scissors.begin))
        for layer in chosen:
            parts = vlm.anatomy.layers[layer]
            stack.enter_context(edit_attention(parts.attn, cut=scissors.across if parts.crossed else scissors.within))
        yield


def _checked_layers(layers: Iterable[int], n_layers: int) -> list[int]:
    chosen = sorted(set(layers))
    unknown = [layer for layer in chosen if not 0 <= layer < n_layers]
    if unknown:
        raise SiteError(f"the decoder has layers 0 to {n_layers - 1}, not {unknown}")
    return chosen


class _Scissors:
    """Knows which positions of the running batch are cut from which, and which keys outside the sequence."""

    def __init__(self, vlm: Vlm, queries: str, keys: str) -> None:
        self._vlm, self._queries, self._keys = vlm, queries, keys
        self._closed: dict[bool, Bool[Tensor, "batch 1 pos keys"]] = {}

    def begin(self, batch: Batch) -> None:
        rows = list(zip(batch.positions(self._queries), batch.positions(self._keys), strict=True))
        within = torch.zeros(len(batch), 1, batch.width, batch.width, dtype=torch.bool)
        for row, (queries, keys) in enumerate(rows):
            within[row, 0, queries[:, None], keys] = True
        self._closed = {False: within.to(self._vlm.device)}
        if batch.visual is not None and any(each.crossed for each in self._vlm.anatomy.layers):
            self._closed[True] = self._outside(batch, batch.visual).to(self._vlm.device)

    def _outside(self, batch: Batch, visual: Visual) -> Tensor:
        """What cross-attention is cut from: an object's tokens, or, for `image`, all that there is."""
        n_keys = visual.sizes["projector"] // len(batch)
        closed = torch.zeros(len(batch), 1, batch.width, n_keys, dtype=torch.bool)
        for row, queries in enumerate(batch.positions(self._queries)):
            named = visual.spans["projector"][row].get(self._keys, torch.zeros(0, dtype=torch.long)) - row * n_keys
            keys = torch.arange(n_keys) if self._keys == "image" else named
            closed[row, 0, queries[:, None], keys] = True
        return closed

    def within(self, allowed: Tensor) -> Tensor | None:
        """Give what stays allowed in the pass over the prompt; None in later passes of `generate`."""
        wiring = self._vlm.wiring
        if not wiring.reading:
            return None
        n_queries, n_keys = allowed.shape[-2:]
        if not self._closed or wiring.batch.width != n_queries:
            raise SiteError(f"knockout: attention has {n_queries} queries, the batch {wiring.batch.width} positions")
        closed = self._closed[False].to(allowed.device)
        closed = torch.nn.functional.pad(closed, (0, n_keys - n_queries))
        itself = torch.eye(n_queries, n_keys, dtype=torch.bool, device=allowed.device)
        return without(allowed, closed, itself)

    def across(self, allowed: Tensor) -> Tensor | None:
        """The same for cross-attention, where a query may end up seeing nothing; it then mixes in nothing."""
        if not self._vlm.wiring.reading or True not in self._closed:
            return None
        return allowed & ~self._closed[True].to(allowed.device)
