"""The online code: what it costs by hand, and that it tells apart what accuracy cannot."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from seamscope.hooks import Ragged
from seamscope.probes import _code, probe_grid, summarise
from seamscope.probes._code import online_code

SITE = "lm.0.resid_post"


def groups_of(n, size=1):
    return np.array([f"g{k // size:04d}" for k in range(n)], dtype=object)


def code_of(X, y, *, size=1, order=None, strengths=(1.0,)):
    order = np.arange(len(y)) if order is None else order
    return online_code(torch.tensor(X), torch.tensor(np.atleast_2d(y)), groups_of(len(y), size), order, strengths)


def test_the_code_of_scikit_learns_probabilities(monkeypatch):
    """Blocks of 8, 8, 16, 32, 64 rows; the first costs log2(3) a row, every other what the blocks before predict."""
    monkeypatch.setattr(_code, "ROUGHLY", {"rtol": 1e-7})
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=128)
    X = rng.normal(size=(128, 6)) + 1.5 * rng.normal(size=(3, 6))[y]
    (code,) = code_of(X, y)
    rows, bits = StandardScaler().fit_transform(X), np.full(128, np.log2(3))
    for start, stop in ((8, 16), (16, 32), (32, 64), (64, 128)):
        oracle = LogisticRegression(C=1.0, tol=1e-9, max_iter=9999).fit(rows[:start], y[:start])
        p = np.zeros((stop - start, 3))
        p[:, oracle.classes_] = oracle.predict_proba(rows[start:stop])
        own = p[np.arange(stop - start), y[start:stop]]
        bits[start:stop] = -np.log2((start * own + 0.5) / (start + 1.5))
    assert code.sizes == (8, 16, 32, 64)
    np.testing.assert_allclose(code.bits, bits, atol=2e-3)
    monkeypatch.undo()
    assert code_of(X, y)[0].bits.sum() == pytest.approx(bits.sum(), rel=0.01)
    assert set(code.scored) == set(range(64, 128))


def test_of_several_strengths_the_shortest_code_is_taken_and_saying_so_is_paid_for():
    rng = np.random.default_rng(1)
    y = rng.integers(2, size=96)
    X = rng.normal(size=(96, 4)) + rng.normal(size=(2, 4))[y]
    alone = [code_of(X, y, strengths=(C,))[0].bits.sum() for C in (0.01, 1.0)]
    assert code_of(X, y, strengths=(0.01, 1.0))[0].bits.sum() == pytest.approx(min(alone) + 1)


def test_noise_costs_more_than_nothing_known():
    rng = np.random.default_rng(2)
    y = rng.integers(4, size=256)
    (code,) = code_of(rng.normal(size=(256, 8)), y, strengths=(0.001, 0.1))
    assert 2 < code.bits.mean() < 2.3


def test_no_block_cuts_a_group_and_the_order_of_rows_is_that_of_groups():
    rng = np.random.default_rng(3)
    y = np.repeat(rng.integers(2, size=30), 3)
    X = rng.normal(size=(90, 4)) + rng.normal(size=(2, 4))[y]
    order = np.concatenate([np.arange(3) + 3 * k for k in rng.permutation(30)])
    (code,) = code_of(X, y, size=3, order=order)
    assert all(size % 3 == 0 for size in code.sizes)
    (same,) = code_of(X[order], y[order], size=3)
    np.testing.assert_allclose(code.bits[order], same.bits, atol=1e-6)


def test_too_few_rows_cost_what_nothing_known_costs():
    (code,) = code_of(np.zeros((4, 2)), np.array([0, 1, 2, 0]))
    assert code.bits.tolist() == [np.log2(3)] * 4
    assert code.sizes == ()


def test_description_length_ranks_real_above_control_where_accuracy_does_not(make_store):
    """One-hot types, each with one label of either kind: both are read perfectly, but one of them has a direction."""
    rng = np.random.default_rng(4)
    n, types = 900, 150
    kind = np.arange(n) % types
    labels = kind % 2
    features = np.concatenate([4 * np.eye(types)[kind], 1.5 * (2 * labels[:, None] - 1)], 1)
    features += 0.01 * rng.normal(size=features.shape)
    rows = pd.DataFrame(
        {
            "id": [str(i) for i in range(n)],
            "group": [str(i) for i in range(n)],
            "var:x": labels,
            "type:x": kind,
        }
    )
    acts = Ragged(torch.tensor(features, dtype=torch.float32), torch.ones(n, dtype=torch.long))
    store = make_store({"direct": (rows, {(SITE, "last"): acts})})
    found = summarise(probe_grid(store, "x")).iloc[0]
    assert found.accuracy == found.control_accuracy == 1
    assert found.selectivity == 0
    assert found.bits < 0.6 * found.control_bits
    assert found.bits_high < found.control_bits_low
    assert found.uniform_bits == 1


def test_a_probe_that_needs_more_rows_is_called_starved(make_store):
    """Every feature holds a little of it, or much: only in the first case does the last doubling of the rows gain."""
    rng = np.random.default_rng(5)
    n = 1000
    labels = rng.integers(20, size=n)
    rows = pd.DataFrame({"id": [str(i) for i in range(n)], "group": [str(i) for i in range(n)], "var:x": labels})
    weak, strong = (rng.normal(size=(n, 150)) + much * rng.normal(size=(20, 150))[labels] for much in (0.25, 1.5))
    ones = torch.ones(n, dtype=torch.long)
    acts = {
        (f"lm.{k}.resid_post", "last"): Ragged(torch.tensor(each, dtype=torch.float32), ones)
        for k, each in enumerate((weak, strong))
    }
    grid = probe_grid(make_store({"direct": (rows, acts)}), "x", control=False)
    hungry, fed = summarise(grid).itertuples()
    assert (hungry.starved, fed.starved) == (True, False)
    assert hungry.gain_low > 0
    assert fed.gain_low <= 0.01
    assert not grid.starved.any()
    assert grid.curve_rows.iloc[0] == (62, 125, 250, 500)
    assert len(grid.curve.iloc[0]) == 4
