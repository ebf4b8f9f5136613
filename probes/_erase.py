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
    from concept_erasure import LeaceFitter, optimal_linear_shrinkage

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


class EraserFitter:
    """Rows (n, d) on axes on which they are white, once for all that is to be erased from them.

    What is found is the same for features of any scale. The covariance of the standardised rows is shrunk, as there
    may be few of them; where they are white already the shrinkage gives something that is no covariance, and none is
    done.

    Raises:
        RunError: for values that are not finite.
    """

    def __init__(self, X: Float[Tensor, "rows d"]) -> None:
        rows = _finite(X)
        self._scale = Scale.of(rows)
        standard = self._scale.apply(rows)
        plain = standard.mT @ standard / len(rows)
        variances, axes = torch.linalg.eigh(optimal_linear_shrinkage(plain, len(rows)))
        if variances[0] <= 0:
            variances, axes = torch.linalg.eigh(plain)
        kept = variances > variances[-1] * len(variances) * torch.finfo(variances.dtype).eps
        spread = torch.where(kept, variances, 0).sqrt()
        self._to, self._back = axes * torch.where(kept, 1 / spread, 0), axes * spread
        self._white = standard @ self._to

    def fit(self, labels: ArrayLike) -> Eraser:
        """Erase all that is linear of a label: see `fit_eraser`."""
        names, codes = _labelled(labels, self._white)
        return self._erase(torch.nn.functional.one_hot(codes, len(names)))

    def random(self, rank: int, seed: int, *, groups: ArrayLike | None = None) -> Eraser:
        """Erase random numbers: see `random_eraser`."""
        n, d = self._white.shape
        if not 0 <= rank <= d:
            raise RunError(f"rank is {rank}; vectors of size {d} can lose 0 to {d} dimensions")
        names, codes = _coded(range(n) if groups is None else groups, self._white, "group")
        return self._erase(_normal(len(names), max(rank, 1), seed=seed)[codes] * bool(rank))

    def _erase(self, Z: Tensor) -> Eraser:
        """Make the rows linearly independent of Z (n, k): where they are white, by an orthogonal projection."""
        found = LeaceFitter.fit(self._white, Z.to(self._white), method="orth", svd_tol=NOTHING).eraser
        lost = found.proj_left[:, found.proj_left.any(0)]
        spread, mean = self._scale.spread, self._scale.mean
        return Eraser(spread[:, None] * (self._back @ lost), (self._to @ lost).mT / spread, mean)


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
    return EraserFitter(X).fit(labels)


def random_eraser(X: Float[Tensor, "rows d"], rank: int, seed: int, *, groups: ArrayLike | None = None) -> Eraser:
    """Erase as `fit_eraser` does, but what the same rows hold of `rank` random numbers: the control.

    As many dimensions are taken out, with the same regard for how the rows vary. Rows of one of `groups` get the same
    numbers: tokens that always share a label need a control in which they share what is drawn, or other directions
    would be taken out, along which tokens of one item differ and which matter less. The rank is smaller where rows
    vary in fewer dimensions, or groups are fewer.

    Raises:
        RunError: for a rank that is not between 0 and d, groups that do not fit, or values that are not finite.
    """
    return EraserFitter(X).random(rank, seed, groups=groups)


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
    rows = _finite(X)
    names, codes = _labelled(labels, rows)
    sums = torch.nn.functional.one_hot(codes, len(names)).to(rows).mT @ rows
    return Directions(names, sums / codes.bincount()[:, None].to(rows))


def _add(x: Tensor, shift: Tensor) -> Tensor:
    return (x.to(shift.device).double() + shift).to(x)


def _normal(*shape: int, seed: int) -> Tensor:
    """Random numbers that are the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _finite(X: Tensor) -> Tensor:
    """Rows in float64, where they are if that can be there."""
    if X.ndim != 2 or len(X) < 2:
        raise RunError(f"rows are needed of shape (n, d), two at least, not {tuple(X.shape)}")
    rows = (X.cpu() if X.device.type == "mps" else X).detach().double()
    if not rows.isfinite().all():
        raise RunError("there are values that are not finite")
    return rows


def _labelled(labels: ArrayLike, rows: Tensor) -> tuple[tuple[str, ...], Tensor]:
    """The names of at least two labels, and the code of each row's."""
    names, codes = _coded(labels, rows, "label")
    if len(names) < 2:
        raise RunError(f"rows with at least two different labels are needed; all {len(rows)} have {names[0]!r}")
    return names, codes


def _coded(given: ArrayLike, rows: Tensor, what: str) -> tuple[tuple[str, ...], Tensor]:
    """Names in sorted order, and the code of each row's."""
    listed = np.asarray(given, dtype=str)
    if listed.shape != rows.shape[:1]:
        raise RunError(f"each row needs one {what}; got {len(rows)} rows and {what}s of shape {listed.shape}")
    names, codes = np.unique(listed, return_inverse=True)
    return tuple(names.tolist()), torch.from_numpy(codes)
