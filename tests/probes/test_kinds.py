"""Ridge probes against scikit-learn, for classes and for numbers."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

from seamscope.hooks import Ragged, StoreError
from seamscope.probes import probe_grid, summarise
from seamscope.probes._design import Design
from seamscope.probes._ridge import fit_ridge

SITE = "lm.0.resid_post"


def store_of(make_store, X, labels, **columns):
    n = len(labels)
    rows = pd.DataFrame({"id": [str(i) for i in range(n)], "group": [f"g{i // 2}" for i in range(n)], "var:x": labels})
    acts = Ragged(torch.tensor(X, dtype=torch.float64), torch.ones(n, dtype=torch.long))
    return make_store({"direct": (rows.assign(**columns), {(SITE, "last"): acts})})


@pytest.mark.parametrize(("n", "d"), [(60, 8), (30, 50)])
def test_equals_scikit_learns_ridge_also_on_some_rows(n, d):
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(n, d)) + 3, rng.normal(size=(2, 1, n))
    trained = rng.random((2, n)) < 0.7
    design = Design.of(torch.tensor(X))
    weights = fit_ridge(
        [design], torch.zeros(2, dtype=torch.long), torch.tensor(Y), torch.tensor([0.5, 20.0]), torch.tensor(trained)
    )
    standard = StandardScaler().fit_transform(X)
    for k, alpha in enumerate((0.5, 20.0)):
        oracle = Ridge(alpha=alpha).fit(standard[trained[k]], Y[k, 0, trained[k]])
        coef = (weights[k, 0, :-1] @ design.axes.T).numpy()
        np.testing.assert_allclose(coef, oracle.coef_, atol=1e-8)
        given = (weights[k, 0, :-1] @ design.Z.T + weights[k, 0, -1]).numpy()
        np.testing.assert_allclose(given, oracle.predict(standard), atol=1e-8)


@pytest.mark.parametrize("classes", [2, 4])
def test_a_ridge_classifier_is_scikit_learns(make_store, classes):
    rng = np.random.default_rng(1)
    y = rng.integers(classes, size=80)
    X = rng.normal(size=(80, 10)) + 0.8 * rng.normal(size=(classes, 10))[y]
    grid = probe_grid(store_of(make_store, X, y), "x", kind="ridge", C=0.05, control=False)
    for row in grid.itertuples():
        train = np.setdiff1d(np.arange(80), row.rows)
        scaler = StandardScaler().fit(X[train])
        oracle = RidgeClassifier(alpha=20.0).fit(scaler.transform(X[train]), y[train])
        assert (row.correct == (oracle.predict(scaler.transform(X[row.rows])) == y[row.rows])).all()
    assert np.isnan(summarise(grid).bits[0])


def test_a_number_is_scored_by_the_share_of_its_variance(make_store):
    rng = np.random.default_rng(2)
    X = rng.normal(size=(200, 6))
    y = X @ rng.normal(size=6) + 0.5 * rng.normal(size=200)
    grid = probe_grid(store_of(make_store, X, y), "x", kind="regression", C=1.0, control=False)
    for row in grid.itertuples():
        train = np.setdiff1d(np.arange(200), row.rows)
        scaler = StandardScaler().fit(X[train])
        oracle = Ridge(alpha=1.0).fit(scaler.transform(X[train]), y[train])
        error = (oracle.predict(scaler.transform(X[row.rows])) - y[row.rows]) ** 2
        assert row.accuracy == pytest.approx(1 - error.mean() / y[train].var(), abs=1e-8)
    found = summarise(grid).iloc[0]
    assert found.accuracy > 0.8
    assert found.shuffled_accuracy < 0.1
    assert found.q < 1e-6
    assert found.chance == 0


@pytest.mark.parametrize("size", [2.0**1020, 2.0**-900])
def test_numbers_of_any_size_are_predicted_as_those_of_size_one(make_store, size):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(60, 3))
    y = np.sign(X[:, 0]) * rng.uniform(7, 9, size=60)
    plain, scaled = (
        summarise(probe_grid(store_of(make_store, X, labels), "x", kind="regression", control=False)).iloc[0]
        for labels in (y, y * size)
    )
    assert scaled.accuracy == plain.accuracy > 0.4
    assert scaled.shuffled_accuracy == plain.shuffled_accuracy < 0.2


def test_what_is_no_number_is_refused_in_one_line(make_store):
    labels = ["1", "2", "three", "4"] * 10
    store = store_of(make_store, np.random.default_rng(0).normal(size=(40, 2)), labels)
    with pytest.raises(StoreError, match="'x' is to be predicted as a number, but 'three' is none"):
        probe_grid(store, "x", kind="regression", control=False)
    with pytest.raises(StoreError, match=r"unknown kind of probe 'svm'.*logistic, ridge, regression"):
        probe_grid(store, "x", kind="svm")
    with pytest.raises(StoreError, match="C is -1; expected positive numbers"):
        probe_grid(store, "x", C=-1)
