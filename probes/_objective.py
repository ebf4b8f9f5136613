"""The objective of many logistic regressions: value, gradient and curvature of all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

_LEAST: Final = 1e-30  # probability that counts as none; its logarithm is finite in float32


@dataclass(frozen=True)
class Problems:
    """Problems on turned rows; weights are (problems, classes, r + 1), intercepts last.

    Problems may have different designs, whose rows and columns are padded to the same number; those of one design stand
    together. What else differs are labels, rows that are not in the training set, and the price of an error.
    """

    Z: Tensor  # (designs, n, r + 1), last column ones
    squares: Tensor  # (designs, 1, r + 1), sum of squares of each column of Z
    owner: Tensor  # (problems,), ascending: the design of each
    bounds: list[int]  # (designs + 1,), where the problems of each design begin, and the end
    labels: Tensor  # (problems, 1, n), 0 outside the training set
    weight: Tensor  # (problems, 1, n), the price of an error, 0 outside the training set
    absent: Tensor  # (problems, classes, 1), -inf where the class is absent, else 0
    complete: bool  # whether no class is absent in any problem

    @classmethod
    def build(cls, Z: Tensor, owner: Tensor, Y: Tensor, C: Tensor, classes: int) -> Problems:
        """Problems of labels Y, (problems, n), -1 outside the training set, on rows Z, (designs, n, r + 1).

        Computed in the dtype of Z. `C`, (problems,), is scikit-learn's.
        """
        trained = Y >= 0
        labels = Y.clamp(min=0)
        counts = torch.zeros(len(Y), classes).to(Z).scatter_add_(1, labels, trained.to(Z))
        present = counts > 0
        present[:, 0] |= ~present.any(1)  # a problem without rows predicts class 0
        # two softmax rows of -+delta/2 pay half the penalty of scikit-learn's single row delta
        price = torch.where(present.sum(1) == 2, C / 2, C).to(Z)
        return cls(
            Z=Z,
            squares=Z.square().sum(1, keepdim=True),
            owner=owner,
            bounds=_bounds(owner, len(Z)),
            labels=labels[:, None],
            weight=(trained * price[:, None])[:, None],
            absent=torch.zeros_like(counts).masked_fill_(~present, -torch.inf)[..., None],
            complete=bool(present.all()),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the weights."""
        return len(self), self.absent.shape[1], self.Z.shape[2]

    def select(self, kept: Tensor) -> Problems:
        """Some of the problems."""
        some = {name: getattr(self, name)[kept] for name in ("owner", "labels", "weight", "absent")}
        return replace(self, **some, bounds=_bounds(some["owner"], len(self.Z)))

    def exact(self, Z: Tensor) -> Problems:
        """The same on rows in float64."""
        squares = Z.square().sum(1, keepdim=True)
        return replace(self, Z=Z, squares=squares, weight=self.weight.double(), absent=self.absent.double())

    def logits(self, W: Tensor) -> Tensor:
        """Logits of all rows, (problems, classes, n)."""
        return self._times(W, self.Z.mT)

    def value(self, W: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Objective (problems,) and class probabilities (problems, classes, n)."""
        p = torch.softmax(logits if self.complete else logits + self.absent, 1)
        own = p.gather(1, self.labels).clamp_(min=_LEAST).log_()
        return 0.5 * W[..., :-1].square().sum((1, 2)) - (own * self.weight).sum((1, 2)), p

    def curvature(self, p: Tensor) -> Tensor:
        """About the diagonal of the Hessian, in the shape of the weights.

        The spread p (1 - p) of a class is taken as the same in all rows, and |p - y| / 2 in its place. In the mean that
        is the same at the start and half of it at the end; but it does not vanish for a class that is predicted wrong
        beyond doubt, where a step that is divided by the spread would go anywhere.
        """
        residual = p.scatter_add(1, self.labels, torch.full_like(p[:, :1], -1.0))
        spread = residual.abs_().mul_(self.weight).mean(2, keepdim=True).mul_(0.5)
        diagonal = spread * self.squares[self.owner]
        diagonal[..., :-1] += 1
        return diagonal.clamp_(min=1e-8)

    def gradient(self, W: Tensor, p: Tensor) -> Tensor:
        """Gradient of the objective, in the shape of W; overwrites `p`."""
        residual = p.scatter_add_(1, self.labels, torch.full_like(p[:, :1], -1.0)).mul_(self.weight)
        gradient = self._times(residual, self.Z)
        gradient[..., :-1] += W[..., :-1]
        return gradient

    def _times(self, left: Tensor, right: Tensor) -> Tensor:
        """(problems, classes, a) times the (a, b) of each problem's design."""
        found = left.new_empty(*left.shape[:2], right.shape[2])
        for each, (start, stop) in zip(right, pairwise(self.bounds), strict=True):
            if stop > start:
                torch.mm(left[start:stop].flatten(0, 1), each, out=found[start:stop].view(-1, found.shape[2]))
        return found


def _bounds(owner: Tensor, designs: int) -> list[int]:
    bounds: list[int] = torch.searchsorted(owner, torch.arange(designs + 1, device=owner.device)).tolist()
    return bounds


def stack(rows: Sequence[Tensor]) -> Tensor:
    """Turned rows of several designs, (n, r) each, with a column of ones, padded to (designs, n, r + 1)."""
    n, r = (max(each.shape[axis] for each in rows) for axis in (0, 1))
    Z = rows[0].new_zeros(len(rows), n, r + 1)
    for into, each in zip(Z, rows, strict=True):
        into[: each.shape[0], : each.shape[1]] = each
        into[: each.shape[0], -1] = 1
    return Z


def gap(gradient: Tensor, diagonal: Tensor) -> Tensor:
    """Estimate from above of the distance of each objective to its optimum, (problems,).

    The penalty alone gives every weight a curvature of 1, so that half of |gradient|^2 would be a bound; the
    other half is for the intercepts, which have no penalty and whose curvature is only that of the diagonal.
    """
    return (gradient.square() / diagonal.clamp(max=1)).sum((1, 2))
