"""What a model would say if it stopped at a layer: the logit lens, and ranks of tokens under any lens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol

import torch
from torch import Tensor

from seamscope.hooks import RunError, Site, SiteError, Vlm

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Logits = Float[Tensor, "*any vocab"]
    Stream = Float[Tensor, "*any d_model"]

NUMBERS: Final = 2**26  # logits that are held at once


class Lens(Protocol):
    """Reads residual streams as logits."""

    @property
    def vlm(self) -> Vlm:
        """The model whose streams it reads."""

    def require(self, site: str | Site) -> Site:
        """Raise `SiteError` for a site that it cannot read."""

    def __call__(self, site: str | Site, stream: Stream) -> Logits:
        """Give the logits that a stream has at a site."""


@dataclass(frozen=True)
class LogitLens:
    """The logit lens (nostalgebraist 2020): a residual stream through the model's own final norm and head.

    It reads every residual stream of the decoder: `lm.embed` and `lm.L.resid_pre | resid_mid | resid_post`. At the last
    `resid_post` its logits are the model's.
    """

    kinds: ClassVar[tuple[str, ...]] = ("embed", "resid_pre", "resid_mid", "resid_post")
    vlm: Vlm

    def require(self, site: str | Site) -> Site:
        """Raise `SiteError` for what is no residual stream of the decoder, such as `lm.final_norm`: it is normed."""
        return require_stream(self.vlm, site, self.kinds)

    def __call__(self, site: str | Site, stream: Stream) -> Logits:
        """Give logits in the model's dtype and on its device, without gradients; `stream` may be anywhere."""
        self.require(site)
        with torch.no_grad():
            return self.vlm.unembed(at_home(self.vlm, site, stream))


class TokenRanks(NamedTuple):
    """Of some tokens in logits: `rank` (0 is the likeliest) and `logprob` (float32, nats)."""

    rank: Int[Tensor, "*any k"]
    logprob: Float[Tensor, "*any k"]


def token_ranks(logits: Logits, tokens: Int[Tensor, "*any k"]) -> TokenRanks:
    """Rank `k` tokens at each place among the whole vocabulary; ties, and what is no number, count against them.

    Raises `RunError` for shapes that do not go together, or tokens outside the vocabulary.
    """
    if logits.shape[:-1] != tokens.shape[:-1]:
        raise RunError(
            f"logits {tuple(logits.shape)} and tokens {tuple(tokens.shape)} differ before the last dimension"
        )
    tokens = tokens.to(logits.device)
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < logits.shape[-1]:
        raise RunError(
            f"tokens go from {int(tokens.min())} to {int(tokens.max())}; the vocabulary has {logits.shape[-1]}"
        )
    own = logits.gather(-1, tokens)
    rank = torch.empty_like(tokens)
    for k in range(tokens.shape[-1]):  # all at once would take k times the memory of the logits
        rank[..., k] = (~(logits < own[..., k, None])).sum(-1) - 1
    return TokenRanks(rank, own.float() - logits.float().logsumexp(-1, keepdim=True))


def lens_ranks(
    lens: Lens, site: str | Site, stream: Float[Tensor, "tokens d_model"], tokens: Int[Tensor, "tokens k"]
) -> TokenRanks:
    """Rank `k` tokens at each token of a stream, on the CPU, without ever holding the logits of many."""
    size = tokens_at_once(lens.vlm)
    parts = zip(torch.split(stream, size), torch.split(tokens, size), strict=True)
    found = [token_ranks(lens(site, here), sought) for here, sought in parts]
    return TokenRanks(*(torch.cat([each.cpu() for each in column]) for column in zip(*found, strict=True)))


def require_stream(vlm: Vlm, site: str | Site, kinds: Sequence[str]) -> Site:
    """Give the site of a residual stream of one of these kinds; `SiteError` for another."""
    found = vlm.point(site).site
    if found.stack != "lm" or found.kind not in kinds:
        known = ", ".join("lm.embed" if kind == "embed" else f"lm.L.{kind}" for kind in kinds)
        raise SiteError(f"this lens cannot read {found}: it norms and unembeds the residual stream, so one of {known}")
    return found


def at_home(vlm: Vlm, site: str | Site, stream: Tensor) -> Tensor:
    """A stream where the model takes it; `SiteError` for one of another width."""
    if stream.ndim < 1 or stream.shape[-1] != vlm.d_model:
        raise SiteError(f"{site}: the stream has shape {tuple(stream.shape)}, but its last size must be {vlm.d_model}")
    return stream.to(vlm.device, vlm.dtype)


def tokens_at_once(vlm: Vlm) -> int:
    """How many tokens' logits are held at once."""
    return max(1, NUMBERS // int(vlm.shapes()["lm.logits"][-1]))
