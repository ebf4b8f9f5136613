"""The linear probe as a scikit-learn classifier."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from seamscope.probes._design import Design, Scale
from seamscope.probes._solver import fit_logistic


class LinearProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn ships no types
    """Standardised L2 logistic regression: what can be read off a representation linearly.

    The objective is that of `make_pipeline(StandardScaler(), LogisticRegression(C=C))`: multinomial with three
    classes or more, binary with two. `probe_grid` fits the same probe in many cells at once.

    Parameters:
        C: inverse strength of the penalty.
        rtol: accepted gap to the optimum, relative to the objective.
        max_iter: iterations after which the fit stops with a `ConvergenceWarning`.

    Attributes:
        classes_: labels in sorted order.
        coef_, intercept_: weights on the features as given, not standardised; (classes, d) and (classes,),
            with a single row for two classes, as in scikit-learn.
        converged_: whether the fit reached `rtol`.
        n_iter_: iterations.
    """

    def __init__(self, C: float = 1.0, *, rtol: float = 1e-4, max_iter: int = 500) -> None:
        self.C = C
        self.rtol = rtol
        self.max_iter = max_iter

    def fit(self, X: ArrayLike, y: ArrayLike) -> LinearProbe:
        """Fit to features (n, d) and labels (n,).

        Raises:
            ValueError: with fewer than two classes, or for a parameter that is no positive number.
        """
        self._check_parameters()
        features, labels = validate_data(self, X, y, dtype=np.float64)
        if np.issubdtype(labels.dtype, np.floating):  # of other labels it only says that many come once
            check_classification_targets(labels)
        self.classes_, code = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a probe needs at least two classes; got one class: {self.classes_[0]!r}")
        design = Design.of(torch.tensor(features))
        problem = torch.from_numpy(code.astype(np.int64))[None]
        fit = fit_logistic(design, problem, self.C, rtol=self.rtol, max_iter=self.max_iter)
        self._unscale(fit.coef[0], fit.intercept[0], design.scale)
        self.converged_ = bool(fit.converged[0])
        self.n_iter_ = max(int(fit.n_iter[0]), 1)
        if not self.converged_:
            warnings.warn(f"the probe did not converge in {self.max_iter} iterations", ConvergenceWarning, 2)
        return self

    def _check_parameters(self) -> None:
        for name, kind, wanted in (("C", Real, "number"), ("rtol", Real, "number"), ("max_iter", Integral, "integer")):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 < float(value) < float("inf"):
                raise ValueError(f"{name} is {value!r}; expected a positive {wanted}")

    def _unscale(self, coef: torch.Tensor, intercept: torch.Tensor, scale: Scale) -> None:
        """Move the standardisation into the weights, and two opposite rows into one."""
        if len(coef) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        raw = coef / scale.spread
        self.coef_ = raw.numpy()
        self.intercept_ = (intercept - raw @ scale.mean).numpy()

    def decision_function(self, X: ArrayLike) -> NDArray[Any]:
        """Logits, (n, classes); with two classes the logit of the second, (n,)."""
        check_is_fitted(self)
        features = validate_data(self, X, dtype=np.float64, reset=False)
        logits: NDArray[Any] = features @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[Any]:
        """Probabilities, (n, classes)."""
        logits = self.decision_function(X)
        both = np.stack([np.zeros_like(logits), logits], 1) if logits.ndim == 1 else logits
        return torch.from_numpy(both).softmax(-1).numpy()

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels, (n,)."""
        logits = self.decision_function(X)
        best = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)
        predicted: NDArray[Any] = self.classes_[best]
        return predicted
