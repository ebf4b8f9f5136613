"""What happens to a tensor that passes at a place, as plain functions of tensors and of data bound beforehand.

The engine nnsight may send the source of these functions to a machine that has torch and not seamscope, so they use
torch, built-in types and one another only. A site's tensor differs from the one that passes for `head_z` only,
(batch, pos, heads, head_dim). Tokens are numbered in all dimensions before the features taken together; those of
attention weights (batch, heads, query, key), which are `by_query`, in batch and query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seamscope.hooks._errors import SiteError, SpanError


def read(
    passing: Tensor,
    *,
    into: dict[Any, Tensor],
    keys: list[Any],
    index: Tensor | None,
    sizes: list[int],
    n_tokens: int,
    pool: Callable[[Tensor], Tensor] | None,
    layout: dict[str, Any],
) -> None:
    """Copy a site into a dictionary, or some of its tokens, of which each key in turn gets as many as `sizes` says.

    To pool few at a time would cost more than to run the model, so all are pooled at once.
    """
    # Leaving inference mode makes the copies ordinary tensors, which autograd accepts.
    with torch.inference_mode(False), torch.no_grad():
        value = view(passing, layout["heads"])
        if index is None:
            into[keys[0]] = value.clone()
            return
        require_tokens(value, n_tokens, **layout)
        if pool is None:
            pieces = [take(value, each, **layout) for each in torch.split(index, sizes)]
        else:  # clones, so that one of them does not keep the others alive
            pieces = [each.clone() for each in torch.split(pool(take(value, index, **layout)), sizes)]
        into.update(zip(keys, pieces, strict=True))


def read_step(passing: Tensor, *, into: dict[Any, list[Tensor]], key: Any, n_rows: int, layout: dict[str, Any]) -> None:
    """Copy what a site holds in one step of `generate`, in which every row has one position."""
    with torch.inference_mode(False), torch.no_grad():
        value = view(passing, layout["heads"])
        if count(value, **layout) != n_rows:
            raise SpanError(f"{layout['site']} holds {count(value, **layout)} tokens in one step of {n_rows} rows")
        into.setdefault(key, []).append(take(value, torch.arange(n_rows), **layout))


def write(
    passing: Tensor,
    *,
    new: Tensor | Callable[[Tensor], Tensor],
    index: Tensor | None,
    n_tokens: int,
    only: list[int] | None,
    layout: dict[str, Any],
) -> Tensor:
    """Give the tensor that takes the place of the one passing."""
    value, site = view(passing, layout["heads"]), layout["site"]
    if index is None:
        out = fitted(new(value.clone()) if callable(new) else new, value, site)
    else:
        require_tokens(value, n_tokens, **layout)
        there = take(value, index, **layout)
        out = put(value, index, fitted(new(there) if callable(new) else new, there, site), **layout)
    if only is not None:
        kept, chosen = value.clone(), (slice(None),) * (1 if layout["by_query"] else 2) + (only,)
        kept[chosen] = out[chosen]
        out = kept
    return out if layout["heads"] is None else out.flatten(-2)


def keep(passing: Tensor, *, notes: dict[str, Tensor], key: str) -> None:
    """Note the tensor itself."""
    notes[key] = passing


def join(passing: Tensor, *, notes: dict[str, Tensor], closing: Callable[[Tensor, Tensor], Tensor] | None) -> Tensor:
    """Give a layer's output anew from what was noted on its way.

    Without `closing`, which makes it of the stream between its parts and of its MLP's output, the change of that stream
    is added to the output that there is.
    """
    old, mid, mlp_out = (notes.pop(key) for key in ("old", "mid", "mlp_out"))
    return passing + (mid - old) if closing is None else closing(mid, mlp_out)


def view(passing: Tensor, heads: int | None) -> Tensor:
    """Give the site's tensor, without copying."""
    return passing if heads is None else passing.reshape(*passing.shape[:-1], heads, -1)


def take(value: Tensor, index: Tensor, *, site: str, heads: int | None, by_query: bool) -> Tensor:
    """Copy the tokens with these numbers, (n, *feature), and nothing else."""
    index = index.to(value.device)
    if by_query:
        width = value.shape[2]
        return value.transpose(1, 2)[index // width, index % width]
    return end_to_end(value, heads).index_select(0, index)


def put(value: Tensor, index: Tensor, tokens: Tensor, *, site: str, heads: int | None, by_query: bool) -> Tensor:
    """Give a copy of `value` with the tokens of these numbers replaced."""
    index, out = index.to(value.device), value.clone()
    if by_query:
        width = value.shape[2]
        out.transpose(1, 2)[index // width, index % width] = tokens
        return out
    return end_to_end(out, heads).index_copy_(0, index, tokens).view_as(out)


def count(value: Tensor, *, site: str, heads: int | None, by_query: bool) -> int:
    """How many tokens a site's tensor holds."""
    return value.shape[0] * value.shape[2] if by_query else len(end_to_end(value, heads))


def end_to_end(value: Tensor, heads: int | None) -> Tensor:
    """Give the tokens in one row; some towers put the patches of all images into one anyway."""
    features = 1 if heads is None else 2
    return value.reshape(-1, *value.shape[value.ndim - features :])


def require_tokens(value: Tensor, n_tokens: int, *, site: str, heads: int | None, by_query: bool) -> None:
    """Raise `SiteError` if a site's tensor does not fit the batch, so that positions would be wrong."""
    held = count(value, site=site, heads=heads, by_query=by_query)
    if held != n_tokens:
        raise SiteError(f"{site} holds {held} tokens, but the batch has {n_tokens} there")


def fitted(new: Tensor | None, there: Tensor, site: str) -> Tensor:
    """Move a value to where it goes; raise `SiteError` unless it has the shape of what is there."""
    if new is None or new.shape != there.shape:
        got = None if new is None else tuple(new.shape)
        raise SiteError(f"{site}: the value has shape {got}, but {tuple(there.shape)} is needed")
    return new.to(there.device, there.dtype)


def mean_of(values: Tensor, lengths: Tensor) -> Tensor:
    """Average the tokens of each row, none empty, in float32 where values are narrower, and in their dtype again."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    if values.is_cuda:  # there, additions at an index come in no fixed order, and runs would differ in the last bit
        lengths = lengths.to(values.device)
        return torch.segment_reduce(wide, "mean", lengths=lengths, axis=0, unsafe=True).to(values.dtype)
    lengths = lengths.cpu()
    rows = torch.arange(len(lengths)).repeat_interleave(lengths).to(wide.device)
    sums = torch.zeros(len(lengths), *wide.shape[1:], dtype=wide.dtype, device=wide.device).index_add_(0, rows, wide)
    return (sums / lengths.to(wide.device).view(-1, *[1] * (wide.ndim - 1))).to(values.dtype)


def last_of(values: Tensor, lengths: Tensor) -> Tensor:
    """Give the last token of each row."""
    return values.index_select(0, (lengths.cumsum(0) - 1).to(values.device))
