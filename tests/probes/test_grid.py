"""The grid's table: its rows, its names, its splits, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seamscope.hooks import Ragged, RunError, SiteError, SpanError, StoreError
from seamscope.probes import PER_ITEM, LinearProbe, probe_grid, summarise

N, D = 60, 6
SITES = ("projector.out", "lm.0.resid_post", "lm.1.resid_post")
SPANS = ("image.object.0", "image.object.1", "last")


def random_rows(rng):
    ranks = rng.integers(3, size=(N, 2))
    return pd.DataFrame(
        {
            "id": [str(i) for i in range(N)],
            "group": [f"g{i // 2}" for i in range(N)],
            "var:card.0.rank": ranks[:, 0],
            "var:card.1.rank": ranks[:, 1],
            "var:sum": ranks.sum(1),
            **{f"type:{name}": rng.integers(8, size=N) for name in ("card.0.rank", "card.1.rank", "sum")},
        }
    )


def tokens(rng, lengths):
    lengths = torch.as_tensor(lengths)
    return Ragged(torch.tensor(rng.normal(size=(int(lengths.sum()), D))).bfloat16(), lengths)


@pytest.fixture
def store(make_store):
    """Two conditions; the text-only one has decoder sites and the span `last` only."""
    rng = np.random.default_rng(0)
    direct = {(site, span): tokens(rng, np.full(N, 2)) for site in SITES for span in SPANS}
    cascaded = {(site, "last"): tokens(rng, np.ones(N, int)) for site in SITES[1:]}
    return make_store({"direct": (random_rows(rng), direct), "cascaded": (random_rows(rng), cascaded)})


def test_one_row_for_each_cell_target_and_fold(store):
    grid = probe_grid(store, ["card.0.rank", "sum"], folds=3)
    assert len(grid) == (3 * 3 + 2) * 2 * 3
    assert list(grid.columns) == [
        *("site", "layer", "stack", "span", "condition", "target", "fold"),
        *("accuracy", "control_accuracy", "shuffled_accuracy", "chance", "uniform", "C", "weakest"),
        *("n_train", "n_test", "n_classes", "n_dropped", "starved", "copies", "converged"),
        *("curve_rows", "curve", "curve_low", "curve_high", "gain", "gain_low", "gain_high"),
        *PER_ITEM,
    ]
    assert grid["layer"].dtype == "Int64"
    layers = dict(zip(grid["site"], grid["layer"], strict=True))
    assert layers == {"projector.out": pd.NA, "lm.0.resid_post": 0, "lm.1.resid_post": 1}
    assert set(grid["stack"]) == {"projector", "lm"}
    assert (grid["n_train"] + grid["n_test"] == N).all()
    assert set(grid[grid["condition"] == "cascaded"]["span"]) == {"last"}
    assert not grid.drop(columns=["layer", *PER_ITEM]).isna().any().any()


def test_every_item_is_tested_once_and_no_group_is_split(store):
    grid = probe_grid(store, "sum", sites="lm.0.resid_post", spans="last")
    for _, cell in grid.groupby("condition"):
        assert sorted(np.concatenate(list(cell["rows"]))) == list(range(N))
        assert sum(len(set(names)) for names in cell["groups"]) == N // 2
        assert [set(names) for names in cell["groups"]] == [
            set(names) for names in grid[grid["condition"] == "direct"]["groups"]
        ]
    for row in grid.itertuples():
        assert row.accuracy == pytest.approx(row.correct.mean())
        assert row.control_accuracy == pytest.approx(row.control_correct.mean())
        assert row.shuffled_accuracy == pytest.approx(row.shuffled_correct.mean())


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_equals_scikit_learn_on_the_same_split(store, pool):
    grid = probe_grid(store, "sum", sites="lm.1.resid_post", spans="image.object.0", pool=pool, C=0.3)
    acts = store.read("lm.1.resid_post", "image.object.0", "direct")
    pairs = acts.values.double().view(N, 2, D)
    X = (pairs.mean(1) if pool == "mean" else pairs[:, 1]).numpy()
    y = store.rows("direct")["var:sum"].to_numpy()
    for row in grid.itertuples():
        train = np.setdiff1d(np.arange(N), row.rows)
        oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, tol=1e-8, max_iter=9999))
        oracle.fit(X[train], y[train])
        expected = oracle.predict(X[row.rows]) == y[row.rows]
        sure = np.sort(oracle.predict_proba(X[row.rows]), 1)
        clear = sure[:, -1] - sure[:, -2] > 0.02
        assert (row.correct == expected)[clear].all()
        probe = LinearProbe(C=0.3).fit(X[train], y[train])
        assert ((probe.predict(X[row.rows]) == y[row.rows]) == row.correct).all()
        assert row.chance == pytest.approx((y[row.rows] == np.bincount(y).argmax()).mean())


def test_the_result_does_not_depend_on_processes_or_company(store, request):
    alone = probe_grid(store, "sum", sites="lm.0.*", spans="last", workers=1)
    before = torch.get_num_threads()
    request.getfixturevalue("shared")
    company = probe_grid(store, ["card.0.rank", "sum", "card.1.rank"], workers=2)
    assert torch.get_num_threads() == before
    same = company.query("site == 'lm.0.resid_post' and span == 'last' and target == 'sum'")
    assert len(same) == len(alone) == 10
    for one, other in zip(alone.itertuples(), same.itertuples(), strict=True):
        assert one.accuracy == other.accuracy
        assert (one.shuffled_correct == other.shuffled_correct).all()
        assert (one.control_correct == other.control_correct).all()


@pytest.mark.parametrize("workers", [0, -1, 2.5])
def test_a_number_of_workers_that_is_none(store, workers):
    with pytest.raises(RunError, match=f"workers is {workers}; expected a whole number from 1 up"):
        probe_grid(store, "sum", spans="last", workers=workers)


def test_a_span_template_stands_for_the_targets_own_object(store):
    grid = probe_grid(
        store, ["card.0.rank", "card.1.rank", "sum"], spans=["image.object.{k}", "last"], conditions="direct"
    )
    pairs = set(zip(grid["span"], grid["target"], strict=True))
    assert pairs == {
        ("image.object.0", "card.0.rank"),
        ("image.object.1", "card.1.rank"),
        *(("last", target) for target in ("card.0.rank", "card.1.rank", "sum")),
    }
    with pytest.raises(SpanError, match=r"'image.object.\{k\}' needs a target with a number in its name; got sum"):
        probe_grid(store, "sum", spans="image.object.{k}")


def test_rows_without_tokens_are_dropped_and_counted(make_store):
    rng = np.random.default_rng(1)
    lengths = np.where(np.arange(N) % 3 == 0, 0, 2)
    rows = random_rows(rng)
    store = make_store({"direct": (rows, {(SITES[1], "last"): tokens(rng, lengths)})})
    grid = probe_grid(store, "sum")
    assert (grid["n_dropped"] == 20).all()
    assert (grid["n_train"] + grid["n_test"] == 40).all()
    assert not any((row % 3 == 0).any() for row in grid["rows"])
    assert summarise(grid)[["n_rows", "n_dropped"]].iloc[0].tolist() == [40, 20]


def test_rows_without_a_label_belong_to_no_problem(make_store):
    rng = np.random.default_rng(1)
    rows = random_rows(rng)
    rows["var:sum"] = rows["var:sum"].astype("Int64").mask(np.arange(N) < 20)
    store = make_store({"direct": (rows, {(SITES[1], "last"): tokens(rng, np.full(N, 2))})})
    grid = probe_grid(store, ["sum", "card.0.rank"])
    assert grid.groupby("target")["n_test"].sum().to_dict() == {"sum": 40, "card.0.rank": 60}
    assert min(np.concatenate(list(grid[grid["target"] == "sum"]["rows"]))) == 20
    assert (grid["n_dropped"] == 0).all()


def test_a_class_that_only_test_items_have_counts_as_wrong(make_store):
    rows = random_rows(np.random.default_rng(2))
    labels = np.arange(N) % 2
    labels[:2] = 2  # both items of the group g0
    rows["var:sum"] = labels
    features = 10 * np.eye(3)[labels]
    acts = {(SITES[1], "last"): Ragged(torch.tensor(features), torch.ones(N).long())}
    grid = probe_grid(make_store({"direct": (rows, acts)}), "sum")
    correct = dict(zip(np.concatenate(list(grid["rows"])), np.concatenate(list(grid["correct"])), strict=True))
    assert [row for row, right in correct.items() if not right] == [0, 1]
    assert sorted(grid["n_classes"]) == [2, 2, 2, 2, 3] or (grid["n_classes"] == 3).all()


def test_too_few_rows_are_flagged(make_store):
    rng = np.random.default_rng(3)
    rows = random_rows(rng)
    rows["var:sum"] = np.arange(N) % 20
    lengths = np.where(np.arange(N) < 4, 1, 0)
    acts = {
        (SITES[1], "last"): tokens(rng, np.ones(N, int)),
        (SITES[1], "image.object.0"): tokens(rng, lengths),
        (SITES[1], "image.object.1"): tokens(rng, np.zeros(N, int)),
    }
    store = make_store({"direct": (rows, acts)})
    grid = probe_grid(store, ["sum", "card.0.rank"])
    starved = grid.groupby(["span", "target"])["starved"].all()
    assert starved["last", "sum"]
    assert not starved["last", "card.0.rank"]
    assert starved["image.object.0", "card.0.rank"]
    summary = summarise(grid).set_index(["span", "target"])
    assert summary.loc[("image.object.0", "card.0.rank"), "n_rows"] == 4
    empty = summary.loc[("image.object.1", "sum")]
    assert (empty["n_rows"], empty["n_dropped"], empty["starved"]) == (0, N, True)
    assert np.isnan(empty["accuracy"])


def test_wrong_names(store):
    with pytest.raises(StoreError, match=r"unknown target 'card.0.rnak'.*card\.0\.rank"):
        probe_grid(store, "card.0.rnak")
    with pytest.raises(SiteError, match=r"unknown site 'lm.9.resid_post'"):
        probe_grid(store, "sum", sites="lm.9.resid_post")
    with pytest.raises(SpanError, match=r"unknown span 'lsat'.*last"):
        probe_grid(store, "sum", spans="lsat")
    with pytest.raises(SpanError, match=r"unknown pooling 'max'"):
        probe_grid(store, "sum", pool="max")
    with pytest.raises(StoreError, match=r"unknown condition 'oracle'"):
        probe_grid(store, "sum", conditions="oracle")
    with pytest.raises(StoreError, match=r"none of these sites at these spans under cascaded"):
        probe_grid(store, "sum", sites="projector.out", conditions="cascaded")
    with pytest.raises(StoreError, match=r"cannot make 31 folds of 30 groups"):
        probe_grid(store, "sum", folds=31)


def test_groups_are_needed(make_store):
    rng = np.random.default_rng(4)
    acts = {(SITES[1], "last"): tokens(rng, np.ones(N, int))}
    rows = random_rows(rng)
    for spoilt in (rows.drop(columns="group"), rows.assign(group=[None, *rows["group"][1:]])):
        with pytest.raises(StoreError, match="every row under 'direct' needs a 'group'"):
            probe_grid(make_store({"direct": (spoilt, acts)}), "sum")


def test_activations_that_overflowed_are_named(make_store):
    rng = np.random.default_rng(5)
    acts = tokens(rng, np.ones(N, int))
    acts.values[3, 2] = torch.inf
    store = make_store({"direct": (random_rows(rng), {(SITES[1], "last"): acts})})
    with pytest.raises(StoreError, match=r"lm\.0\.resid_post at last under direct holds values that are not finite"):
        probe_grid(store, "sum")


def test_heads_and_other_feature_axes_are_flattened(make_store):
    rng = np.random.default_rng(6)
    heads = Ragged(torch.tensor(rng.normal(size=(N, 2, 3))), torch.ones(N).long())
    flat = Ragged(heads.values.flatten(1), heads.lengths)
    rows = random_rows(rng)
    grids = [
        probe_grid(make_store({"direct": (rows, {("lm.0.head_z", "last"): acts})}), "sum") for acts in (heads, flat)
    ]
    assert grids[0]["accuracy"].tolist() == grids[1]["accuracy"].tolist()


def test_a_summary_pools_the_folds(store):
    grid = probe_grid(store, ["card.0.rank", "sum"])
    summary = summarise(grid)
    assert len(summary) == len(grid) // 5
    first, folds = summary.iloc[0], grid.iloc[[0, 2, 4, 6, 8]]
    assert set(folds["target"]) == {"card.0.rank"}
    assert first["accuracy"] == pytest.approx(np.concatenate(list(folds["correct"])).mean())
    assert first["n_groups"] == N // 2
    assert first["low"] <= first["accuracy"] <= first["high"]
    wider = summarise(grid, level=0.99).iloc[0]
    assert wider["low"] < first["low"] < first["high"] < wider["high"]
