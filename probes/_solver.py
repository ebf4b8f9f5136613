"""Many multinomial logistic regressions that share one design matrix, fitted together.

A probe is fitted for every target, with its control and its shuffled labels, on the same rows: the problems
differ only in their labels. Their weights therefore stand side by side in one matrix, so that a step of all
of them is two matrix products. Before that, the rows are turned onto their principal axes, which leaves the
penalty as it is, makes wide designs small, and lets a diagonal preconditioner do most of the work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seamscope.probes._lbfgs import minimise
from seamscope.probes._objective import Problems


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """Fitted problems; a class that a problem's training rows lack has weight 0 and intercept -inf there.

    Attributes:
        coef: weights, (problems, classes, d), float64.
        intercept: (problems, classes), float64.
        converged: whether the estimated gap to the optimum is within the tolerance, (problems,), bool.
        n_iter: iterations until each problem was within it and stopped, (problems,), int64.
        objective: what was minimised, in scikit-learn's scale, (problems,), float64.
    """

    coef: Tensor
    intercept: Tensor
    converged: Tensor
    n_iter: Tensor
    objective: Tensor

    def predict(self, X: Tensor) -> Tensor:
        """Class of each row under each problem: (n, d) -> (problems, n), int64."""
        logits = X.to(self.coef) @ self.coef.flatten(0, 1).T + self.intercept.flatten()
        return logits.view(-1, *self.intercept.shape).argmax(-1).T


def fit_logistic(X: Tensor, Y: Tensor, C: float, *, rtol: float = 1e-4, max_iter: int = 500) -> LogisticFit:
    """Minimise scikit-learn's `C * sum(log loss) + |coef|^2 / 2` (free intercept) for every row of labels.

    Args:
        X: design matrix that all problems share, (n, d); computed in float64 on its own device.
        Y: labels 0, 1, ..., one row per problem, (problems, n); -1: not in that problem's training set.
        C: inverse strength of the penalty. With two classes the objective is that of scikit-learn's binary
            fit, and `coef` holds minus and plus half of its single row of weights.
        rtol: largest accepted gap to the optimum, relative to the objective.
        max_iter: iterations after which what is left is reported as not converged.
    """
    Z, axes = _rotate(X.double())
    problems = Problems.build(Z, Y.to(Z.device), C)
    W, converged, n_iter, objective = minimise(problems, rtol, max_iter)
    return LogisticFit(
        coef=torch.einsum("rpk,dr->pkd", W[:-1], axes),
        intercept=W[-1] + problems.absent,
        converged=converged,
        n_iter=n_iter,
        objective=objective * C / problems.cost,
    )


def _rotate(X: Tensor) -> tuple[Tensor, Tensor]:
    """Rows on their principal axes and those axes: (n, r), (d, r) with r = min(n, d) and X = Z @ axes.T."""
    n, d = X.shape
    basis = torch.linalg.qr(X.T).Q if n < d else torch.eye(d).to(X)
    reduced = X @ basis
    turn = torch.linalg.eigh(reduced.T @ reduced).eigenvectors
    return reduced @ turn, basis @ turn
