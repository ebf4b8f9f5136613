from __future__ import annotations

import pytest
import torch

from seamscope.hooks import Ragged, SpanError
from seamscope.hooks._align import align


def source(*rows: list[float]) -> Ragged:
    return Ragged.from_list([torch.tensor(row).reshape(-1, 1) for row in rows])


def aligned(given: Ragged, lengths: list[int], rule: str) -> list[float]:
    ids = [f"item{row}" for row in range(len(lengths))]
    return align(given, lengths, rule=rule, where="lm.1.mlp_out at 'last'", ids=ids).flatten().tolist()


@pytest.mark.parametrize("rule", ["exact", "mean", "last", "stretch"])
def test_rows_of_equal_size_are_taken_as_they_are(rule: str):
    assert aligned(source([1.0, 2.0], [], [3.0]), [2, 0, 1], rule) == [1, 2, 3]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [("mean", [2, 2, 2, 2, 6.5]), ("last", [3, 3, 3, 3, 8]), ("stretch", [1, 1, 3, 3, 7])],
)
def test_each_rule_by_hand(rule: str, wanted: list[float]):
    assert aligned(source([1.0, 3.0], [5.0, 6.0, 7.0, 8.0]), [4, 1], rule) == wanted


def test_stretch_takes_the_token_at_the_same_relative_place():
    rows = source([0.0, 1.0, 2.0, 3.0, 4.0])
    assert aligned(rows, [3], "stretch") == [0, 2, 4]
    assert aligned(rows, [10], "stretch") == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


def test_exact_refuses_other_sizes_and_names_item_place_and_sizes():
    with pytest.raises(SpanError) as caught:
        aligned(source([1.0], [1.0, 2.0]), [1, 3], "exact")
    assert str(caught.value) == (
        "lm.1.mlp_out at 'last': the value has 2 tokens for item 'item1', the batch 3 (rule='exact')"
    )


@pytest.mark.parametrize("rule", ["exact", "mean", "last", "stretch"])
def test_nothing_cannot_become_something(rule: str):
    with pytest.raises(SpanError, match="the value has 0 tokens for item 'item0', the batch 2"):
        aligned(source([], [1.0]), [2, 1], rule)


def test_a_row_that_needs_nothing_takes_nothing():
    assert aligned(source([1.0, 2.0], [3.0]), [0, 1], "mean") == [3]
    with pytest.raises(SpanError, match="the batch 0"):
        aligned(source([1.0, 2.0], [3.0]), [0, 1], "exact")


def test_batches_must_match():
    with pytest.raises(SpanError, match="the value has 1 rows, but the batch has 2 items"):
        aligned(source([1.0]), [1, 1], "mean")


def test_means_of_half_precision_are_taken_in_float32():
    given = Ragged.from_list([torch.full((4, 1), 60000.0, dtype=torch.float16)])
    assert align(given, [1], rule="mean", where="", ids=["a"]).item() == 60000.0
