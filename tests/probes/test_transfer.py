"""Probes that are tested elsewhere: what is in the same form is read, what is rotated is not, a shift is forgiven."""

import numpy as np
import pandas as pd
import pytest
import torch

from seamscope.hooks import Ragged, StoreError
from seamscope.probes import probe_grid, probe_pair, probe_transfer, summarise_transfer

SITES = ("lm.0.resid_post", "lm.1.resid_post", "lm.2.resid_post", "lm.3.resid_post")
N, D = 240, 24


def store_of(make_store, seed=0):
    """Text runs hold the label along fixed directions; direct runs the same, shifted, rotated, or not at all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=N)
    directions, shift = 2 * rng.normal(size=(4, D)), 20 * rng.normal(size=D)
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0]

    def noise():
        return rng.normal(size=(N, D))

    text = {site: directions[labels] + noise() for site in SITES}
    direct = dict(
        zip(
            SITES,
            (
                directions[labels] + noise(),
                directions[labels] + noise() + shift,
                (directions @ turn)[labels] + noise(),
                noise(),
            ),
            strict=True,
        )
    )
    rows = pd.DataFrame(
        {
            "id": [str(i) for i in range(N)],
            "group": [f"g{i // 2}" for i in range(N)],
            "var:card.0.rank": labels,
            "type:card.0.rank": rng.integers(20, size=N),
        }
    )
    ones = torch.ones(N, dtype=torch.long)

    def acts(features, span):
        return {(site, span): Ragged(torch.tensor(X, dtype=torch.float32), ones) for site, X in features.items()}

    return make_store(
        {"direct": (rows, acts(direct, "image.object.0")), "cascaded": (rows.iloc[::-1], acts(
            {site: X[::-1].copy() for site, X in text.items()}, "intermediate.0"))}
    )  # fmt: skip


PLACES = {"train": ("cascaded", "intermediate.{k}"), "test": ("direct", "image.object.{k}")}


@pytest.fixture
def found(make_store):
    return summarise_transfer(probe_transfer(store_of(make_store), "card.0.rank", **PLACES)).set_index("site")


def test_the_same_form_is_read_and_another_is_not(found):
    same, shifted, turned, nothing = (found.loc[site] for site in SITES)
    assert same.accuracy > 0.9
    assert same.recentred_accuracy > 0.9
    assert shifted.accuracy < 0.7
    assert shifted.recentred_accuracy > 0.9
    assert turned.recentred_high < 0.6
    assert nothing.recentred_low < 0.25 < nothing.recentred_high + 0.05
    assert (found.q[[SITES[0], SITES[1]]] < 1e-6).all()
    assert found.q[SITES[3]] > 0.05


def test_the_control_task_does_not_transfer_better_than_its_memory(found):
    assert (found.control_high < 0.6).all()


def test_no_group_is_fitted_on_and_scored(make_store):
    table = probe_transfer(store_of(make_store), "card.0.rank", sites=SITES[0], **PLACES)
    assert (table.n_train + table.n_test == N).all()
    assert sorted(np.concatenate(list(table.rows))) == list(range(N))
    assert table.C.notna().all()


def test_across_tests_every_pair_and_the_diagonal_is_the_same(make_store):
    store = store_of(make_store)
    every = summarise_transfer(probe_transfer(store, "card.0.rank", across=True, **PLACES))
    assert set(zip(every.train_site, every.site, strict=True)) == {(a, b) for a in SITES for b in SITES}
    diagonal = every[every.train_site == every.site].set_index("site")
    alone = summarise_transfer(probe_transfer(store, "card.0.rank", **PLACES)).set_index("site")
    pd.testing.assert_series_equal(diagonal.recentred_accuracy, alone.recentred_accuracy)


def test_back_is_another_question(make_store):
    back = summarise_transfer(
        probe_transfer(store_of(make_store), "card.0.rank", train=PLACES["test"], test=PLACES["train"])
    ).set_index("site")
    assert back.recentred_accuracy[SITES[1]] > 0.9
    assert back.recentred_accuracy[SITES[3]] < 0.5
    assert set(back.condition) == {"cascaded"}


def test_what_has_nothing_in_common_is_refused(make_store):
    store = store_of(make_store)
    with pytest.raises(StoreError, match="unknown condition 'oracle'"):
        probe_transfer(store, "card.0.rank", train=("oracle", "intermediate.{k}"), test=PLACES["test"])
    with pytest.raises(StoreError, match=r"has none of these sites|has no site both"):
        probe_transfer(store, "card.0.rank", train=("cascaded", "image.object.{k}"), test=PLACES["test"])


class TestPairs:
    """A pair's probes are fitted once, and tell what the two functions tell."""

    @pytest.fixture
    def tables(self, make_store):
        store = store_of(make_store)
        home, away = probe_pair(store, "card.0.rank", places=(PLACES["train"], PLACES["test"]), across=True)
        return store, home, away

    def test_home_is_the_grid(self, tables):
        store, home, _ = tables
        grid = probe_grid(store, "card.0.rank")
        keys = ["condition", "site", "fold"]
        one, other = (table.sort_values(keys, ignore_index=True) for table in (home, grid))
        assert set(one.span) == {"intermediate.0", "image.object.0"}
        pd.testing.assert_frame_equal(one, other)

    def test_away_is_the_transfer_both_ways(self, tables):
        store, _, away = tables
        there = probe_transfer(store, "card.0.rank", across=True, **PLACES)
        back = probe_transfer(store, "card.0.rank", across=True, train=PLACES["test"], test=PLACES["train"])
        keys = ["train_condition", "train_site", "site", "fold"]
        one, other = (table.sort_values(keys, ignore_index=True) for table in (away, pd.concat([there, back])))
        numbers = ["accuracy", "recentred_accuracy", "control_accuracy", "C"]
        pd.testing.assert_frame_equal(one[[*keys, *numbers]], other[[*keys, *numbers]], atol=0.03, rtol=0)
        assert len(one) == 2 * len(SITES) ** 2 * 5

    def test_places_without_a_common_site_are_scored_at_home(self, make_store):
        rows, acts = pair_rows()
        other = {(SITES[1], "intermediate.0"): next(iter(acts.values()))}
        store = make_store({"direct": (rows, acts), "cascaded": (rows, other)})
        home, away = probe_pair(store, "card.0.rank", places=(PLACES["test"], PLACES["train"]))
        assert set(home.site) == {SITES[0], SITES[1]}
        assert away.empty


def pair_rows():
    rng = np.random.default_rng(0)
    names = {"id": [str(i) for i in range(40)], "group": [f"g{i // 2}" for i in range(40)]}
    labels = {"var:card.0.rank": rng.integers(2, size=40), "type:card.0.rank": rng.integers(6, size=40)}
    acts = Ragged(torch.tensor(rng.normal(size=(40, 4)), dtype=torch.float32), torch.ones(40, dtype=torch.long))
    return pd.DataFrame({**names, **labels}), {(SITES[0], "image.object.0"): acts}
