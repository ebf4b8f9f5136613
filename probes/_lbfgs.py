"""L-BFGS for many problems side by side, each with its own steps (Nocedal & Wright, algorithm 7.4).

The preconditioner is the diagonal of the Hessian, and the line search needs no further matrix product, because
logits are linear in the weights.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from seamscope.probes._objective import Problems

_MEMORY = 5  # pairs of steps and gradient changes that are kept
_ARMIJO = 1e-4  # share of the promised decrease that a step must give
_CUTS = 30  # of a step, before a line search gives up
_FLAT = 1e-13  # relative change of the objective that float64 cannot tell from none

Pair = tuple[Tensor, Tensor, Tensor]


def minimise(problems: Problems, rtol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, whether the gap is within `rtol` of the objective, iterations, and objective of each problem."""
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
    """Estimate from above of the distance to the optimum.

    The penalty alone gives every weight a curvature of 1, so that half of |gradient|^2 would be a bound; the
    other half is for the intercepts, which have no penalty and whose curvature is only that of the diagonal.
    """
    return _dot(grad, grad / diagonal.clamp(max=1))


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
    factor = _dot(step, change) / _dot(change, change / diagonal)
    return torch.where(rho > 0, factor[:, None], 1)


def _line_search(
    problems: Problems, W: Tensor, logits: Tensor, f: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shorten each problem's step until its objective falls enough: step, logits, objective, probabilities."""
    along = problems.logits(direction)
    t = torch.ones_like(f)[:, None]
    for _ in range(_CUTS):
        reached = logits + t * along
        value, p = problems.value(W + t * direction, reached)
        enough = value <= f + _ARMIJO * t[:, 0] * slope + _FLAT * f.abs()
        if enough.all():
            break
        bend = value - f - t[:, 0] * slope  # the parabola through both ends has its lowest point here
        lowest = (-0.5 * slope * t[:, 0] / bend).clamp(0.1, 0.6)[:, None]
        t = torch.where(enough[:, None], t, t * lowest)
    return t, reached, value, p
