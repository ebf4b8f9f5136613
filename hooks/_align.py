"""Put the tokens of one run in the places of another, with an explicit rule where their numbers differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seamscope.hooks._errors import SpanError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from seamscope.hooks._ragged import Ragged


def _mean(tokens: Tensor, n: int) -> Tensor:
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return wide.mean(0, keepdim=True).to(tokens.dtype).expand(n, *tokens.shape[1:])


def _last(tokens: Tensor, n: int) -> Tensor:
    return tokens[-1:].expand(n, *tokens.shape[1:])


def _stretch(tokens: Tensor, n: int) -> Tensor:
    """Give place i of n the token at the same relative place: number floor((i + 1/2) · tokens / n)."""
    nearest = (2 * torch.arange(n, device=tokens.device) + 1) * len(tokens) // (2 * n)
    return tokens.index_select(0, nearest)


RULES: dict[str, Callable[[Tensor, int], Tensor] | None] = {
    "exact": None,
    "mean": _mean,
    "last": _last,
    "stretch": _stretch,
}


def align(source: Ragged, lengths: Sequence[int], *, rule: str, where: str, ids: Sequence[str]) -> Tensor:
    """Give tokens (sum of `lengths`, *feature) for rows of these lengths from the rows of `source`.

    Rows whose numbers agree are taken as they are. Where they differ, `exact` raises `SpanError`, `mean`
    repeats the mean of the row's tokens, `last` repeats its last token and `stretch` takes the nearest one.
    A row that needs tokens from an empty one is an error under every rule. `where` names the site and span,
    `ids` the items.
    """
    if len(source) != len(lengths):
        raise SpanError(f"{where}: the value has {len(source)} rows, but the batch has {len(lengths)} items")
    have = source.lengths.tolist()
    if have == list(lengths):
        return source.values
    for item, given, needed in zip(ids, have, lengths, strict=True):
        if given != needed and (RULES[rule] is None or (needed and not given)):
            raise SpanError(f"{where}: the value has {given} tokens for item {item!r}, the batch {needed} ({rule=})")
    rows = zip(source.split(), lengths, strict=True)
    return torch.cat([_fit(tokens, n, RULES[rule]) for tokens, n in rows])


def _fit(tokens: Tensor, n: int, resize: Callable[[Tensor, int], Tensor] | None) -> Tensor:
    if len(tokens) == n or resize is None:
        return tokens
    return resize(tokens, n) if n else tokens[:0]
