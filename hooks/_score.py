"""How a model rates the answers that were written after its prompts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Score:
    """Teacher-forced scores of answers, their end-of-sequence tokens included; all have shape (answers,).

    Attributes:
        logprob: the total log-probability in nats, float32.
        first: whether the first token is the likeliest one.
        greedy: whether every token is: then greedy decoding says exactly the answer.
        rank: how many tokens are likelier than the first one.
        difference: by how much its logit is above that of a rival answer's token, at the first place where the two
            answers differ; NaN without a rival.
        kl: Kullback-Leibler divergence in nats of the first token's distribution from that of the reference, which is
            the unpatched run; NaN without one.
    """

    logprob: Float[Tensor, " answers"]
    first: Bool[Tensor, " answers"]
    greedy: Bool[Tensor, " answers"]
    rank: Int[Tensor, " answers"]
    difference: Float[Tensor, " answers"]
    kl: Float[Tensor, " answers"]

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "tokens vocab"],
        targets: Int[Tensor, " tokens"],
        rows: Int[Tensor, " tokens"],
        answers: int,
        *,
        rivals: Int[Tensor, " tokens"] | None = None,
        reference: Float[Tensor, "answers vocab"] | None = None,
    ) -> Score:
        """Score answer tokens, given end to end in order, with the answer that each belongs to.

        `rivals` are the rival answers' tokens at the same places, -1 beyond their end; `reference` the logits of the
        first tokens in the unpatched run.
        """
        logits = logits.float()
        own = logits.gather(-1, targets[:, None])
        hit = logits.argmax(-1) == targets
        starts = torch.searchsorted(rows, torch.arange(answers, device=rows.device))
        logprobs = (own - logits.logsumexp(-1, keepdim=True))[:, 0]
        misses = torch.zeros(answers, dtype=torch.long, device=rows.device).index_add_(0, rows, (~hit).long())
        unknown = logprobs.new_full((answers,), torch.nan)
        return cls(
            logprob=logprobs.new_zeros(answers).index_add_(0, rows, logprobs),
            first=hit[starts],
            greedy=misses == 0,
            rank=(logits[starts] > own[starts]).sum(-1),
            difference=unknown if rivals is None else _difference(logits, own[:, 0], targets, rivals, rows, unknown),
            kl=unknown if reference is None else _divergence(reference.float(), logits[starts]),
        )

    @classmethod
    def join(cls, parts: Sequence[Score]) -> Score:
        """Scores one after the other."""
        return cls(*(torch.cat([getattr(each, field.name) for each in parts]) for field in fields(cls)))

    def __getitem__(self, answers: Tensor) -> Score:
        """Those of some answers, a mask or their numbers."""
        return Score(*(getattr(self, field.name)[answers] for field in fields(self)))


def _difference(
    logits: Tensor, own: Tensor, targets: Tensor, rivals: Tensor, rows: Tensor, unknown: Tensor
) -> Float[Tensor, " answers"]:
    """The logit difference at the first place of each answer where its rival has another token."""
    places = ((rivals >= 0) & (rivals != targets)).nonzero()[:, 0]
    first = torch.full_like(unknown, len(rows), dtype=torch.long).scatter_reduce_(0, rows[places], places, "amin")
    held = first < len(rows)
    found = unknown.clone()
    found[held] = own[first[held]] - logits[first[held], rivals[first[held]]]
    return found


def _divergence(reference: Tensor, logits: Tensor) -> Float[Tensor, " answers"]:
    before, after = reference.log_softmax(-1), logits.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).clamp(min=0)  # rounding makes it less than nothing
