"""The objective of many logistic regressions on the same rows: value, gradient and curvature of all at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problems:
    """The objective in rotated coordinates; weights are (r + 1, problems, classes), intercepts last."""

    Z: Tensor  # (n, r + 1), last column ones
    labels: Tensor  # (n, problems), -1 outside the training set
    onehot: Tensor  # (n, problems, classes)
    weight: Tensor  # (n, problems, 1), cost, or 0 outside the training set
    absent: Tensor  # (problems, classes), -inf where the class is absent, else 0
    cost: Tensor  # (problems,), C, halved for two classes
    squares: Tensor  # (r + 1,), sum of squares of each column of Z

    @classmethod
    def build(cls, Z: Tensor, Y: Tensor, C: float) -> Problems:
        """Problems of labels Y, (problems, n), -1 outside the training set, on rows Z, (n, r)."""
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
        """Logits of all rows, (n, problems, classes)."""
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
        """Gradient of the objective, in the shape of W."""
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
