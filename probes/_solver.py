"""Many multinomial logistic regressions that share one design matrix, fitted together.

A probe is fitted for every target, with its control and its shuffled labels, on the same rows: the problems
differ only in their labels. Their weights therefore stand side by side in one matrix, so that a step of all
of them is two matrix products. The method is L-BFGS after an exact rotation to the principal axes of the rows
(which leaves the penalty as it is), with a diagonal preconditioner there (Nocedal & Wright, Numerical
Optimization, algorithm 7.4) and a line search without further products: logits are linear in the weights.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

_MEMORY = 5  # pairs of steps and gradient changes that L-BFGS keeps
_ARMIJO = 1e-4  # share of the promised decrease that a step must give
_HALVINGS = 30  # before a line search gives up
_FLAT = 1e-13  # relative change of the objective that float64 cannot tell from none

Pair = tuple[Tensor, Tensor, Tensor]


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
    problems = _Problems.build(Z, Y.to(Z.device), C)
    W, converged, n_iter, objective = _minimise(problems, rtol, max_iter)
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


@dataclass(frozen=True)
class _Problems:
    """The objective in rotated coordinates; weights are (r + 1, problems, classes), intercepts last."""

    Z: Tensor  # (n, r + 1), last column ones
    labels: Tensor  # (n, problems), -1 outside the training set
    onehot: Tensor  # (n, problems, classes)
    weight: Tensor  # (n, problems, 1), cost, or 0 outside the training set
    absent: Tensor  # (problems, classes), -inf where the class is absent, else 0
    cost: Tensor  # (problems,), C, halved for two classes
    squares: Tensor  # (r + 1,), sum of squares of each column of Z

    @classmethod
    def build(cls, Z: Tensor, Y: Tensor, C: float) -> _Problems:
        labels = Y.T.contiguous()
        trained = (labels >= 0)[..., None]
        onehot = torch.nn.functional.one_hot(labels.clamp(min=0)).to(Z) * trained
        present = onehot.sum(0) > 0
        present[:, 0] |= ~present.any(1)  # a problem without rows predicts class 0
        absent = torch.zeros_like(onehot[0]).masked_fill(~present, -torch.inf)
        # two softmax rows of -+delta/2 pay half the penalty of scikit-learn's single row delta
        cost = torch.where(present.sum(1) == 2, C / 2, C).to(Z)
        Z = torch.cat([Z, torch.ones_like(Z[:, :1])], 1)
        return cls(Z, labels, onehot, trained * cost[:, None], absent, cost, (Z**2).sum(0))

    def logits(self, W: Tensor) -> Tensor:
        return (self.Z @ W.flatten(1)).view(-1, *W.shape[1:])

    def value(self, W: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Objective (problems,) and class probabilities (n, problems, classes)."""
        p = logits + self.absent
        top = p.amax(-1, keepdim=True)
        p = p.sub_(top).exp_()
        total = p.sum(-1, keepdim=True)
        own = logits.gather(2, self.labels.clamp(min=0)[..., None])
        loss = (total.log() + top - own).mul_(self.weight).sum((0, 2))
        return loss + 0.5 * (W[:-1] ** 2).sum((0, 2)), p.div_(total)

    def gradient(self, W: Tensor, p: Tensor) -> Tensor:
        residual = (p - self.onehot).mul_(self.weight)
        grad = (self.Z.T @ residual.flatten(1)).view(W.shape)
        grad[:-1] += W[:-1]
        return grad

    def curvature(self, p: Tensor) -> Tensor:
        """Diagonal of the Hessian, as if p (1 - p) were the same in all rows: (r + 1, problems, classes)."""
        spread = torch.addcmul(p, p, p, value=-1).mul_(self.weight).mean(0)
        diagonal = self.squares[:, None, None] * spread
        diagonal[:-1] += 1
        return diagonal.clamp_(min=1e-8)


def _minimise(problems: _Problems, rtol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W = torch.zeros(problems.Z.shape[1], *problems.absent.shape).to(problems.Z)
    logits = problems.logits(W)
    f, p = problems.value(W, logits)
    grad = problems.gradient(W, p)
    n_iter = torch.zeros_like(f, dtype=torch.long)
    pairs: deque[Pair] = deque(maxlen=_MEMORY)
    for step in range(max_iter + 1):
        diagonal = problems.curvature(p)
        converged = _gap(grad, diagonal) <= rtol * f.clamp(min=1e-12)
        if converged.all() or step == max_iter:
            break
        n_iter += ~converged
        direction = -_inverse_hessian(grad, diagonal, pairs) * ~converged[:, None]  # the others stand still
        t, logits, f, p = _line_search(problems, W, logits, f, direction, _dot(grad, direction))
        W = W + t * direction
        new = problems.gradient(W, p)
        pairs.append(_pair(t * direction, new - grad))
        grad = new
    return W, converged, n_iter, f


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((0, 2))


def _gap(grad: Tensor, diagonal: Tensor) -> Tensor:
    """Distance to the optimum, bounded by a curvature of at least 1 (the penalty's own) in every weight.

    Intercepts are not penalised; theirs is taken as 1 or, where that is less, as what it is here.
    """
    return 0.5 * _dot(grad, grad / diagonal.clamp(max=1))


def _pair(step: Tensor, change: Tensor) -> Pair:
    curvature = _dot(step, change)
    return step, change, torch.where(curvature > 0, 1 / curvature, 0)[:, None]


def _inverse_hessian(grad: Tensor, diagonal: Tensor, pairs: deque[Pair]) -> Tensor:
    """The two loops of L-BFGS over each problem's pairs."""
    q, weights = grad, []
    for step, change, rho in reversed(pairs):
        weights.append(rho * _dot(step, q)[:, None])
        q = q - weights[-1] * change
    q = q / diagonal * _fitted(diagonal, pairs)
    for step, change, rho in pairs:
        q = q + step * (weights.pop() - rho * _dot(change, q)[:, None])
    return q


def _fitted(diagonal: Tensor, pairs: deque[Pair]) -> Tensor:
    """Factor that makes the preconditioner agree with the last step (equation 7.20 there)."""
    if not pairs:
        return diagonal.new_ones(1)
    step, change, rho = pairs[-1]
    return torch.where(rho > 0, _dot(step, change) / _dot(change, change / diagonal), 1)[:, None]


def _line_search(
    problems: _Problems, W: Tensor, logits: Tensor, f: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Halve each problem's step until its objective falls enough: step, logits, objective, probabilities."""
    along = problems.logits(direction)
    t = torch.ones_like(f)[:, None]
    for _ in range(_HALVINGS):
        reached = logits + t * along
        value, p = problems.value(W + t * direction, reached)
        enough = value <= f + _ARMIJO * t[:, 0] * slope + _FLAT * f.abs()
        if enough.all():
            break
        bend = value - f - t[:, 0] * slope  # the parabola through both ends has its lowest point here
        lowest = (-0.5 * slope * t[:, 0] / bend).clamp(0.1, 0.6)[:, None]
        t = torch.where(enough[:, None], t, t * lowest)
    return t, reached, value, p
