"""Attention of many cells that have all but their last tokens in common: keys and values of the prefix are read once.

Put together for every cell, as a cache does it, they would be copied cell by cell and layer by layer, which takes
longer than the layers themselves where the cells' own tokens are few.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from seamscope.hooks._attention import attending

if TYPE_CHECKING:
    from jaxtyping import Float

NAME: Final = "seamscope_shared_prefix"


def sharing(
    attention: nn.Module, keys: Float[Tensor, "heads before width"], values: Float[Tensor, "heads before width"]
) -> AbstractContextManager[None]:
    """Let an attention module see these keys and values before those that it makes, the same for all rows."""
    return attending(attention, NAME, seamscope_prefix=(keys, values))


def _attend(
    module: nn.Module,
    query: Float[Tensor, "rows heads own width"],
    key: Float[Tensor, "rows kv_heads new width"],
    value: Float[Tensor, "rows kv_heads new width"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention over the prefix and over each row's own tokens, in one softmax; masks are the same for all rows."""
    config: Any = module.config
    old_keys, old_values = config.seamscope_prefix
    (n, n_heads, own, width), (heads, new), before = query.shape, key.shape[1:3], old_keys.shape[1]
    query = query * (width**-0.5 if scaling is None else scaling)
    asked = query.reshape(n, heads, -1, width)  # query heads of one key head together
    together = asked.transpose(0, 1).reshape(heads, -1, width)
    far = (together @ old_keys.mT).view(heads, n, -1, own, before)
    near = (asked @ key.mT).view(n, heads, -1, own, new).transpose(0, 1)
    if softcap is not None:
        far, near = (torch.tanh(each / softcap) * softcap for each in (far, near))
    if attention_mask is not None:
        mask = attention_mask[0, 0]
        far, near = _masked(far, mask[:, :before]), _masked(near, mask[:, before:])
    weights = torch.cat([far, near], -1).softmax(-1, dtype=torch.float32).to(query.dtype)
    found = (weights[..., :before].reshape(heads, -1, before) @ old_values).view(heads, n, -1, width).transpose(0, 1)
    found = found + weights[..., before:].transpose(0, 1).reshape(n, heads, -1, new) @ value
    return found.reshape(n, n_heads, own, width).transpose(1, 2).contiguous(), None


def _masked(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores, (..., own, keys), under a mask, (own, keys); mostly there is nothing to mask in the prefix."""
    if mask.dtype == torch.bool:
        return scores if mask.all() else scores.masked_fill(~mask, -torch.inf)
    return scores + mask if mask.any() else scores


AttentionInterface.register(NAME, _attend)
