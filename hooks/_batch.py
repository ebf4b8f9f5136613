"""Model inputs for several prompts, and where their named tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from seamscope.hooks._errors import SpanError, choose

if TYPE_CHECKING:
    from jaxtyping import Int

    from seamscope.hooks._families import Visual

Padding = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What `Vlm.encode` gives: every key that the processor returned, and the spans of every row.

    `spans[row][name]` are positions in the padded row, ascending; a row that lacks a span lacks its name.
    `visual` is None for a batch without images.
    """

    inputs: Mapping[str, Tensor]
    spans: tuple[Mapping[str, Int[Tensor, " n"]], ...]
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    condition: str | None
    padding: Padding
    visual: Visual | None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def width(self) -> int:
        """How many positions a padded row has."""
        return self.inputs["input_ids"].shape[1]

    @property
    def span_names(self) -> tuple[str, ...]:
        """Every span that at least one row has."""
        return tuple(dict.fromkeys(name for row in self.spans for name in row))

    def positions(self, span: str) -> list[Int[Tensor, " n"]]:
        """Give the positions of `span` in every row; raise `SpanError` if no row has it."""
        choose("span", span, self.span_names, SpanError)
        nothing = torch.zeros(0, dtype=torch.long)
        return [row.get(span, nothing) for row in self.spans]
