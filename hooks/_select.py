"""Which tokens of a site's tensor a span names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seamscope.hooks._errors import SpanError

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._site import Site


def is_visual_span(span: str) -> bool:
    """Whether a span names image tokens, which sites of the vision tower and the projector have too."""
    return span == "image" or span.startswith("image.")


def has_span(site: Site, span: str) -> bool:
    """Whether the span can exist at the site."""
    return not site.visual or is_visual_span(span)


def require_span(site: Site, span: str) -> None:
    """Raise `SpanError` for a span of text at a site that holds patches of images only."""
    if not has_span(site, span):
        raise SpanError(f"{site} holds image patches only, so it has no {span!r}; it has image and image.object.k")


_NONE = torch.zeros(0, dtype=torch.long)


class Selection:
    """The tokens of one span in one batch, found once for each way in which sites lay tokens out."""

    def __init__(self, batch: Batch, span: str) -> None:
        self.span = span
        self._batch = batch
        self._positions = [each + row * batch.width for row, each in enumerate(batch.positions(span))]
        self._found: dict[str, tuple[Tensor, Tensor]] = {}

    def index(self, site: Site) -> Int[Tensor, " tokens"]:
        """Number the tokens among all that the site's tensor holds, row by row."""
        return self._tokens(site.tokens)[0]

    def lengths(self, site: Site) -> Int[Tensor, " rows"]:
        """How many tokens of the span each row has at the site."""
        return self._tokens(site.tokens)[1]

    def _tokens(self, stack: str) -> tuple[Tensor, Tensor]:
        if stack not in self._found:
            rows = self._positions if stack == "lm" else self._shown(stack)
            self._found[stack] = torch.cat(rows), torch.tensor([len(each) for each in rows])
        return self._found[stack]

    def _shown(self, stack: str) -> list[Tensor]:
        visual = self._batch.visual
        assert visual is not None  # a batch with a visual span has images
        return [row.get(self.span, _NONE) for row in visual.spans[stack]]


def count_tokens(site: Site, batch: Batch) -> int:
    """How many tokens a site's tensor must hold, so that positions are right."""
    visual = batch.visual
    return len(batch) * batch.width if site.tokens == "lm" or visual is None else visual.sizes[site.tokens]
