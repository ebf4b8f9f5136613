"""Which tokens of a site's tensor a span names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from seamscope.hooks._errors import SiteError, SpanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._families import Visual
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


class Selection:
    """The tokens of one span in one batch, found once for each way in which sites lay tokens out."""

    def __init__(self, batch: Batch, span: str) -> None:
        self.span = span
        self._batch = batch
        self._positions = batch.positions(span)
        self.lengths: Int[Tensor, " rows"] = torch.tensor([len(each) for each in self._positions])
        self._found: dict[str, Int[Tensor, " tokens"]] = {}

    def index(self, site: Site) -> Int[Tensor, " tokens"]:
        """Number the tokens in the first two dimensions of the site's tensor, row by row."""
        if site.stack not in self._found:
            self._found[site.stack] = self._number(site.stack)
        return self._found[site.stack]

    def _number(self, stack: str) -> Tensor:
        if stack == "lm":
            starts = [row * self._batch.width for row in range(len(self._batch))]
            return torch.cat([each + start for each, start in zip(self._positions, starts, strict=True)])
        visual = self._batch.visual
        assert visual is not None  # a batch with a visual span has images
        ordinals = _image_ordinals(self._batch, self._positions)
        return visual.in_tower(ordinals) if stack == "vision" else ordinals


def _image_ordinals(batch: Batch, positions: Sequence[Tensor]) -> Tensor:
    """Count image tokens through the whole batch, row by row: the order in which features fill them."""
    parts, start = [torch.zeros(0, dtype=torch.long)], 0
    for row, wanted in zip(batch.spans, positions, strict=True):
        image = row.get("image", parts[0])
        parts.append(torch.searchsorted(image, wanted) + start)
        start += len(image)
    return torch.cat(parts)


def require_layout(site: Site, value: Tensor, batch: Batch) -> None:
    """Raise `SiteError` if a site's tensor does not fit the batch, so that positions would be wrong."""
    tokens = _layout(site, batch)
    held = value.shape[2] * value.shape[0] if site.kind == "pattern" else value.shape[0] * value.shape[1]
    if held != tokens:
        raise SiteError(f"{site} holds {held} tokens, but the batch has {tokens} there")


def _layout(site: Site, batch: Batch) -> int:
    visual: Visual | None = batch.visual
    if not site.visual or visual is None:
        return len(batch) * batch.width
    n_images = sum(len(row["image"]) for row in batch.spans if "image" in row) // visual.tokens
    return n_images * (visual.tokens + (visual.dropped if site.stack == "vision" else 0))
