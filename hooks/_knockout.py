"""Cut attention from one span to another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch

from seamscope.hooks._attention import edit_attention, require_editable
from seamscope.hooks._errors import SiteError

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._vlm import Vlm


@contextmanager
def knockout(vlm: Vlm, *, queries: str, keys: str, layers: Iterable[int]) -> Iterator[None]:
    """Make the attention weights from tokens of span `queries` to those of span `keys` exactly 0.

    The other weights of those queries are renormalised by the softmax, as in attention knockout (Geva et
    al. 2023, arXiv 2304.14767). A query that could then see nothing at all keeps the weight on itself: the
    first token of a sequence has no other. In rows that lack either span nothing is cut. Works in every
    head, under eager and sdpa attention alike. Inside `vlm.generate` only the pass over the prompt is cut.

    Raises `SiteError` for layers that do not exist, `ModelError` for other attention implementations, and
    `SpanError` before the model runs if no item has a span.
    """
    chosen = _checked_layers(layers, vlm.n_layers)
    require_editable(vlm.attn_implementation)
    scissors = _Scissors(vlm, queries, keys)
    with ExitStack() as stack:
        stack.enter_context(vlm.wiring.listening(scissors.begin))
        for layer in chosen:
            stack.enter_context(edit_attention(vlm.anatomy.part(layer, "attn"), cut=scissors.cut))
        yield


def _checked_layers(layers: Iterable[int], n_layers: int) -> list[int]:
    chosen = sorted(set(layers))
    unknown = [layer for layer in chosen if not 0 <= layer < n_layers]
    if unknown:
        raise SiteError(f"the decoder has layers 0 to {n_layers - 1}, not {unknown}")
    return chosen


class _Scissors:
    """Knows which positions of the running batch are cut from which."""

    def __init__(self, vlm: Vlm, queries: str, keys: str) -> None:
        self._vlm, self._queries, self._keys = vlm, queries, keys
        self._closed: Bool[Tensor, "batch 1 pos pos"] | None = None

    def begin(self, batch: Batch) -> None:
        closed = torch.zeros(len(batch), 1, batch.width, batch.width, dtype=torch.bool)
        pairs = zip(batch.positions(self._queries), batch.positions(self._keys), strict=True)
        for row, (queries, keys) in enumerate(pairs):
            closed[row, 0, queries[:, None], keys] = True
        self._closed = closed.to(self._vlm.device)

    def cut(self, allowed: Tensor) -> Tensor | None:
        """Give what stays allowed in the pass over the prompt; None in later passes of `generate`."""
        wiring = self._vlm.wiring
        if not wiring.reading:
            return None
        n_queries, n_keys = allowed.shape[-2:]
        if self._closed is None or wiring.batch.width != n_queries:
            raise SiteError(f"knockout: attention has {n_queries} queries, the batch {wiring.batch.width} positions")
        closed = self._closed.to(allowed.device)
        closed = torch.nn.functional.pad(closed, (0, n_keys - n_queries))
        kept = allowed & ~closed
        blind = allowed.any(-1, keepdim=True) & ~kept.any(-1, keepdim=True)
        itself = torch.eye(n_queries, n_keys, dtype=torch.bool, device=allowed.device)
        return kept | (blind & itself & allowed)
