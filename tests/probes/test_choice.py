"""Strengths are those that scikit-learn's grid search chooses, by the same measure, on the same inner folds."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

from seamscope.probes import probe_features, summarise
from seamscope.probes._choice import INNER, strengths_for
from seamscope.probes._folds import inner_folds
from seamscope.probes._kinds import TEMPERATURES, kind_of
from seamscope.probes._rows import Rows


def data(n=240, d=20, classes=5, signal=0.7, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    X = rng.normal(size=(n, d)) + signal * rng.normal(size=(classes, d))[labels]
    rows = pd.DataFrame({"group": [f"g{k // 2}" for k in range(n)], "var:x": labels, "type:x": rng.integers(9, size=n)})
    return X, rows


def shortest(model, X, y, seen):
    """Minus the mean bits of a label at the best temperature, by SciPy."""
    logits, column = model.decision_function(X), np.searchsorted(model.classes_, y)

    def at(temperature):
        p = softmax(temperature * logits, 1)[np.arange(len(y)), column]
        return np.log2((seen * p + 0.5) / (seen + 0.5 * len(model.classes_))).mean()

    return max(map(at, TEMPERATURES))


@pytest.mark.parametrize("signal", [0.0, 0.3, 1.0])
def test_the_same_strength_as_grid_search(signal):
    X, rows = data(signal=signal)
    table = probe_features(X, rows, "x", name="X", folds=4, code=False, control=False, shuffled=False)
    split = Rows({"": rows}, folds=4, seed=0)
    groups, in_fold = split.groups[""], split.in_fold[""]
    for fold, chosen in zip(table.fold, table.C, strict=True):
        train = np.flatnonzero(in_fold != fold)
        inner = inner_folds(groups[train], INNER, 0)
        search = GridSearchCV(
            LogisticRegression(tol=1e-6, max_iter=10_000),
            {"C": strengths_for(X.shape[1], None)},
            cv=[(np.flatnonzero(inner != k), np.flatnonzero(inner == k)) for k in range(INNER)],
            scoring=partial(shortest, seen=(inner != 0).sum()),
        )
        search.fit(StandardScaler().fit_transform(X[train]), rows["var:x"].to_numpy()[train])
        assert chosen == pytest.approx(search.best_params_["C"])


def test_outputs_that_are_larger_all_over_are_no_better():
    """What makes probabilities extreme, and leaves the highest class, is not what a strength is chosen by."""
    rng = np.random.default_rng(0)
    logits, labels = torch.tensor(rng.normal(size=(1, 4, 50))), torch.tensor(rng.integers(4, size=(1, 50)))
    fitness = [kind_of("logistic").fitness(logits * factor, labels, labels) for factor in (0.5, 1, 2, 4)]
    assert torch.stack(fitness).std() < 0.02 * abs(fitness[0])
    better = kind_of("logistic").fitness(logits + torch.nn.functional.one_hot(labels, 4).mT, labels, labels)
    assert better > max(fitness)


@pytest.mark.parametrize("kind", ["logistic", "ridge", "regression"])
def test_folds_need_not_be_of_one_size(kind):
    X, rows = data(n=46, classes=3, signal=2)
    table = probe_features(X, rows, "x", name="X", kind=kind, folds=5)
    assert len(set(table.n_train)) > 1
    assert table.converged.all()
    assert summarise(table).accuracy.item() > 0.5
