"""How a model rates the answers that were written after its prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Score:
    """Teacher-forced scores of a batch's answers, their end-of-sequence tokens included.

    `logprob` is the total log-probability (nats, float32), `first` whether the first token is the likeliest
    one, `greedy` whether every token is: then greedy decoding says exactly the answer. All have shape
    (batch,).
    """

    logprob: Float[Tensor, " batch"]
    first: Bool[Tensor, " batch"]
    greedy: Bool[Tensor, " batch"]

    @classmethod
    def of(
        cls, logits: Float[Tensor, "tokens vocab"], targets: Int[Tensor, " tokens"], rows: Tensor, batch: int
    ) -> Score:
        """Score answer tokens, given end to end in order, with the row that each belongs to."""
        chosen = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        hit = logits.argmax(-1) == targets
        starts = torch.searchsorted(rows, torch.arange(batch, device=rows.device))
        misses = torch.zeros(batch, dtype=torch.long, device=rows.device).index_add_(0, rows, (~hit).long())
        return cls(
            logprob=chosen.new_zeros(batch).index_add_(0, rows, chosen),
            first=hit[starts],
            greedy=misses == 0,
        )
