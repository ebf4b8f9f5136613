"""Standardising features by the mean and spread of the training rows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_CONSTANT = 1e-12  # spread, relative to the mean, below which a feature carries nothing but rounding


@dataclass(frozen=True)
class Scale:
    """Mean and spread per feature, both (d,); a feature that does not vary keeps spread 1."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, X: Tensor) -> Scale:
        """Measure on training rows, (n, d), as scikit-learn's `StandardScaler` does."""
        mean, spread = X.mean(0), X.std(0, correction=0)
        constant = spread <= _CONSTANT * mean.abs()
        return cls(mean, spread.masked_fill(constant, 1.0))

    def apply(self, X: Tensor) -> Tensor:
        """Standardised rows, (n, d)."""
        return (X - self.mean) / self.spread
