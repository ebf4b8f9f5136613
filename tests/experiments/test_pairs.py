"""What probes read of made-up stores, of which variables, and what the tables say of each object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ortho_group

from seamscope.activations import Store
from seamscope.experiments.locator._pairs import NO_OBJECT, Pairs
from seamscope.hooks import Ragged, RunError
from seamscope.probes import pair_contrast

from ._made_store import GROUPS, LABELS, LENGTHS, PAIRS, WIDTH, rows_of, shown, tokens, usual, written

SITES = ("vision.0.resid_post", "projector.out", "lm.embed", "lm.0.resid_post")


@pytest.fixture
def store_of(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    with ExitStack() as stack:
        yield lambda tables: stack.enter_context(written(tmp_path, tables))


@pytest.fixture
def pairs(store_of: Callable[..., Store]) -> Pairs:
    return Pairs(store_of({"direct": (rows_of(), usual())}), needs=("object.*.name", "total"), seed=3)


def test_objects_are_probed_at_their_own_tokens(pairs: Pairs) -> None:
    tower, projector = pairs.own("vision.0.resid_post", "direct"), pairs.own("projector.out", "direct")
    assert set(tower.columns) >= {"condition", "site", "span", "kind", "group", "right", "control", "named", "floor"}
    assert set(tower.object) == {0, 1}
    assert set(tower.kind) == {"object"}
    assert (tower.groupby("object").group.nunique() == PAIRS).all()
    for number in range(2):
        own, other = (table[table.object == number].set_index("group") for table in (tower, projector))
        differs = LABELS[:, 0, number] != LABELS[:, 1, number]
        assert np.array_equal(own.right.reindex(GROUPS).notna(), differs)
        assert own.right.mean() > 0.95
        assert own.named.mean() > 0.95
        counts = np.bincount(LABELS[:, :, number].ravel())
        assert own.floor.to_numpy() == pytest.approx(counts.max() / counts.sum())
        assert (other.right.mean() > 0.95) == (number == 0)
        assert abs(other.right.mean() - 0.5) < 0.25 or number == 0
    assert abs(tower.control.mean() - 0.5) < 0.2


def test_one_cell_by_hand(pairs: Pairs) -> None:
    table = pairs.own("projector.out", "direct")
    for number, noise in ((0, 0.2), (1, 1e3)):
        features = shown(number, noise=noise).reshape(PAIRS, 2, WIDTH)
        hits = pair_contrast(features, {"it": LABELS[:, :, number]}, seed=3)
        own = table[table.object == number].set_index("group").reindex(GROUPS)
        np.testing.assert_array_equal(own.right, hits.right["it"])
        np.testing.assert_array_equal(own.named, hits.named["it"])


def test_at_a_span_of_all_everything_is_probed(pairs: Pairs) -> None:
    table = pairs.at("lm.0.resid_post", span="last", condition="direct")
    assert set(table.span) == {"last"}
    assert (table.groupby("kind").group.nunique() == PAIRS).all()
    assert table[table.kind == "object"].right.mean() > 0.9
    assert set(table.kind) == {"object", "answer"}
    assert (table.object == NO_OBJECT).equals(table.kind == "answer")


def test_at_a_span_of_all_each_object_has_rows_of_its_own(pairs: Pairs) -> None:
    table = pairs.at("lm.0.resid_post", span="last", condition="direct")
    features = (shown(0, noise=0.2) + shown(1, noise=0.2)).reshape(PAIRS, 2, WIDTH)
    for number in range(2):
        hits = pair_contrast(features, {"it": LABELS[:, :, number]}, seed=3)
        own = table[table.object == number].set_index("group")
        assert own.index.is_unique
        np.testing.assert_array_equal(own.right.reindex(GROUPS), hits.right["it"])
        np.testing.assert_array_equal(own.named.reindex(GROUPS), hits.named["it"])


def test_variables_of_one_object_are_counted_together(store_of: Callable[..., Store]) -> None:
    """Its name can be read, its size is drawn at random."""
    rows = rows_of()
    size = np.random.default_rng(5).integers(2, size=(PAIRS, 2))
    rows["var:object.0.size"] = size.astype(str).ravel()
    table = Pairs(store_of({"direct": (rows, usual())}), needs=("object.*",), seed=3).own(SITES[0], "direct")
    features = shown(0, noise=0.2).reshape(PAIRS, 2, WIDTH)
    both = pair_contrast(features, {"name": LABELS[:, :, 0], "size": size}, seed=3)
    own = table[table.object == 0].set_index("group")
    assert own.index.is_unique
    mean = np.nanmean([both.named["name"], both.named["size"]], axis=0)
    np.testing.assert_array_equal(own.named.reindex(GROUPS), mean)
    right = pd.DataFrame(both.right).mean(axis=1).to_numpy()
    np.testing.assert_array_equal(own.right.reindex(GROUPS), right)


def test_what_the_answer_does_not_depend_on_is_left_out(store_of: Callable[..., Store]) -> None:
    store = store_of({"direct": (rows_of(), usual())})
    few = Pairs(store, needs=("object.1.*",), seed=3)
    assert set(few.own("vision.0.resid_post", "direct").object) == {1}
    assert set(few.at("lm.0.resid_post", span="last", condition="direct").kind) == {"object"}
    for needs in (("total",), ("nothing",)):
        with pytest.raises(RunError, match="there is nothing to probe"):
            Pairs(store, needs=needs, seed=3)
    alone = rows_of().assign(group=[f"alone {k}" for k in range(2 * PAIRS)])
    with pytest.raises(RunError, match="items need partners"):
        Pairs(store_of({"direct": (alone, usual())}), needs=("*",), seed=3)


def test_places_that_hold_nothing_give_an_empty_table(pairs: Pairs) -> None:
    empty = pairs.own("lm.embed", "direct")
    assert len(empty) == 0
    assert set(pairs.own("vision.0.resid_post", "direct").columns) >= set(empty.columns)
    assert len(pairs.at("lm.0.resid_post", span="question", condition="direct")) == 0


def test_items_without_a_partner_or_without_tokens_are_left_out(store_of: Callable[..., Store]) -> None:
    lengths = LENGTHS.copy()
    lengths[[0, 5, 6]] = 0  # in the pairs 0, 2 and 3
    acts = {
        key: Ragged.from_list([torch.ones(2, WIDTH), *each.split()]) for key, each in usual(lengths=lengths).items()
    }
    table = Pairs(store_of({"direct": (rows_of(extra=True), acts)}), needs=("object.*",), seed=3).own(
        "vision.0.resid_post", "direct"
    )
    assert set(table.group) == set(GROUPS) - {"g0", "g2", "g3"}
    assert table.right.mean() > 0.95


def test_members_need_not_stand_side_by_side(store_of: Callable[..., Store], pairs: Pairs) -> None:
    order = np.random.default_rng(9).permutation(2 * PAIRS)
    acts = {key: each[order] for key, each in usual().items()}
    mixed = Pairs(store_of({"direct": (rows_of().iloc[order], acts)}), needs=("object.*.name", "total"), seed=3)
    own, other = (each.own("vision.0.resid_post", "direct").right.mean() for each in (mixed, pairs))
    assert own == pytest.approx(other, abs=0.05)


def test_text_runs_are_probed_at_the_words_of_objects(store_of: Callable[..., Store]) -> None:
    words = {("lm.embed", f"intermediate.{k}"): tokens(shown(k, noise=0.2), k) for k in range(2)}
    store = store_of({"direct": (rows_of(), usual()), "oracle": (rows_of(), words)})
    table = Pairs(store, needs=("object.*.name",), seed=3).own("lm.embed", "oracle")
    assert set(table.condition) == {"oracle"}
    assert table.named.mean() > 0.95


def test_a_variable_that_no_item_has_is_left_out(store_of: Callable[..., Store]) -> None:
    rows = rows_of()
    rows["var:object.1.name"] = ""
    table = Pairs(store_of({"direct": (rows, usual())}), needs=("object.*.name",), seed=3).own(
        "vision.0.resid_post", "direct"
    )
    assert set(table.object) == {0}


# In the form of text runs

READ_AT = (SITES[-1], "last")
TEXT = shown(0, noise=0.2) + shown(1, noise=0.2)  # what text runs hold at the last position


def reading_of(store_of: Callable[..., Store], direct: np.ndarray) -> Pairs:
    """Direct and text runs that hold so much at the last position, (rows, width)."""
    tables = {"direct": (rows_of(), {READ_AT: tokens(direct, 1)}), "oracle": (rows_of(), {READ_AT: tokens(TEXT, 2)})}
    return Pairs(store_of(tables), needs=("object.*.name", "total"), seed=3)


def test_what_has_the_form_of_text_runs_is_read_by_their_probes(store_of: Callable[..., Store]) -> None:
    """Wherever it stands: what direct runs all add is taken away."""
    direct = TEXT + 0.2 * np.random.default_rng(8).normal(size=TEXT.shape) + 5
    pairs = reading_of(store_of, direct)
    table = pairs.form(READ_AT[0], span="last")
    assert (set(table.condition), set(table.span), set(table.kind)) == ({"direct"}, {"last"}, {"object"})
    assert table.columns.tolist() == pairs.at(READ_AT[0], span="last", condition="direct").columns.tolist()
    assert table.right.mean() > 0.9
    features, scored = (each.reshape(PAIRS, 2, WIDTH) for each in (TEXT, direct))
    for number in range(2):
        hits = pair_contrast(features, {"it": LABELS[:, :, number]}, scored=scored, seed=3)
        own = table[table.object == number].set_index("group").reindex(GROUPS)
        np.testing.assert_array_equal(own.right, hits.right["it"])
        np.testing.assert_array_equal(own.named, hits.named["it"])


def test_what_has_another_form_is_there_and_not_in_theirs(store_of: Callable[..., Store]) -> None:
    shares = []
    for seed in range(25):  # a single turn may do well or badly by chance, for all items alike
        pairs = reading_of(store_of, TEXT @ ortho_group.rvs(WIDTH, random_state=seed))
        shares.append(pairs.form(READ_AT[0], span="last").right.mean())
    assert pairs.at(READ_AT[0], span="last", condition="direct").query("kind == 'object'").right.mean() > 0.9
    assert abs(np.mean(shares) - 0.5) < 0.1
    nothing = reading_of(store_of, np.random.default_rng(9).normal(size=TEXT.shape))
    assert abs(nothing.form(READ_AT[0], span="last").right.mean() - 0.5) < 0.2


def test_a_place_that_either_run_lacks_has_no_form(store_of: Callable[..., Store]) -> None:
    both = reading_of(store_of, TEXT)
    assert len(both.form(READ_AT[0], span="question")) == 0
    only = {"direct": (rows_of(), usual()), "oracle": (rows_of(), {("lm.1.resid_post", "last"): tokens(TEXT, 2)})}
    one = Pairs(store_of(only), needs=("object.*",), seed=3)
    assert len(one.form("lm.1.resid_post", span="last")) == 0
    assert len(one.form(READ_AT[0], span="last")) == 0
    assert len(one.at(READ_AT[0], span="last", condition="direct")) > 0
