"""Change what a linear probe reads: erase it, or push it from one label towards another; a random control for each."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from seamscope.hooks import RunError, choose
from seamscope.probes._design import Scale

if TYPE_CHECKING:
    from jaxtyping import Float

with warnings.catch_warnings():  # the package makes use of torch.jit, of which torch warns
    warnings.simplefilter("ignore")
    from concept_erasure import LeaceFitter

NOTHING: Final = 1e-6  # correlation with a label below which there is nothing but rounding


@dataclass(frozen=True, eq=False)
class Eraser:
    """An affine projection that takes a subspace out: x -> x - left @ right @ (x - mean), float64.

    Attributes:
        left: (d, rank), what is taken away.
        right: (rank, d), what of a vector decides how much; `right @ left` is the identity.
        mean: (d,), of the rows that it was fitted on, which it leaves where it is.
    """

    left: Float[Tensor, "d rank"]
    right: Float[Tensor, "rank d"]
    mean: Float[Tensor, " d"]

    @property
    def rank(self) -> int:
        """How many dimensions are taken out."""
        return self.left.shape[1]

    def erase(self, x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Give vectors without the subspace, computed in float64, in the dtype and on the device of `x`."""
        if x.shape[-1] != len(self.mean):
            raise RunError(f"this eraser takes vectors of size {len(self.mean)}, not {x.shape[-1]}")
        wide = x.to(self.mean.device).double()
        return (wide - (wide - self.mean) @ self.right.mT @ self.left.mT).to(x)


def fit_eraser(X: Float[Tensor, "rows d"], labels: ArrayLike) -> Eraser:
    """Erase all that is linear of a label: LEACE (Belrose et al. 2306.03819).

    All labels have the same mean afterwards, so that on the rows that it was fitted on no linear classifier has a
    smaller loss than one that knows the labels' shares only (section 3). Of all affine maps of which that is true it
    changes the rows least (section 4), but that their covariance is shrunk, as there may be few. On other rows
    something is left: the fewer rows, the more. The rank is the number of labels less one, or smaller where some have
    the same mean.

    Raises:
        RunError: for rows and labels that do not fit, fewer than two labels, or values that are not finite.
    """
    rows, names, codes = _labelled(X, labels)
    return _fit(rows, torch.nn.functional.one_hot(codes, len(names)).to(rows))


def random_eraser(X: Float[Tensor, "rows d"], rank: int, seed: int, *, groups: ArrayLike | None = None) -> Eraser:
    """Erase as `fit_eraser` does, but what the same rows hold of `rank` random numbers: the control.

    As many dimensions are taken out, with the same regard for how the rows vary. Rows of one of `groups` get the same
    numbers: tokens that always share a label need a control in which they share what is drawn, or other directions
    would be taken out, along which tokens of one item differ and which matter less. The rank is smaller where rows
    vary in fewer dimensions, or groups are fewer.

    Raises:
        RunError: for a rank that is not between 0 and d, groups that do not fit, or values that are not finite.
    """
    rows = _finite(X)
    if not 0 <= rank <= rows.shape[1]:
        raise RunError(f"rank is {rank}; vectors of size {rows.shape[1]} can lose 0 to {rows.shape[1]} dimensions")
    names, codes = _coded(range(len(rows)) if groups is None else groups, rows, "group")
    numbers = _normal(len(names), max(rank, 1), seed=seed)[codes] * bool(rank)
    return _fit(rows, numbers.to(rows))


def _fit(X: Tensor, Z: Tensor) -> Eraser:
    """Make X (n, d) linearly independent of Z (n, k); what is found is the same for features of any scale.

    The package's own defaults would not do. Its tolerance leaves rare labels in. Its bound on the variance can only be
    exceeded by rounding, as covariance and whitening belong together. And its shrinkage, towards equal variances, is
    for standardised features; where rows are white already it gives something that is no covariance.
    """
    scale = Scale.of(X)
    rows = scale.apply(X)
    for shrinkage in (True, False):
        how = {"shrinkage": shrinkage, "svd_tol": NOTHING, "constrain_cov_trace": False}
        found = LeaceFitter.fit(rows, Z, **how).eraser
        kept = found.proj_left.any(0)
        left, right = found.proj_left[:, kept], found.proj_right[kept]
        if _covariance(rows - rows @ right.mT @ left.mT, Z) <= NOTHING * X.shape[1]:
            break
    return Eraser(scale.spread[:, None] * left, right / scale.spread, scale.mean)


def _covariance(X: Tensor, Z: Tensor) -> float:
    """How large the covariance of rows with labels is."""
    return float(((Z - Z.mean(0)).mT @ (X - X.mean(0))).norm() / len(X))


@dataclass(frozen=True, eq=False)
class Directions:
    """From each label to each other: the difference of their means.

    Attributes:
        labels: in sorted order.
        means: the mean of each label's rows, (labels, d), float64.
    """

    labels: tuple[str, ...]
    means: Float[Tensor, "labels d"]

    def between(self, from_label: str, to_label: str) -> Float[Tensor, " d"]:
        """What leads from one label's mean to another's; `RunError` for an unknown label."""
        start, end = (choose("label", each, self.labels, RunError) for each in (from_label, to_label))
        return self.means[self.labels.index(end)] - self.means[self.labels.index(start)]

    def random(self, from_label: str, to_label: str, *, seed: int) -> Float[Tensor, " d"]:
        """As long as `between`, in a random direction: the control."""
        real = self.between(from_label, to_label)
        drawn = _normal(len(real), seed=seed).to(real)
        return drawn.mul(real.norm() / drawn.norm())

    def push(
        self, x: Float[Tensor, "*any d"], from_label: str, to_label: str, strength: float = 1.0
    ) -> Float[Tensor, "*any d"]:
        """Give `x + strength * between(...)`, in the dtype and on the device of `x`."""
        return _add(x, strength * self.between(from_label, to_label))

    def random_push(
        self, x: Float[Tensor, "*any d"], from_label: str, to_label: str, strength: float = 1.0, *, seed: int
    ) -> Float[Tensor, "*any d"]:
        """Give `x + strength * random(...)`, in the dtype and on the device of `x`."""
        return _add(x, strength * self.random(from_label, to_label, seed=seed))


def fit_direction(X: Float[Tensor, "rows d"], labels: ArrayLike) -> Directions:
    """Take the mean of the rows of each label.

    Raises:
        RunError: for rows and labels that do not fit, fewer than two labels, or values that are not finite.
    """
    rows, names, codes = _labelled(X, labels)
    sums = torch.nn.functional.one_hot(codes, len(names)).to(rows).mT @ rows
    return Directions(names, sums / codes.bincount()[:, None])


def _add(x: Tensor, shift: Tensor) -> Tensor:
    return (x.to(shift.device).double() + shift).to(x)


def _normal(*shape: int, seed: int) -> Tensor:
    """Random numbers that are the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _finite(X: Tensor) -> Tensor:
    """Rows in float64, where they are if that can be there."""
    if X.ndim != 2:
        raise RunError(f"rows have shape (n, d), not {tuple(X.shape)}")
    rows = (X.cpu() if X.device.type == "mps" else X).detach().double()
    if not rows.isfinite().all():
        raise RunError("there are values that are not finite")
    return rows


def _labelled(X: Tensor, labels: ArrayLike) -> tuple[Tensor, tuple[str, ...], Tensor]:
    """Rows in float64, the names of the labels, and the code of each row's."""
    rows = _finite(X)
    names, codes = _coded(labels, rows, "label")
    if len(names) < 2:
        told = f"all {len(rows)} have {names[0]!r}" if names else "there are no rows"
        raise RunError(f"rows with at least two different labels are needed; {told}")
    return rows, names, codes.to(rows.device)


def _coded(given: ArrayLike, rows: Tensor, what: str) -> tuple[tuple[str, ...], Tensor]:
    """Names in sorted order, and the code of each row's."""
    listed = np.asarray(given, dtype=str)
    if listed.shape != rows.shape[:1]:
        raise RunError(f"each row needs one {what}; got {len(rows)} rows and {what}s of shape {listed.shape}")
    names, codes = np.unique(listed, return_inverse=True)
    return tuple(names.tolist()), torch.from_numpy(codes)
