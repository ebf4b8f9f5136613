"""What cannot be probed is told in one line; what can is right, and flagged."""

import numpy as np
import pandas as pd
import pytest
import torch

from seamscope.hooks import Ragged, StoreError
from seamscope.probes import probe_features, probe_grid, summarise
from seamscope.probes._choice import strengths_of
from seamscope.probes._folds import groups_of
from seamscope.probes._kinds import ROUGHLY
from seamscope.probes._solver import fit_logistic

SITE = "lm.0.resid_post"


def rows_of(labels, **columns):
    n = len(labels)
    ids = [str(i) for i in range(n)]
    return pd.DataFrame({"id": ids, "group": ids, "var:x": labels, "type:x": np.arange(n) % 7, **columns})


def probe(X, labels, **options):
    return probe_features(X, rows_of(labels), "x", name="made up", **options)


def noise(n, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_one_class_is_refused():
    with pytest.raises(StoreError, match="target 'x' has 1 classes; a probe needs at least 2"):
        probe(noise(20), ["a"] * 20)


def test_one_row_is_refused():
    with pytest.raises(StoreError, match=r"target 'x' has 1 classes|cannot make 5 folds of 1 groups"):
        probe(noise(1), ["a"])


def test_values_that_are_not_finite_are_refused(make_store):
    X = noise(20)
    X[3, 2] = np.nan
    with pytest.raises(StoreError, match=r"features must be finite, \(rows, d\) for 20 rows"):
        probe(X, np.arange(20) % 2)
    acts = Ragged(torch.tensor(X), torch.ones(20, dtype=torch.long))
    store = make_store({"direct": (rows_of(np.arange(20) % 2), {(SITE, "last"): acts})})
    with pytest.raises(StoreError, match=r"lm.0.resid_post at last under direct holds values that are not finite"):
        probe_grid(store, "x")
    with pytest.raises(StoreError, match=r"features must be finite, \(rows, d\) for 20 rows; got \(19, 6\)"):
        probe(noise(19), np.arange(20) % 2)


def test_constant_features_say_nothing_and_harm_nothing():
    labels = np.arange(80) % 2
    X = noise(80, 3) + 3 * labels[:, None]
    padded = np.concatenate([X, np.full((80, 5), 7.0), np.zeros((80, 2))], 1)
    with_them, without = (summarise(probe(each, labels, C=0.1)).iloc[0] for each in (padded, X))
    assert with_them.accuracy == without.accuracy > 0.95
    assert with_them.converged
    nothing = summarise(probe(np.full((80, 4), 2.0), labels)).iloc[0]
    assert nothing.accuracy <= 0.6
    assert nothing.converged


@pytest.mark.parametrize("size", [1e200, 1e307, 1e-200])
@pytest.mark.parametrize("where", ["varies", "constant"])
def test_features_of_any_size(size, where):
    """A separating feature of such a size is found; a constant one beside it changes nothing."""
    labels = np.arange(80) % 2
    X = noise(80, 3)
    found = labels - 0.5 + 0.01 * X[:, 0]
    X = np.c_[X, size * found] if where == "varies" else np.c_[X, found, np.full(80, size / 3)]
    scored = summarise(probe(X, labels, code=False)).iloc[0]
    assert scored.accuracy == 1
    assert scored.converged
    assert summarise(probe(X[:, :3], labels, code=False)).accuracy[0] < 0.75


def test_features_that_are_none_are_refused():
    with pytest.raises(StoreError, match=r"^there are no features to fit on: the \d+ rows are of width 0$"):
        probe(np.zeros((20, 0)), np.arange(20) % 2)


@pytest.mark.parametrize("C", [np.array([2, 1]), np.array([1.0, 2.0]), pd.Series([1, 2]), torch.tensor([1, 2]), (2, 1)])
def test_strengths_may_be_arrays_of_numbers(C):
    assert strengths_of(C) == (1.0, 2.0)
    assert strengths_of(np.float64(3)) == strengths_of(3) == (3.0,)
    table = probe(noise(20), np.arange(20) % 2, C=C, control=False, shuffled=False, code=False)
    assert set(table.C) <= {1.0, 2.0}


@pytest.mark.parametrize(
    "C", [np.array([1, 0]), np.array([np.nan]), np.ones((2, 2)), [], [[1], [1, 2]], "1", ["1"], True, {1, 2}, [1, None]]
)
def test_strengths_that_are_none_are_refused(C):
    with pytest.raises(StoreError, match=r"^C is .*; expected positive numbers, the inverse strengths of the penalty$"):
        probe(noise(20), np.arange(20) % 2, C=C)


def test_rough_fits_do_not_say_whether_a_probe_has_converged(monkeypatch):
    X, labels = noise(60) + 0.5 * (np.arange(60) % 3)[:, None], np.arange(60) % 3
    monkeypatch.setitem(ROUGHLY, "max_iter", 1)
    assert probe(X, labels).converged.all()
    monkeypatch.setitem(ROUGHLY, "max_iter", 100)
    fit = "seamscope.probes._kinds.fit_logistic"
    monkeypatch.setattr(fit, lambda *args, **options: fit_logistic(*args, **({"max_iter": 1} | options)))
    assert not probe(X, labels, C=100.0).converged.any()


def test_ten_thousand_classes_that_come_once_are_refused_at_once():
    with pytest.raises(
        StoreError, match=r"has 10000 classes, 10000 of them in one group only.* probe a coarser variable"
    ):
        probe(noise(10_000, 4), np.arange(10_000))


def test_very_many_classes_are_fitted_and_called_starved():
    labels = np.repeat(np.arange(400), 3)
    X = np.random.default_rng(1).normal(size=(400, 48))[labels] + 0.01 * noise(1200, 48)
    found = summarise(probe(X, labels, control=False, shuffled=False, code=False, C=10.0, folds=3)).iloc[0]
    assert found.starved
    assert found.n_classes == 400
    assert found.converged
    assert found.accuracy == pytest.approx(found.copies, abs=0.01)  # a class that was not fitted is never right
    assert found.uniform == 1 / 400


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(StoreError, match="cannot make 5 folds of 4 groups; give between 2 and 4"):
        probe(noise(4), [0, 1, 0, 1])


def test_a_few_rows_are_fitted_and_called_starved():
    found = summarise(probe(noise(6), [0, 1] * 3, folds=3)).iloc[0]
    assert found.starved
    assert 0 <= found.low <= found.accuracy <= found.high <= 1


class TestLeaks:
    """Every item has a copy: nothing but the copy can be learnt of labels that are drawn at random."""

    def data(self, seed=0):
        rng = np.random.default_rng(seed)
        labels = np.repeat(rng.integers(3, size=100), 2)
        X = np.repeat(rng.normal(size=(100, 64)), 2, axis=0) + 0.02 * rng.normal(size=(200, 64))
        return X, rows_of(labels), [f"picture {k // 2}" for k in range(200)]

    def test_one_picture_is_never_on_both_sides_whatever_the_groups_say(self):
        X, rows, pictures = self.data()
        leaking = summarise(probe_features(X, rows, "x", name="leaking")).iloc[0]
        mended = summarise(probe_features(X, rows.assign(image=pictures), "x", name="mended")).iloc[0]
        assert leaking.low > 0.6
        assert mended.low < 1 / 3 < mended.high
        assert (leaking.n_groups, mended.n_groups) == (200, 100)

    def test_copies_are_counted_where_no_picture_tells(self):
        X, rows, pictures = self.data()
        leaking = summarise(probe_features(X, rows, "x", name="leaking")).iloc[0]
        mended = summarise(probe_features(X, rows.assign(image=pictures), "x", name="mended")).iloc[0]
        assert leaking.copies > 0.7
        assert mended.copies == 0

    def test_groups_are_joined_through_pictures_in_any_condition(self):
        direct = pd.DataFrame({"group": ["a", "b", "c", "d"], "image": ["1", "2", "1", "3"]})
        cascaded = pd.DataFrame({"group": ["b", "d", "e"], "image": ["9", "2", None]})
        found = groups_of({"direct": direct, "cascaded": cascaded})
        assert found["direct"].tolist() == ["a", "b", "a", "b"]
        assert found["cascaded"].tolist() == ["b", "b", "e"]
