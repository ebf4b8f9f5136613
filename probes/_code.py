"""How short the labels become for one who sees the activations, and how much of that more rows would still improve.

Online coding (Voita & Titov 2003.12298, section 2.2): the rows come in blocks, each twice as long as all before it
together. The first is sent with equal probabilities for all classes, every other with those of a probe that was fitted
on the blocks before. A probe that needs many rows, as one does that has to learn a control task by heart, pays for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log2
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamscope.probes._design import Design, Scale
from seamscope.probes._folds import Codes, Names
from seamscope.probes._kinds import bits, outputs
from seamscope.probes._solver import fit_logistic

PORTIONS: Final = (1 / 16, 1 / 8, 1 / 4, 1 / 2)  # of the rows, on which the probes of the blocks are fitted
ROUGHLY: Final[dict[str, Any]] = {
    "rtol": 1e-2,
    "max_iter": 40,
    "exact": False,
}  # of fits whose codes are a little longer, at worst
FEWEST: Final = 8  # rows that a probe is fitted on

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Code:
    """The online code of one problem.

    Attributes:
        bits: of each row, in the order of the rows that were given, (n,).
        prior: the same for one who sees no activations, and counts the classes as the labels come, (n,).
        sizes: how many rows each probe was fitted on, (probes,).
        correct: whether each of them is right on the rows of the last block, (probes, rows).
        scored: which rows those are, (rows,).
    """

    bits: Floats
    prior: Floats
    sizes: tuple[int, ...]
    correct: NDArray[np.bool_]
    scored: Codes


def online_code(X: Tensor, Y: Tensor, groups: Names, order: Codes, strengths: Sequence[float]) -> list[Code]:
    """The code of every problem, with the strength that makes it shortest; to say which costs log2(strengths) bits.

    Args:
        X: features, (n, d); they are known to both ends, so that all are standardised as one.
        Y: class codes, (problems, n).
        groups: the group of each row; a group is in one block.
        order: the order of the rows, group after group.
        strengths: scikit-learn's C, to choose from.
    """
    places = torch.from_numpy(order)
    labels = Y[:, places]
    classes = labels.amax(1) + 1
    ends = _ends(groups[order])
    if not ends:
        alone = classes.double().log2()[:, None].repeat(1, len(order)).numpy()
        nothing = np.zeros(0, np.int64)
        return [Code(bits=each, prior=each, sizes=(), correct=nothing[None] > 0, scored=nothing) for each in alone]
    rows = Scale.of(X[places].double()).apply(X[places].double())
    designs = [Design.of(rows[:end], scale=False) for end in ends]
    weights = _fit(designs, labels, classes, strengths)
    n, last = len(order), rows[ends[-1] :]
    sent = classes.double().log2()[:, None].repeat(len(strengths), 1, n)
    right = torch.zeros(len(ends), *sent.shape[:2], len(last), dtype=torch.bool)
    for k, (design, end, stop) in enumerate(zip(designs, ends, [*ends[1:], n], strict=True)):
        new, final = design.project(rows[end:stop]), design.project(last)
        for s in range(len(strengths)):
            for p, size in enumerate(classes.tolist()):
                each = weights[k, s, p, :size]
                sent[s, p, end:stop] = bits(outputs(each[None], new), labels[None, p, end:stop], end)[0]
                right[k, s, p] = outputs(each, final).argmax(0) == labels[p, ends[-1] :]
    best = sent.sum(2).argmin(0).tolist()
    back, told = np.argsort(order), log2(len(strengths)) / n
    return [
        Code(
            bits=(sent[s, p] + told).numpy()[back],
            prior=_prior(labels[p], int(classes[p]), [*ends, n]).numpy()[back],
            sizes=tuple(ends),
            correct=right[:, s, p].numpy(),
            scored=order[ends[-1] :],
        )
        for p, s in enumerate(best)
    ]


def _fit(designs: Sequence[Design], labels: Tensor, classes: Tensor, strengths: Sequence[float]) -> Tensor:
    """Weights of every problem on every design at every strength, (designs, strengths, problems, classes, r + 1)."""
    ends = torch.tensor([len(each.Z) for each in designs], device=labels.device)
    shape = len(designs), len(strengths), len(labels)
    beyond = torch.arange(int(ends.max()), device=labels.device) >= ends[:, None, None, None]
    Y = labels[:, : int(ends.max())].expand(*shape, -1).masked_fill(beyond, -1)
    C = torch.tensor(strengths, dtype=torch.float64)[:, None].expand(shape)
    owner = torch.arange(len(designs))[:, None, None].expand(shape)
    fit = fit_logistic(
        designs,
        Y.flatten(0, 2),
        C.flatten(),
        owner=owner.flatten(),
        classes=classes.expand(shape).flatten(),
        **ROUGHLY,
    )
    return fit.weights.view(*shape, *fit.weights.shape[1:])


def _prior(labels: Tensor, size: int, ends: Sequence[int]) -> Tensor:
    """What labels, in order, take if every class has the share that it had in the blocks before, (n,)."""
    found = torch.full((len(labels),), log2(size), dtype=torch.float64)
    for end, stop in pairwise(ends):
        shares = labels[:end].bincount(minlength=size).double().log()[:, None].expand(size, stop - end)
        found[end:stop] = bits(shares[None], labels[None, end:stop], end)[0]
    return found


def _ends(groups: Names) -> list[int]:
    """Where blocks end, near `PORTIONS` of the rows, so that none of them cuts a group."""
    bounds = np.flatnonzero(np.r_[groups[1:] != groups[:-1], False]) + 1
    wanted = [share * len(groups) for share in PORTIONS if share * len(groups) >= FEWEST]
    return sorted({int(bounds[np.abs(bounds - each).argmin()]) for each in wanted}) if len(bounds) else []
