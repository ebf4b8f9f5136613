"""Ridge regressions of many targets at many strengths on one design matrix, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seamscope.probes._design import Design


def fit_ridge(designs: Sequence[Design], owner: Tensor, Y: Tensor, alpha: Tensor, trained: Tensor) -> Tensor:
    """Minimise scikit-learn's `|y - X coef|^2 + alpha |coef|^2` (free intercept) for every problem.

    Args:
        designs: the rows, of one design or of several.
        owner: the design of each problem, (problems,).
        Y: values, (problems, outputs, n).
        alpha: strength of each problem's penalty, (problems,).
        trained: the rows that each problem is fitted on, (problems, n), bool.

    Returns:
        Weights on the principal axes, (problems, outputs, r + 1), padded, intercepts last, float64.
    """
    Z = designs[0].Z
    Y, alpha, owner = Y.to(Z), alpha.to(Z), owner.to(Z.device)
    widest = max(each.Z.shape[1] for each in designs)
    weights = Y.new_zeros(*Y.shape[:2], widest + 1)
    alike, group = torch.unique(torch.cat([owner[:, None], trained], 1), dim=0, return_inverse=True)
    for k, (design, *_) in enumerate(alike.tolist()):  # those that are fitted on the same rows share the factorisation
        mine = group == k
        rows = trained[mine][0][: len(designs[design].Z)]
        found = _fit(designs[design].Z[rows], Y[mine][..., : len(rows)][..., rows], alpha[mine])
        weights[mine, :, : found.shape[-1] - 1], weights[mine, :, -1] = found[..., :-1], found[..., -1]
    return weights


def _fit(Z: Tensor, Y: Tensor, alpha: Tensor) -> Tensor:
    mean, level = Z.mean(0), Y.mean(-1, keepdim=True)
    squares, turn = torch.linalg.eigh((Z - mean).T @ (Z - mean))
    seen = (Y - level) @ (Z - mean) @ turn
    coef = (seen / (squares.clamp(min=0) + alpha[:, None, None])) @ turn.T
    return torch.cat([coef, level - (coef @ mean)[..., None]], -1)
