"""The probe as a scikit-learn estimator."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from seamscope.probes import LinearProbe


def data(classes, n=90, d=8):
    rng = np.random.default_rng(0)
    y = rng.integers(classes, size=n)
    return rng.normal(size=(n, d)) * np.logspace(0, 3, d) + 40 + rng.normal(size=(classes, d))[y], y


def test_passes_every_check_of_scikit_learn():
    results = check_estimator(LinearProbe(), on_skip=None)
    assert len(results) > 40
    skipped = {result["check_name"] for result in results if result["status"] != "passed"}
    assert skipped <= {"check_array_api_input"}  # needs SCIPY_ARRAY_API in the environment


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_equals_scikit_learns_pipeline(classes):
    X, y = data(classes)
    names = np.array(list("zyxwvut"))[y]
    probe = LinearProbe(C=0.5, rtol=1e-8).fit(X, names)
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, tol=1e-8, max_iter=9999)).fit(X, names)
    assert probe.classes_.tolist() == oracle.classes_.tolist()
    np.testing.assert_allclose(probe.predict_proba(X), oracle.predict_proba(X), atol=1e-3)
    np.testing.assert_allclose(
        probe.coef_ * oracle["standardscaler"].scale_, oracle["logisticregression"].coef_, atol=1e-3
    )
    assert probe.decision_function(X).shape == oracle.decision_function(X).shape
    assert (probe.predict(X) == oracle.predict(X)).all()


def test_works_inside_scikit_learns_tools():
    X, y = data(3)
    groups = np.arange(len(y)) // 2
    search = GridSearchCV(LinearProbe(), {"C": [0.1, 1.0]}, cv=3).fit(X, y)
    assert search.best_params_["C"] in (0.1, 1.0)
    assert len(cross_val_score(LinearProbe(), X, y, groups=groups, cv=GroupKFold(3))) == 3


def test_a_fit_that_stops_early_warns():
    X, y = data(3)
    with pytest.warns(ConvergenceWarning, match="did not converge in 1 iterations"):
        probe = LinearProbe(C=100, max_iter=1).fit(X, y)
    assert not probe.converged_
    assert LinearProbe().fit(X, y).converged_


def test_wrong_use():
    X, y = data(2)
    with pytest.raises(ValueError, match="at least two classes; got one class"):
        LinearProbe().fit(X, np.zeros(len(y)))
    with pytest.raises(NotFittedError):
        LinearProbe().predict(X)


@pytest.mark.parametrize(
    "wrong", [{"C": 0}, {"C": -1}, {"C": np.nan}, {"C": np.inf}, {"C": "a"}, {"C": True}, {"C": [1.0]}, {"rtol": 0}]
)
def test_parameters_that_are_no_positive_numbers_are_refused(wrong):
    X, y = data(2)
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name} is .*; expected a positive number$"):
        LinearProbe(**wrong).fit(X, y)
    with pytest.raises(ValueError, match=r"^max_iter is 2.5; expected a positive integer$"):
        LinearProbe(max_iter=2.5).fit(X, y)
    assert LinearProbe(C=np.float32(1), max_iter=np.int64(500)).fit(X, y).converged_


@pytest.mark.parametrize("exponent", [-900, -600, 600, 1000])
def test_features_of_any_size_are_fitted_as_those_of_size_one(exponent):
    X, y = data(3)
    X = X - X.mean(0)
    factors = 2.0 ** (exponent * (np.arange(X.shape[1]) % 2))  # of every other feature; powers of two round nothing
    plain, scaled = LinearProbe().fit(X, y), LinearProbe().fit(X * factors, y)
    assert (scaled.coef_ * factors == plain.coef_).all()
    assert (scaled.predict(X * factors) == plain.predict(X)).all()
    assert plain.score(X, y) > 0.6
