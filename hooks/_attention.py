"""Change the mask or the weights of attention, by an attention function registered with transformers.

A hook on a module cannot reach the weights, and writing into a mask is unsound: the mask may be additive,
boolean or absent. Inside `edit_attention` one attention module gets a copy of its configuration that names
our function; the masks that the model builds, and every other module, keep the implementation that was
loaded.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from seamscope.hooks._errors import ModelError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    # Given the allowed positions (batch or 1, 1, query, key): those that stay allowed, or None for no change.
    Cut = Callable[[Bool[Tensor, "batch 1 query key"]], Tensor | None]
    Reweigh = Callable[[Float[Tensor, "batch head query key"]], Tensor | None]

NAME = "seamscope"
SUPPORTED = ("eager", "sdpa")


@contextmanager
def edit_attention(attention: nn.Module, *, cut: Cut | None = None, reweigh: Reweigh | None = None) -> Iterator[None]:
    """Let `cut` restrict what an attention module may see, and `reweigh` replace its weights (eager only)."""
    before: Any = attention.config
    with attending(
        attention,
        NAME,
        seamscope_original=getattr(before, "seamscope_original", before._attn_implementation),
        seamscope_edits=(*getattr(before, "seamscope_edits", ()), (cut, reweigh)),
    ):
        yield


@contextmanager
def attending(attention: nn.Module, name: str, **told: Any) -> Iterator[None]:
    """Let an attention module use the attention function of that name, which finds what it is told in its config."""
    before: Any = attention.config
    edited = copy.copy(before)
    edited._attn_implementation_internal = name  # the property's setter would change shared sub-configurations
    for key, value in told.items():
        setattr(edited, key, value)
    attention.config = edited
    try:
        yield
    finally:
        attention.config = before


def allowed(mask: Tensor) -> Bool[Tensor, "batch 1 query key"]:
    """Which keys a query may see, of a mask that is boolean or added to the scores."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def without(seen: Tensor, closed: Tensor, itself: Tensor) -> Bool[Tensor, "batch 1 query key"]:
    """What may still be seen once something is closed; a query that would see nothing keeps itself."""
    kept = seen & ~closed
    blind = seen.any(-1, keepdim=True) & ~kept.any(-1, keepdim=True)
    return kept | (blind & itself & seen)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Run the original attention function with the mask and the weights edited."""
    config: Any = module.config
    eager = config.seamscope_original == "eager"
    blind: Tensor | None = None
    for cut, _ in config.seamscope_edits:
        if cut is not None:
            causal = _is_causal(module, kwargs)
            attention_mask, blind = _restrict(cut, attention_mask, query, key, eager=eager, causal=causal)
    original = _original(module, config.seamscope_original)
    output, weights = original(module, query, key, value, attention_mask, **kwargs)
    if blind is not None:  # the softmax would spread the weight of a query that sees nothing over all keys
        output = output.masked_fill(blind[:, 0, :, None, None], 0)
        weights = None if weights is None else weights.masked_fill(blind[..., None], 0)
    for _, reweigh in config.seamscope_edits:
        changed = None if reweigh is None or weights is None else reweigh(weights)
        if changed is not None:
            weights, output = changed, _mix(changed, value)
    return output, weights


AttentionInterface.register(NAME, _attend)


def _original(module: nn.Module, name: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if name == "eager":  # every modelling file has its own, which the interface does not list
        found: Callable[..., tuple[Tensor, Tensor | None]]
        found = sys.modules[type(module).__module__].eager_attention_forward
        return found
    return AttentionInterface()[name]  # type: ignore[no-any-return]


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _restrict(
    cut: Cut, mask: Tensor | None, query: Tensor, key: Tensor, *, eager: bool, causal: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Cut from whatever mask came; an absent one means causal attention, or full where a single query is.

    Gives the mask, and which queries (batch, 1, query) see nothing any more, None if none could be cut.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    if mask is None:
        seen = torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool, device=query.device)
        seen = seen.tril(n_keys - n_queries) if causal and n_queries > 1 else seen
    else:
        seen = allowed(mask)
    kept = cut(seen)
    if kept is None:
        return mask, None
    blind = seen.any(-1) & ~kept.any(-1)
    boolean = mask is None or mask.dtype == torch.bool
    if boolean and not eager:
        return kept, blind
    additive = query.new_zeros(()) if mask is None or boolean else mask
    return torch.where(kept, additive, torch.finfo(additive.dtype).min), blind


def _mix(weights: Tensor, value: Tensor) -> Tensor:
    """Mix the values by the weights, in the operations of eager attention, so as to equal it exactly."""
    groups = weights.shape[1] // value.shape[1]
    spread = value[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2)
    return torch.matmul(weights, spread).transpose(1, 2).contiguous()


def require_editable(implementation: str) -> None:
    """Raise `ModelError` for attention implementations whose masks are not understood here."""
    if implementation not in SUPPORTED:
        raise ModelError(f"knockout works under {' and '.join(SUPPORTED)} attention, not under {implementation!r}")
