"""Labels, their control and shuffle, and the folds."""

import numpy as np
import pandas as pd
import pytest

from seamscope.hooks import StoreError
from seamscope.probes._folds import grouped_folds
from seamscope.probes._labels import control_labels, make_labels, shuffled_labels


def rng():
    return np.random.default_rng(0)


def test_a_control_label_belongs_to_a_type():
    real = np.random.default_rng(1).integers(4, size=200)
    types = np.random.default_rng(2).integers(30, size=200)
    control = control_labels(real, types, rng())
    assert all(len(set(control[types == kind])) == 1 for kind in set(types))
    assert len(set(control)) > 1
    assert abs((control == real).mean() - 0.25) < 0.12


def test_control_labels_have_the_frequencies_of_the_real_ones():
    real = np.r_[np.zeros(9000, int), np.ones(1000, int)]
    control = control_labels(real, np.arange(10_000), rng())
    assert control.mean() == pytest.approx(0.1, abs=0.02)


def test_control_with_few_types_has_more_than_one_label():
    real = np.r_[np.zeros(97, int), [1, 1, 1]]
    for seed in range(20):
        assert len(set(control_labels(real, np.arange(100) % 2, np.random.default_rng(seed)))) == 2


def test_rows_without_a_label_keep_none_and_rows_without_a_type_are_their_own():
    real = np.array([0, -1, 1, 0, 1, -1] * 20)
    for labels in (control_labels(real, np.full(120, -1), rng()), shuffled_labels(real, rng())):
        assert ((labels < 0) == (real < 0)).all()
        assert not (labels == real).all()


def test_a_shuffle_keeps_the_counts():
    real = np.random.default_rng(1).integers(5, size=300)
    assert (np.bincount(shuffled_labels(real, rng())) == np.bincount(real)).all()


def test_labels_do_not_depend_on_the_order_of_targets_or_sites():
    rows = pd.DataFrame({"var:a": list("xyzx") * 9, "type:a": list("pqrs") * 9})
    one, other = (make_labels(rows, "a", control=True, shuffled=True, seed=3).problems for _ in range(2))
    assert all((one[kind] == other[kind]).all() for kind in ("real", "control", "shuffled"))
    another = make_labels(rows, "a", control=True, shuffled=True, seed=4).problems
    assert not (one["shuffled"] == another["shuffled"]).all()
    assert (one["real"][:4] == [0, 1, 2, 0]).all()


@pytest.mark.parametrize(
    "column",
    [["b", "a", None, "b"], [2, 1, None, 2], [True, False, None, True], [2.5, -1.0, float("nan"), 2.5]],
)
def test_codes_of_any_column(column):
    rows = pd.DataFrame({"var:a": column})
    assert make_labels(rows, "a", control=False, shuffled=False, seed=0).problems["real"].tolist() == [1, 0, -1, 1]


def test_wrong_targets():
    rows = pd.DataFrame({"var:card.0.rank": ["a", "b"], "var:one": ["a", "a"], "var:none": [None, None]})
    options = {"shuffled": False, "seed": 0}
    with pytest.raises(StoreError, match=r"unknown target 'card.rank'; .*card\.0\.rank"):
        make_labels(rows, "card.rank", control=False, **options)
    with pytest.raises(StoreError, match=r"unknown control type \(give control=False .* 'card.0.rank'"):
        make_labels(rows, "card.0.rank", control=True, **options)
    with pytest.raises(StoreError, match="target 'one' has 1 classes; a probe needs at least 2"):
        make_labels(rows, "one", control=False, **options)
    with pytest.raises(StoreError, match="target 'none' has 0 classes"):
        make_labels(rows, "none", control=False, **options)


def test_folds_are_even_and_depend_on_seed_and_names_only():
    names = [f"g{i}" for i in range(23)]
    folds = grouped_folds(names * 2, 5, 0)
    assert sorted(np.bincount(list(folds.values()))) == [4, 4, 5, 5, 5]
    assert folds == grouped_folds(names[::-1], 5, 0)
    assert folds != grouped_folds(names, 5, 1)


@pytest.mark.parametrize("folds", [1, 4])
def test_too_few_groups(folds):
    with pytest.raises(StoreError, match=f"cannot make {folds} folds of 3 groups; give between 2 and 3"):
        grouped_folds(["a", "b", "c", "c"], folds, 0)
