"""Rows of tokens of unequal number, kept end to end in one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seamscope.hooks._errors import SpanError, choose
from seamscope.hooks._moves import last_of, mean_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float, Int, Shaped


@dataclass(frozen=True, eq=False)
class Ragged:
    """The token vectors of several rows: `values` end to end, `lengths` how many belong to each row.

    `values` has shape (tokens, *feature), `lengths` shape (rows,); a row may be empty.
    """

    values: Shaped[Tensor, tokens * feature]
    lengths: Int[Tensor, " rows"]

    def __post_init__(self) -> None:
        total, held = int(self.lengths.sum()), self.values.shape[0]
        if self.lengths.ndim != 1 or total != held:
            raise SpanError(f"lengths add up to {total} tokens but values hold {held}")

    @classmethod
    def from_list(cls, rows: Sequence[Tensor]) -> Ragged:
        """Build from one tensor (n_tokens, *feature) per row."""
        if not rows:
            raise SpanError("a Ragged needs at least one row, even an empty one")
        return cls(torch.cat(list(rows)), torch.tensor([len(row) for row in rows]))

    @classmethod
    def cat(cls, parts: Sequence[Ragged]) -> Ragged:
        """Put the rows of several after one another."""
        if not parts:
            raise SpanError("nothing to put together: an empty list of Ragged")
        return cls(torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts]))

    def __len__(self) -> int:
        return self.lengths.numel()

    def __getitem__(self, rows: int | slice | Sequence[int] | Tensor) -> Ragged:
        """Select rows by number, slice, list of numbers or boolean mask; always gives a Ragged."""
        numbers = torch.arange(len(self))[_as_index(rows)].reshape(-1)
        lengths = self.lengths[numbers]
        shifts = (self.lengths.cumsum(0) - self.lengths)[numbers] - (lengths.cumsum(0) - lengths)
        index = torch.arange(int(lengths.sum())) + shifts.repeat_interleave(lengths)
        return Ragged(self.values.index_select(0, index.to(self.values.device)), lengths)

    def to(self, *args: Any) -> Ragged:
        """Move or convert the values, as `Tensor.to` does."""
        return Ragged(self.values.to(*args), self.lengths)

    @property
    def row_of(self) -> Int[Tensor, " tokens"]:
        """The row that each token belongs to."""
        return torch.arange(len(self)).repeat_interleave(self.lengths)

    def split(self) -> list[Tensor]:
        """Give one tensor (n_tokens, *feature) per row, as views."""
        return list(torch.split(self.values, self.lengths.tolist()))

    def stack(self) -> Shaped[Tensor, "rows n *feature"]:
        """Give one tensor; raise `SpanError` unless every row has equally many tokens."""
        sizes = sorted(set(self.lengths.tolist()))
        if len(sizes) > 1:
            raise SpanError(f"rows have from {sizes[0]} to {sizes[-1]} tokens; pool them, or read them with split()")
        return self.values.reshape(len(self), sizes[0] if sizes else 0, *self.values.shape[1:])

    def mean(self) -> Float[Tensor, rows * feature]:
        """Average each row over its tokens, in float32 where values are narrower, and in their dtype again.

        Raises `SpanError` if a row is empty: select the others first.
        """
        self._require_tokens("mean")
        return mean_of(self.values, self.lengths)

    def last(self) -> Shaped[Tensor, rows * feature]:
        """Give the last token of each row; raise `SpanError` if a row is empty."""
        self._require_tokens("last")
        return last_of(self.values, self.lengths)

    def pool(self, how: str) -> Ragged:
        """Reduce every row that has tokens to one token, by `mean` or `last`; empty rows stay empty."""
        reduce = POOLS[choose("pooling", how, POOLS, SpanError)]
        held = self.lengths > 0
        return Ragged(reduce(self.values, self.lengths[held]), held.long())

    def _require_tokens(self, verb: str) -> None:
        empty = (self.lengths == 0).nonzero().flatten().tolist()
        if empty:
            raise SpanError(f"cannot take the {verb} of rows without tokens: {empty[:8]}; select the others first")


POOLS: dict[str, Callable[..., Tensor]] = {"mean": mean_of, "last": last_of}


def _as_index(rows: int | slice | Sequence[int] | Tensor) -> int | slice | Tensor:
    if isinstance(rows, int | slice | Tensor):
        return rows
    return torch.as_tensor(rows) if len(rows) else torch.zeros(0, dtype=torch.long)
