"""Many multinomial logistic regressions that share their rows, fitted together.

A probe is fitted for every target, with its controls, strengths and folds, on the same rows: the problems differ only
in their labels, in rows that are left out, and in the penalty. Their weights stand side by side in one matrix, so that
a step of all of them is two matrix products. Before that, the rows are turned onto their principal axes, which leaves
the penalty as it is, makes wide designs small, and lets a diagonal preconditioner do most of the work.

Steps are made in float32. Where they end, the gap to the optimum is measured in float64; what is not near enough goes
on in float64 from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from seamscope.probes._design import Design
from seamscope.probes._lbfgs import MEMORY, Minimum, minimise
from seamscope.probes._objective import Problems, gap, stack

AT_ONCE: Final = {"cpu": 2**23, "cuda": 2**28}  # numbers that the problems of one batch may have in memory
FINEST: Final = 1e-6  # tolerance below which float32 only loses time
SINGLE: Final = 0.5  # share of the tolerance that is asked of float32, so that float64 seldom finds more to do


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """Fitted problems; a class that a problem's training rows lack has weight 0 and intercept -inf there.

    Attributes:
        designs: the rows.
        owner: the design of each problem, (problems,).
        weights: on the principal axes, (problems, classes, r + 1), intercepts last, float64; classes that no training
            set of the problem has, and axes that its design lacks, are padded.
        converged: whether the estimated gap to the optimum is within the tolerance, (problems,), bool.
        n_iter: iterations until each problem was within it and stopped, (problems,), int64.
        objective: what was minimised, in scikit-learn's scale, (problems,), float64.
    """

    designs: tuple[Design, ...]
    owner: Tensor
    weights: Tensor
    converged: Tensor
    n_iter: Tensor
    objective: Tensor

    @property
    def coef(self) -> Tensor:
        """Weights on the standardised features, (problems, classes, d)."""
        axes = [each.axes for each in self.designs]
        turned = zip(self.weights[..., :-1], self.owner.tolist(), strict=True)
        return torch.stack([each[:, : axes[k].shape[1]] @ axes[k].T for each, k in turned])

    @property
    def intercept(self) -> Tensor:
        """Intercepts, (problems, classes)."""
        return self.weights[..., -1]


def fit_logistic(
    designs: Design | Sequence[Design],
    Y: Tensor,
    C: float | Tensor,
    *,
    owner: Tensor | None = None,
    classes: Tensor | None = None,
    rtol: float = 1e-4,
    max_iter: int = 500,
    exact: bool = True,
) -> LogisticFit:
    """Minimise scikit-learn's `C * sum(log loss) + |coef|^2 / 2` (free intercept) for every row of labels.

    Args:
        designs: the rows, of one design or of several with the same features.
        Y: labels 0, 1, ..., one row per problem, (problems, n); -1: not in that problem's training set, or beyond the
            rows of its design.
        C: inverse strength of the penalty, one or (problems,). With two classes the objective is that of
            scikit-learn's binary fit, and `coef` holds minus and plus half of its single row of weights.
        owner: the design of each problem, (problems,); the first, if not given.
        classes: how many classes each problem has, (problems,), where its labels may lack some; problems with equally
            many are fitted together.
        rtol: largest accepted gap to the optimum, relative to the objective.
        max_iter: iterations, in either precision, after which what is left is reported as not converged.
        exact: whether the gap is measured, and closed where float32 could not, in float64; without it `converged` and
            `objective` are what float32 makes of them, good for comparing fits but not for reporting one.
    """
    several = (designs,) if isinstance(designs, Design) else tuple(designs)
    Z = stack([each.Z for each in several])
    Y = Y.to(Z.device)
    owner = torch.zeros(len(Y), dtype=torch.long) if owner is None else owner
    owner = owner.to(Z.device)
    price = torch.as_tensor(C, dtype=torch.float64, device=Z.device).expand(len(Y))
    classes = (Y.amax(1).clamp(min=0) + 1 if classes is None else classes).cpu()
    fit = LogisticFit(
        designs=several,
        owner=owner,
        weights=Z.new_zeros(len(Y), int(classes.max()), Z.shape[2]),
        converged=torch.zeros_like(owner, dtype=torch.bool),
        n_iter=torch.zeros_like(owner),
        objective=torch.zeros_like(price),
    )
    fit.weights[..., -1] = -torch.inf
    single = Z.float()
    for size in sorted(set(classes.tolist())):
        alike = (classes == size).nonzero()[:, 0]
        alike = alike[price[alike].argsort(stable=True)]  # those that end after about as many steps, together
        each = size * (3 * Z.shape[1] + 2 * (MEMORY + 3) * Z.shape[2])
        for some in alike.split(max(1, AT_ONCE.get(Z.device.type, AT_ONCE["cpu"]) // each)):
            some = some[owner[some].argsort(stable=True)]
            problems = Problems.build(single, owner[some], Y[some], price[some], size)
            if exact:
                _fit(fit, some, problems, Z, rtol, max_iter)
            else:
                _put(fit, some, problems, minimise(problems, rtol, max_iter))
    return fit


def _fit(fit: LogisticFit, some: Tensor, problems: Problems, Z: Tensor, rtol: float, max_iter: int) -> None:
    """Fit some of the problems, and put down what was found."""
    single = minimise(problems, max(SINGLE * rtol, FINEST), max_iter)
    exact, W = problems.exact(Z), single.W.double()
    objective, p = exact.value(W, exact.logits(W))
    converged = gap(exact.gradient(W, p), exact.curvature(p)) <= rtol * objective.clamp(min=1e-12)
    found = Minimum(W, converged, single.n_iter, objective)
    if not converged.all():
        left = ~converged
        again = minimise(exact.select(left), rtol, max_iter, W[left])
        W[left], converged[left], objective[left] = again.W, again.converged, again.objective
        found.n_iter[left] += again.n_iter
    _put(fit, some, exact, found)


def _put(fit: LogisticFit, some: Tensor, problems: Problems, found: Minimum) -> None:
    """Put down what was found of some of the problems."""
    fit.weights[some, : found.W.shape[1]] = found.W.double()
    fit.weights[some, : found.W.shape[1], -1] += problems.absent[..., 0]
    scale = torch.where((problems.absent == 0).sum((1, 2)) == 2, 2.0, 1.0)  # two classes paid half
    fit.converged[some], fit.n_iter[some] = found.converged, found.n_iter
    fit.objective[some] = found.objective.double() * scale
