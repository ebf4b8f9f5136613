"""A design matrix that many fits share: standardised once, turned onto its principal axes once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from seamscope.hooks import StoreError

_CONSTANT: Final = 1e-12  # spread, relative to the mean, below which a feature carries nothing but rounding
_ROUNDED: Final = 1e-6  # spread, relative to its size, that a constant feature is given to hide its rounding
_FAINT: Final = 1e-300  # spread below which weights on the feature as given would overflow
_NOTHING: Final = 1e-12  # variance along an axis, relative to the largest, that is nothing but rounding


@dataclass(frozen=True)
class Scale:
    """Mean and spread of each feature, both (d,); one that does not vary has 1, or a millionth of its size if more.

    Features may be of any size that is a number: in between, each is divided by a power of two about as large as it is,
    which rounds nothing.
    """

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, X: Tensor) -> Scale:
        """Measure on training rows, (n, d), as scikit-learn's `StandardScaler` does."""
        unit = power_of_two(X.abs().amax(0))
        X = X / unit
        mean, spread = X.mean(0), X.std(0, correction=0)
        constant = (spread <= _CONSTANT * mean.abs()) | (spread * unit < _FAINT)
        return cls(mean * unit, torch.where(constant, (_ROUNDED * unit).clamp(min=1), spread * unit))

    @classmethod
    def none(cls, X: Tensor) -> Scale:
        """Leave features as they are."""
        return cls(torch.zeros_like(X[0]), torch.ones_like(X[0]))

    def apply(self, X: Tensor) -> Tensor:
        """Standardised rows, (n, d)."""
        unit = power_of_two(torch.maximum(self.mean.abs(), self.spread))
        return (X / unit - self.mean / unit) / (self.spread / unit)


@dataclass(frozen=True)
class Design:
    """Standardised training rows, and the same rows on their principal axes.

    An L2 penalty does not see the turn, so that fits on `Z`, which is as narrow as there are rows or features, are
    those on the rows themselves. The columns of `Z` are orthogonal.

    Attributes:
        scale: what standardises the features.
        rows: standardised training rows, (n, d), float64, that the axes are of.
        Z: the same on their axes, (n, r), float64; or some of them, see `among`.
        turn: the axes, (d, r); where there are fewer rows than features, what makes them of the rows, (n, r).
    """

    scale: Scale
    rows: Tensor
    Z: Tensor
    turn: Tensor

    @classmethod
    def of(cls, X: Tensor, *, scale: bool = True) -> Design:
        """Standardise training rows, (n, d), and turn them; computed in float64 on their own device.

        Raises:
            StoreError: for rows without features.
        """
        if not X.shape[1]:
            raise StoreError(f"there are no features to fit on: the {len(X)} rows are of width 0")
        X = X.double()
        how = Scale.of(X) if scale else Scale.none(X)
        rows = how.apply(X)
        wide = rows.shape[0] < rows.shape[1]
        squares, turn = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        kept = squares > _NOTHING * squares[-1].clamp(min=torch.finfo(squares.dtype).tiny)
        kept[-1] = True  # rows that are all alike have one axis, of no length
        turn, lengths = turn[:, kept], squares[kept].clamp(min=0).sqrt()
        if wide:
            return cls(how, rows, turn * lengths, torch.where(lengths > 0, turn / lengths, 0))
        return cls(how, rows, rows @ turn, turn)

    def among(self, kept: Tensor) -> Design:
        """Some of the rows, a mask or their numbers, standardised and turned as they are with the others."""
        return replace(self, Z=self.Z[kept])

    @property
    def axes(self) -> Tensor:
        """The principal axes, (d, r)."""
        return self.rows.T @ self.turn if self.wide else self.turn

    @property
    def wide(self) -> bool:
        """Whether there are fewer rows than features."""
        return self.rows.shape[0] < self.rows.shape[1]

    def project(self, X: Tensor) -> Tensor:
        """Other rows, (m, d), standardised and turned alike, (m, r)."""
        return self.turned(self.scale.apply(X.to(self.rows)))

    def turned(self, rows: Tensor) -> Tensor:
        """Rows that are standardised already, (m, d), on the axes, (m, r)."""
        return (rows @ self.rows.T if self.wide else rows) @ self.turn

    def distances(self, X: Tensor) -> Tensor:
        """Euclidean distance of other rows from each training row, both standardised, (m, n)."""
        return torch.cdist(self.scale.apply(X.to(self.rows)), self.rows)


def power_of_two(sizes: Tensor) -> Tensor:
    """The power of two at or below each of some numbers, to divide by without rounding; 1 for 0."""
    return torch.where(sizes > 0, sizes / (2 * torch.frexp(sizes).mantissa), 1)
