"""Activations at generated tokens: each pass of `generate` adds one token to every row that still goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seamscope.hooks._errors import SiteError
from seamscope.hooks._ragged import Ragged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Int

    from seamscope.hooks._site import Site

GENERATED = "generated"
_UNSTEPPED = "pattern"  # its keys grow with every step


def require_steps(sites: Sequence[Site]) -> None:
    """Raise `SiteError` unless some site has generated tokens: no patches of images, no attention weights."""
    if not any(has_steps(site) for site in sites):
        raise SiteError(f"{sites[0]} has no {GENERATED!r} tokens; residual streams and outputs of the decoder have")


def has_steps(site: Site) -> bool:
    """Whether a site holds something for each generated token that can be put together."""
    return not site.visual and site.kind != _UNSTEPPED


@dataclass(frozen=True, eq=False)
class Fed:
    """The generated tokens that the model read again, one in each step, and in which steps a row still counts.

    A row counts until it is fed the token that ends it, or padding after that.
    """

    tokens: Int[Tensor, "rows steps"]
    alive: Bool[Tensor, "rows steps"]

    @classmethod
    def of(cls, new: Int[Tensor, "rows new"], ends: Tensor) -> Fed:
        """Tell from all new tokens, and those that end a row; the last one is never read."""
        tokens = new[:, :-1]
        goes_on = ~torch.isin(tokens, ends.to(tokens.device))
        return cls(tokens, goes_on.long().cumprod(dim=1).bool())

    def ragged(self) -> Ragged:
        """The tokens themselves, row by row."""
        return Ragged(self.tokens[self.alive], self._lengths)

    def join(self, steps: Sequence[Tensor]) -> Ragged:
        """Put what a site held in each step, (rows, *feature), together row by row."""
        values = torch.stack(list(steps), dim=1)
        return Ragged(values[self.alive.to(values.device)], self._lengths)

    @property
    def _lengths(self) -> Tensor:
        return self.alive.sum(dim=1).cpu()
