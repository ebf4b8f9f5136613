"""The kinds of probes: how each is fitted in many problems at once, and how a row is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from seamscope.hooks import StoreError, choose
from seamscope.probes._design import Design, power_of_two
from seamscope.probes._ridge import fit_ridge
from seamscope.probes._solver import fit_logistic

ROUGHLY: Final[dict[str, Any]] = {"rtol": 1e-3, "max_iter": 100, "exact": False}  # near enough to compare strengths

TEMPERATURES: Final = tuple(2.0**k for k in range(-7, 3))  # that logits are multiplied by before strengths are compared


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Problems that are fitted together.

    Attributes:
        designs: the rows, of one design or of several, as in `fit_logistic`.
        owner: the design of each problem, (problems,).
        Y: class codes, or numbers, (problems, n); what is beyond the rows of a problem's design does not count.
        C: inverse strength of each penalty, (problems,).
        sizes: how many outputs each problem has, (problems,).
    """

    designs: Sequence[Design]
    owner: Tensor
    Y: Tensor
    C: Tensor
    sizes: Tensor

    @property
    def trained(self) -> Tensor:
        """Which labels count, (problems, n)."""
        lengths = torch.tensor([len(each.Z) for each in self.designs], device=self.Y.device)
        return torch.arange(self.Y.shape[1], device=self.Y.device) < lengths[self.owner][:, None]


class Kind(ABC):
    """A linear probe.

    A `rough` fit is near enough to compare strengths.
    """

    name: str
    classifies: bool = True
    coded: bool = False  # whether it gives probabilities, in which labels can be coded

    @abstractmethod
    def fit(self, asked: Asked, *, rough: bool = False) -> tuple[Tensor, Tensor]:
        """Weights on the principal axes, (problems, outputs, r + 1), and which problems have converged."""

    def size(self, labels: Tensor) -> int:
        """How many outputs a probe has that knows these labels: one for each class."""
        return max(int(labels.max()), 0) + 1

    def scores(self, outputs: Tensor, Y: Tensor, fitted: Tensor) -> Tensor:
        """How well each row is predicted: outputs (problems, outputs, m) for labels (problems, m); (problems, m).

        `fitted` are the labels of the training rows, (problems, n).
        """
        return (outputs.argmax(1) == Y).double()

    def fitness(self, outputs: Tensor, Y: Tensor, fitted: Tensor) -> Tensor:
        """By what strengths are compared: the sum of `scores`, (problems,)."""
        return self.scores(outputs, Y, fitted).sum(1)


class Logistic(Kind):
    """L2-regularised logistic regression; multinomial with three classes or more."""

    name = "logistic"
    coded = True

    def fit(self, asked: Asked, *, rough: bool = False) -> tuple[Tensor, Tensor]:
        """See `fit_logistic`."""
        labels = asked.Y.masked_fill(~asked.trained, -1)
        options = ROUGHLY if rough else {}
        fit = fit_logistic(asked.designs, labels, asked.C, owner=asked.owner, classes=asked.sizes, **options)
        return fit.weights, fit.converged

    def fitness(self, outputs: Tensor, Y: Tensor, fitted: Tensor) -> Tensor:
        """Minus the bits that the labels take, at the best of `TEMPERATURES`, to which the highest class is blind.

        Of two strengths, accuracies are often the same but for a row, which rounding decides; these are not.
        """
        scaled = torch.stack([bits(outputs * each, Y, fitted.shape[1]).sum(1) for each in TEMPERATURES])
        return -scaled.amin(0)


class RidgeClassifier(Kind):
    """Ridge regression of -1 and +1 for each class; the highest wins, as in scikit-learn's `RidgeClassifier`."""

    name = "ridge"

    def fit(self, asked: Asked, *, rough: bool = False) -> tuple[Tensor, Tensor]:
        """See `fit_ridge`; the penalty is 1 / C."""
        trained = asked.trained
        ours = torch.nn.functional.one_hot(asked.Y.clamp(min=0), int(asked.sizes.max())).mT
        weights = fit_ridge(asked.designs, asked.owner, 2.0 * ours - 1.0, 1 / asked.C, trained)
        weights[..., -1].masked_fill_(~(ours * trained[:, None]).any(-1), -torch.inf)
        return weights, torch.ones_like(asked.owner, dtype=torch.bool)


class RidgeRegression(Kind):
    """Ridge regression of a number. A row's score is 1 - (error / spread)^2, so that the mean over rows is R^2.

    The spread is that of the training rows' labels around their mean. Outputs are in units of a power of two about as
    large as those labels, which rounds nothing and lets numbers be of any size.
    """

    name = "regression"
    classifies = False

    def fit(self, asked: Asked, *, rough: bool = False) -> tuple[Tensor, Tensor]:
        """See `fit_ridge`; the penalty is 1 / C."""
        trained = asked.trained
        labels = asked.Y / _unit(asked.Y.where(trained, 0))
        weights = fit_ridge(asked.designs, asked.owner, labels[:, None], 1 / asked.C, trained)
        return weights, torch.ones_like(asked.owner, dtype=torch.bool)

    def size(self, labels: Tensor) -> int:
        """One."""
        return 1

    def scores(self, outputs: Tensor, Y: Tensor, fitted: Tensor) -> Tensor:
        """1 - (error / spread)^2."""
        unit = _unit(fitted)
        spread = (fitted / unit).double().std(1, correction=0).clamp(min=torch.finfo(torch.float64).tiny)
        return 1 - ((outputs[:, 0] - Y / unit) / spread[:, None]).square()


KINDS: Final = {kind.name: kind for kind in (Logistic(), RidgeClassifier(), RidgeRegression())}


def kind_of(name: str) -> Kind:
    """Find a kind by its name; `StoreError` for another."""
    return KINDS[choose("kind of probe", name, KINDS, StoreError)]


def bits(logits: Tensor, Y: Tensor, seen: int) -> Tensor:
    """What labels cost in a code for one who sees the rows: logits (problems, classes, m), labels (problems, m).

    A code must give every class a probability, so half a row of each is added to the t rows that a probe has `seen`
    (Krichevsky & Trofimov 1981): p becomes (t p + 1/2) / (t + classes / 2).

    Returns:
        (problems, m).
    """
    own = logits.softmax(1).gather(1, Y[:, None])[:, 0]
    return -((seen * own + 0.5) / (seen + 0.5 * logits.shape[1])).log2()


def outputs(weights: Tensor, Z: Tensor) -> Tensor:
    """What a probe gives for turned rows: (..., outputs, r + 1) and (m, r) -> (..., outputs, m); r may be padded."""
    return weights[..., : Z.shape[1]] @ Z.T + weights[..., -1:]


def _unit(labels: Tensor) -> Tensor:
    """A power of two about as large as the largest of each problem's numbers, (problems, n) -> (problems, 1)."""
    return power_of_two(labels.double().abs().amax(1, keepdim=True))
