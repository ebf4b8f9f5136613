"""Choosing the strength of the penalty on the training rows alone, by grouped cross-validation inside them."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from seamscope.hooks import StoreError
from seamscope.probes._design import Design
from seamscope.probes._kinds import Asked, Kind, outputs

STRENGTHS: Final = (0.1, 0.8, 6.4, 51.2, 409.6)  # scikit-learn's C times the number of features
INNER: Final = 3  # folds


def strengths_of(C: ArrayLike | None) -> tuple[float, ...] | None:
    """Strengths as they were asked for, one or several, ascending; `StoreError` for what is none. None stays so."""
    if C is None:
        return None
    try:
        asked = np.asarray(C)
    except ValueError:  # rows of different lengths
        asked = np.zeros(0)
    if asked.dtype.kind not in "iuf" or asked.ndim > 1 or not asked.size or not ((asked > 0) & (asked < np.inf)).all():
        told = shorten(repr(C), 80)
        raise StoreError(f"C is {told}; expected positive numbers, the inverse strengths of the penalty")
    return tuple(np.sort(asked.astype(np.float64), axis=None).tolist())


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

    Best is what `Kind.fitness` says of the inner folds together.

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
    parts = [(k, fold) for k in range(len(designs)) for fold in range(folds)]  # what is left of a design without a fold
    kept = [(inner[k] >= 0) & (inner[k] != fold) for k, fold in parts]
    inside = [designs[k].among(rows[: len(designs[k].Z)]) for (k, _), rows in zip(parts, kept, strict=True)]
    problems = [(at, p) for at, (k, _) in enumerate(parts) for p in (owner == k).nonzero()[:, 0].tolist()]
    known = [Y[p, kept[at]] for at, p in problems]
    sizes = torch.tensor([kind.size(Y[p]) for _, p in problems])
    each = torch.arange(len(problems)).repeat_interleave(len(ascending))  # the problem of each fit
    asked = Asked(
        designs=inside,
        owner=torch.tensor([at for at, _ in problems], device=Y.device)[each],
        Y=pad_sequence(known, batch_first=True)[each],
        C=torch.tensor(ascending, dtype=torch.float64).repeat(len(problems)),
        sizes=sizes[each],
    )
    weights, _ = kind.fit(asked, rough=True)
    by_problem = weights.view(len(problems), len(ascending), *weights.shape[1:])
    total = torch.zeros(len(Y), len(ascending), dtype=torch.float64)
    for several, size, (at, p), seen in zip(by_problem, sizes, problems, known, strict=True):
        k, fold = parts[at]
        held = inner[k] == fold
        given = outputs(several[:, : int(size)], designs[k].Z[held[: len(designs[k].Z)]])
        total[p] += kind.fitness(given, Y[p, held].expand(len(several), -1), seen.expand(len(several), -1)).cpu()
    chosen = torch.tensor(ascending, dtype=torch.float64)[total.argmax(1)]
    return torch.where((inner[owner] >= 0).any(1).cpu(), chosen, usual)
