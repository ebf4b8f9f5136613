"""The batched solver against scikit-learn at the same objective."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from seamscope.probes._design import Design
from seamscope.probes._solver import fit_logistic


def problem(n, d, classes, *, strength=0.5, seed=0):
    rng = np.random.default_rng(seed)
    y = np.r_[np.arange(classes), rng.integers(classes, size=n - classes)]
    X = rng.normal(size=(n, d)) * np.logspace(0, -1.5, d) + strength * rng.normal(size=(classes, d))[y]
    return X, y


def objective(X, y, coef, intercept, C):
    """scikit-learn's own, for one row of weights per class, or a single row for two classes."""
    logits = X @ coef.T + intercept
    if len(coef) == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    return C * (logsumexp(logits, 1) - logits[np.arange(len(y)), y]).sum() + 0.5 * (coef**2).sum()


def reference(X, y, C):
    return LogisticRegression(C=C, tol=1e-9, max_iter=50_000).fit(X, y)


def single_row(coef, intercept):
    """Two opposite rows as scikit-learn's one."""
    return (coef[1:] - coef[:1], intercept[1:] - intercept[:1]) if len(coef) == 2 else (coef, intercept)


def solve(X, labels, C, **options):
    design = Design.of(torch.tensor(X), scale=False)
    return fit_logistic(design, torch.tensor(np.atleast_2d(labels)), C, **options)


def predict(fit, X):
    return (torch.tensor(X) @ fit.coef.mT + fit.intercept[:, None]).argmax(-1)


def cosine(a, b):
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
@pytest.mark.parametrize(("n", "d", "classes"), [(120, 12, 4), (40, 60, 5), (60, 8, 2), (30, 50, 2), (90, 6, 13)])
def test_equals_scikit_learn(n, d, classes, C):
    X, y = problem(n, d, classes)
    fit, oracle = solve(X, y, C), reference(X, y, C)
    assert fit.converged.all()
    coef, intercept = single_row(fit.coef[0].numpy(), fit.intercept[0].numpy())
    best = objective(X, y, oracle.coef_, oracle.intercept_, C)
    assert objective(X, y, coef, intercept, C) == pytest.approx(best, rel=1e-4)
    assert fit.objective[0].item() == pytest.approx(best, rel=1e-4)
    assert cosine(coef, oracle.coef_) >= 0.999
    assert np.linalg.norm(coef) == pytest.approx(np.linalg.norm(oracle.coef_), rel=0.05)
    logits = torch.tensor(X) @ fit.coef[0].T + fit.intercept[0]
    np.testing.assert_allclose(logits.softmax(1).numpy(), oracle.predict_proba(X), atol=0.01)
    assert torch.equal(predict(fit, X)[0], logits.argmax(1))


def test_another_penalty_is_another_fit():
    """The comparison can fail: at a tenth of C the objective is missed by far."""
    X, y = problem(120, 12, 4)
    fit, oracle = solve(X, y, 0.1), reference(X, y, 1.0)
    best = objective(X, y, oracle.coef_, oracle.intercept_, 1.0)
    assert objective(X, y, fit.coef[0].numpy(), fit.intercept[0].numpy(), 1.0) > 1.05 * best


def test_problems_together_equal_problems_alone():
    X, y = problem(80, 10, 5)
    rng = np.random.default_rng(1)
    labels = np.stack([y, rng.permutation(y), rng.integers(2, size=80), rng.integers(9, size=80)])
    together = solve(X, labels, 1.0, rtol=1e-8)
    for index, own in enumerate(labels):
        alone = solve(X, own, 1.0, rtol=1e-8)
        classes = own.max() + 1
        assert torch.allclose(together.coef[index, :classes], alone.coef[0], atol=1e-3)
        assert together.objective[index].item() == pytest.approx(alone.objective[0].item(), rel=1e-7)


def test_rows_outside_the_training_set_do_not_count():
    X, y = problem(80, 10, 4)
    inside = np.random.default_rng(2).random(80) < 0.6
    masked = solve(X, np.where(inside, y, -1), 1.0, rtol=1e-9)
    oracle = reference(X[inside], y[inside], 1.0)
    assert cosine(masked.coef[0].numpy(), oracle.coef_) > 0.99999
    assert not np.allclose(masked.coef[0].numpy(), solve(X, y, 1.0, rtol=1e-9).coef[0].numpy(), atol=1e-2)


def test_a_class_without_training_rows_is_never_predicted():
    X, y = problem(60, 6, 4)
    fit = solve(X, np.where(y == 2, -1, y), 1.0)
    assert fit.converged.all()
    assert fit.intercept[0, 2] == -torch.inf
    assert fit.coef[0, 2].abs().max() == 0
    assert not (predict(fit, X) == 2).any()
    others = y != 2
    oracle = reference(X[others], y[others], 1.0)
    assert cosine(fit.coef[0, [0, 1, 3]].numpy(), oracle.coef_) > 0.999


def test_a_fit_that_stops_early_says_so():
    X, y = problem(80, 10, 4, strength=2)
    fit = solve(X, np.stack([y, np.zeros_like(y)]), 10.0, max_iter=2)
    assert fit.converged.tolist() == [False, True]
    assert fit.n_iter.tolist() == [4, 0]  # two in either precision


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
def test_the_reported_gap_holds(rtol):
    X, y = problem(100, 30, 6, strength=1)
    best = solve(X, y, 1.0, rtol=1e-12, max_iter=5000).objective.item()
    assert solve(X, y, 1.0, rtol=rtol).objective.item() <= best * (1 + rtol)


def test_degenerate_designs():
    X, y = problem(50, 5, 3)
    doubled = np.concatenate([X, X, np.zeros((50, 2)), np.ones((50, 1))], 1)
    assert solve(doubled, y, 1.0).converged.all()
    enormous = solve(1e6 * X, y, 1.0)
    assert enormous.coef.isfinite().all()
    assert predict(solve(X[:1], [0], 1.0), X).unique().tolist() == [0]
    assert solve(X[:3], [-1, -1, -1], 1.0).converged.all()


@pytest.mark.parametrize(("n", "d"), [(20, 7), (7, 20), (5, 5)])
def test_the_rotation_is_exact(n, d):
    X = torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    design = Design.of(X, scale=False)
    assert torch.allclose(design.Z @ design.axes.T, X)
    assert torch.allclose(design.axes.T @ design.axes, torch.eye(min(n, d), dtype=torch.float64))
    others = torch.randn(3, d, dtype=torch.float64)
    assert torch.allclose(design.project(others), others @ design.axes)
