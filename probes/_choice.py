"""Choosing the strength of the penalty on the training rows alone, by grouped cross-validation inside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from seamscope.hooks import StoreError
from seamscope.probes._design import Design
from seamscope.probes._kinds import Kind, outputs

STRENGTHS: Final = (0.1, 1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C times the number of features
INNER: Final = 3  # folds


def strengths_of(C: float | Sequence[float] | None) -> tuple[float, ...] | None:
    """Strengths as they were asked for, ascending; `StoreError` for what is none. None stays so."""
    found = None if C is None else tuple(sorted(C)) if isinstance(C, Sequence) else (C,)
    if found is not None and not (found and all(0 < each < float("inf") for each in found)):
        raise StoreError(f"C is {C!r}; expected positive numbers, the inverse strengths of the penalty")
    return found


def strengths_for(width: int, asked: Sequence[float] | None) -> tuple[float, ...]:
    """The strengths to choose from for so many features.

    If none were asked for, `STRENGTHS` divided by their number: standardised features add up, so that a wide
    representation needs a strong penalty where a narrow one needs a weak one.
    """
    return tuple(each / width for each in STRENGTHS) if asked is None else tuple(asked)


def choose_strengths(
    kind: Kind, designs: Sequence[Design], owner: Tensor, Y: Tensor, inner: Tensor, strengths: Sequence[float]
) -> Tensor:
    """The strength that predicts each problem's held-out training rows best; of equals, the strongest penalty.

    Args:
        kind: the kind of probe.
        designs: training rows, standardised as one, as scikit-learn's `LogisticRegressionCV` has them in a pipeline.
        owner: the design of each problem, (problems,).
        Y: labels, (problems, n); what is beyond the rows of the design does not count.
        inner: inner fold of each row of each design, (designs, n), -1 for what is none, or where there are too few
            groups.
        strengths: to choose from, ascending; of one, or where nothing can be held out, the middle one is taken.
    """
    ascending = list(strengths)
    usual = torch.full((len(Y),), ascending[(len(ascending) - 1) // 2], dtype=torch.float64)
    folds = int(inner.max()) + 1
    if len(ascending) == 1 or folds < 2:
        return usual
    repeats = len(ascending) * folds
    C = torch.tensor(ascending, dtype=torch.float64).repeat_interleave(len(Y)).repeat(folds)
    fold = torch.arange(folds).repeat_interleave(len(ascending) * len(Y))
    owners, labels, own = owner.repeat(repeats), Y.repeat(repeats, 1), inner[owner].repeat(repeats, 1)
    held, trained = own == fold[:, None], (own >= 0) & (own != fold[:, None])
    weights, _ = kind.fit(designs, owners, labels, C, trained, rough=True)
    total = torch.zeros(len(C), dtype=torch.float64)
    for k, each in enumerate(weights):  # one at a time: with many classes the outputs of all are large
        Z = designs[int(owners[k])].Z
        given = outputs(each[None], Z[held[k, : len(Z)]])
        total[k] = kind.scores(given, labels[k, held[k]][None], labels[k, trained[k]][None]).sum()
    best = total.view(folds, len(ascending), len(Y)).sum(0).argmax(0)
    chosen = torch.tensor(ascending, dtype=torch.float64)[best]
    return torch.where((inner[owner] >= 0).any(1).cpu(), chosen, usual)
