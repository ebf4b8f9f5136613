"""L-BFGS for many problems side by side, each with its own steps; those that have arrived are taken out.

The matrix that stands for the inverse Hessian is kept in its compact form (Byrd, Nocedal & Schnabel 1994; Nocedal &
Wright, theorem 7.4), so that a direction costs two passes over the history. It starts from the diagonal of the Hessian,
renewed every few steps. The line search needs no further matrix product, because logits are linear in the weights.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

from seamscope.probes._objective import Problems, gap

MEMORY: Final = 3  # pairs of steps and gradient changes that are kept
_RENEW: Final = 3  # steps after which the diagonal is renewed
_LEAVING: Final = 0.25  # share of problems that have arrived, from which on they are taken out
_ARMIJO: Final = 1e-4  # share of the promised decrease that a step must give
_CUTS: Final = 30  # of a step, before a line search gives up
_STUCK: Final = 3  # steps without any decrease, after which there is none to be had in this precision
_BENT: Final = 100  # curvature along a step, relative to rounding, below which it says nothing


class Minimum(NamedTuple):
    """Weights (problems, classes, r + 1), whether the gap is small enough, iterations, and objective of each."""

    W: Tensor
    converged: Tensor
    n_iter: Tensor
    objective: Tensor


def minimise(problems: Problems, rtol: float, max_iter: int, start: Tensor | None = None) -> Minimum:
    """Minimise each objective until its `gap` is within `rtol` of it, for `max_iter` iterations at most.

    A problem also ends where rounding hides what is left to gain; then it has not converged.
    """
    W = torch.zeros(problems.shape).to(problems.Z) if start is None else start.to(problems.Z)
    found = Minimum(W.clone(), *(torch.zeros(len(W), dtype=t).to(W.device) for t in (torch.bool, torch.long, W.dtype)))
    state = _State.begin(problems, W)
    for step in range(max_iter + 1):
        arrived = gap(state.gradient, state.diagonal) <= rtol * state.f.clamp(min=1e-12)
        ended = arrived | (state.stuck >= _STUCK)
        last = step == max_iter or bool(ended.all())
        if last or ended.float().mean() >= _LEAVING:
            leaving = torch.ones_like(ended) if last else ended
            at = state.ids[leaving]
            found.W[at], found.objective[at] = state.W[leaving], state.f[leaving]
            found.converged[at], found.n_iter[at] = arrived[leaving], step
            if last:
                return found
            state = state.select(~ended)
        state.move(step)
    raise AssertionError("unreachable")


class _State:
    """Where the problems stand that have not arrived, and the history of their steps.

    The history is kept in coordinates in which the diagonal is 1: `H` (problems, 2 * MEMORY, classes * (r + 1)) has
    steps and then gradient changes; `sy` and `yy` (problems, MEMORY, MEMORY) are their inner products.
    """

    problems: Problems
    ids: Tensor
    W: Tensor
    logits: Tensor
    f: Tensor
    stuck: Tensor
    gradient: Tensor
    diagonal: Tensor
    H: Tensor
    sy: Tensor
    yy: Tensor
    held: Tensor  # the pairs of the history, the oldest first

    @classmethod
    def begin(cls, problems: Problems, W: Tensor) -> _State:
        state = cls()
        state.problems, state.W = problems, W
        state.ids = torch.arange(len(W), device=W.device)
        state.logits = problems.logits(W)
        state.f, p = problems.value(W, state.logits)
        state.stuck = torch.zeros_like(state.ids)
        state.diagonal = problems.curvature(p)
        state.gradient = problems.gradient(W, p)
        state.H = W.new_zeros(len(W), 2 * MEMORY, W[0].numel())
        state.sy, state.yy = (W.new_zeros(len(W), MEMORY, MEMORY) for _ in range(2))
        state.held = torch.zeros(0, dtype=torch.long, device=W.device)
        return state

    def select(self, kept: Tensor) -> _State:
        state = _State()
        state.problems, state.held = self.problems.select(kept), self.held
        for name in ("ids", "W", "logits", "f", "stuck", "gradient", "diagonal", "H", "sy", "yy"):
            setattr(state, name, getattr(self, name)[kept])
        return state

    def move(self, step: int) -> None:
        """One step of every problem."""
        root = self.diagonal.sqrt()
        direction = (self._direction((self.gradient / root).flatten(1)).view_as(root) / root).contiguous()
        slope = (direction * self.gradient).sum((1, 2))
        t, reached, f, p = self._search(direction, slope)
        renewed = self.problems.curvature(p) if (step + 1) % _RENEW == 0 else None
        W = torch.addcmul(self.W, t, direction)
        gradient = self.problems.gradient(W, p)
        self._remember((t * direction * root).flatten(1), ((gradient - self.gradient) / root).flatten(1), step)
        self.stuck = torch.where(self.f - f > 4 * torch.finfo(f.dtype).eps * f, 0, self.stuck + 1)
        self.W, self.logits, self.f, self.gradient = W, reached, f, gradient
        if renewed is not None:
            self._rescale((renewed / self.diagonal).sqrt_().flatten(1))
            self.diagonal = renewed

    def _search(self, direction: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shorten each problem's step until its objective falls enough: step, logits, objective, probabilities."""
        along = self.problems.logits(direction)
        flat = 10 * torch.finfo(self.f.dtype).eps  # relative change of the objective that cannot be told from none
        t = torch.ones_like(self.f)[:, None, None]
        for _ in range(_CUTS):
            reached = torch.addcmul(self.logits, t, along)
            f, p = self.problems.value(torch.addcmul(self.W, t, direction), reached)
            promised = t[:, 0, 0] * slope
            enough = f <= self.f + _ARMIJO * promised + flat * self.f.abs()
            if enough.all():
                break
            bend = f - self.f - promised  # the parabola through both ends has its lowest point here
            lowest = (-0.5 * promised / bend).nan_to_num(0.1).clamp(0.1, 0.6)
            t = torch.where(enough[:, None, None], t, t * lowest[:, None, None])
        else:  # rounding has made the direction useless: stay, and forget what it was made of
            t = torch.where(enough[:, None, None], t, 0)
            reached = torch.addcmul(self.logits, t, along)
            f, p = self.problems.value(torch.addcmul(self.W, t, direction), reached)
            self._forget(~enough)
        return t, reached, f, p

    def _direction(self, g: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient, (problems, classes * (r + 1))."""
        if not len(self.held):
            return -g
        steps = self.held
        bends, squares = (each.index_select(1, steps).index_select(2, steps) for each in (self.sy, self.yy))
        bend, newest = bends.diagonal(dim1=1, dim2=2)[..., None], squares[:, -1:, -1:]
        size = torch.where(newest > 0, bend[:, -1:] / newest.clamp(min=1e-30), 1)
        along = torch.bmm(self.H, g[..., None])
        u = torch.linalg.solve_triangular(bends, along.index_select(1, steps), upper=True)
        right = bend * u + size * (squares @ u - along.index_select(1, MEMORY + steps))
        weights = torch.zeros_like(along)
        weights.index_copy_(1, steps, torch.linalg.solve_triangular(bends.mT, right, upper=False))
        weights.index_copy_(1, MEMORY + steps, -size * u)
        found = -torch.baddbmm(size * g[:, None], weights.mT, self.H)[:, 0]
        uphill = (found * g).sum(1) >= 0  # rounding has made the history useless
        return torch.where(uphill[:, None], -g, found)

    def _remember(self, step: Tensor, change: Tensor, number: int) -> None:
        """Keep a pair in place of the oldest; one without curvature is kept as one that says nothing."""
        k = number % MEMORY
        bend, squares = (step * change).sum(1), change.square().sum(1)
        useful = bend > _BENT * torch.finfo(bend.dtype).eps * (squares * step.square().sum(1)).sqrt()
        self.H[:, k] = step * useful[:, None]
        self.H[:, MEMORY + k] = change * useful[:, None]
        along = torch.bmm(self.H, self.H[:, MEMORY + k, :, None])[..., 0]
        self.sy[:, k] = 0  # products of this step with older changes are never used
        self.sy[:, :, k] = along[:, :MEMORY]
        self.sy[:, k, k] = torch.where(useful, bend, 1)
        self.yy[:, :, k] = self.yy[:, k] = along[:, MEMORY:]
        if len(self.held) < MEMORY:
            self.held = torch.arange(k + 1, device=step.device)
        else:
            self.held = self.held.roll(-1)

    def _forget(self, which: Tensor) -> None:
        """Make the history of some problems say nothing."""
        self.H[which] = 0
        self.yy[which] = 0
        self.sy[which] = torch.eye(MEMORY).to(self.sy)

    def _rescale(self, root: Tensor) -> None:
        """Take the history to the coordinates of a new diagonal; inner products of steps and changes stay."""
        self.H[:, :MEMORY] *= root[:, None]
        self.H[:, MEMORY:] /= root[:, None]
        changes = self.H[:, MEMORY:]
        self.yy = torch.bmm(changes, changes.mT)
