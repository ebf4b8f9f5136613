"""Model inputs for several prompts, and where their named tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from seamscope.hooks._errors import SpanError, choose
from seamscope.hooks._site import Site

if TYPE_CHECKING:
    from jaxtyping import Int

    from seamscope.hooks._visual import Visual

Padding = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What `Vlm.encode` gives: every key that the processor returned, and the spans of every row.

    `extra` is what a plain forward pass needs besides, and `generate` makes itself. `spans[row][name]` are positions in
    the padded row, ascending; a row that lacks a span lacks its name.
    `visual` is None for a batch without images.
    """

    inputs: Mapping[str, Tensor]
    extra: Mapping[str, Tensor]
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
        """Every span that at least one row has, in the decoder, the projector or the tower."""
        shown = () if self.visual is None else self.visual.spans.values()
        return tuple(dict.fromkeys(name for rows in (self.spans, *shown) for row in rows for name in row))

    def has(self, site: str | Site, span: str) -> bool:
        """Whether any row has tokens of `span` at a site: one of text has none in the tower, say."""
        stack = Site.parse(site).tokens
        shown = {} if self.visual is None else self.visual.spans
        return any(span in row for row in (self.spans if stack == "lm" else shown.get(stack, ())))

    def positions(self, span: str) -> list[Int[Tensor, " n"]]:
        """Give the positions of `span` in every row, none where it is in the projector or the tower only.

        Raises `SpanError` if no row has it anywhere.
        """
        choose("span", span, self.span_names, SpanError)
        nothing = torch.zeros(0, dtype=torch.long)
        return [row.get(span, nothing) for row in self.spans]
