from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seamscope.hooks import Ragged, SpanError


def ragged(*lengths: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Ragged, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(n, 3, generator=generator).to(dtype) for n in lengths]
    return Ragged.from_list(rows), rows


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_rows_come_out_as_they_went_in(lengths: list[int], data: st.DataObject):
    made, rows = ragged(*lengths)
    assert len(made) == len(rows)
    assert all(torch.equal(a, b) for a, b in zip(made.split(), rows, strict=True))
    picked = data.draw(st.lists(st.integers(-len(rows), len(rows) - 1), max_size=8))
    assert [each.tolist() for each in made[picked].split()] == [rows[i].tolist() for i in picked]
    assert made.row_of.tolist() == [row for row, n in enumerate(lengths) for _ in range(n)]


def test_rows_are_selected_by_number_slice_and_mask():
    made, rows = ragged(2, 0, 3)
    assert torch.equal(made[0].values, rows[0])
    assert torch.equal(made[-1].values, rows[2])
    assert made[1:].lengths.tolist() == [0, 3]
    assert torch.equal(made[made.lengths > 0].values, torch.cat([rows[0], rows[2]]))
    assert torch.equal(made[[True, False, False]].values, rows[0])
    assert made[np.array([2, 0])].lengths.tolist() == [3, 2]
    assert len(made[[]]) == 0


def test_parts_are_put_after_one_another():
    first, a = ragged(1, 2)
    second, b = ragged(0, 2, seed=1)
    both = Ragged.cat([first, second])
    assert both.lengths.tolist() == [1, 2, 0, 2]
    assert torch.equal(both.values, torch.cat([*a, *b]))


def test_stack_needs_equal_rows():
    made, rows = ragged(2, 2)
    assert torch.equal(made.stack(), torch.stack(rows))
    with pytest.raises(SpanError, match=r"rows have from 0 to 2 tokens; pool them"):
        ragged(2, 0)[0].stack()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mean_and_last_of_each_row(dtype: torch.dtype):
    made, rows = ragged(2, 1, 5, dtype=dtype)
    wanted = torch.stack([row.double().mean(0) for row in rows])
    assert made.mean().dtype == dtype
    assert torch.allclose(made.mean().double(), wanted, rtol=2e-2 if dtype != torch.float32 else 1e-6, atol=1e-3)
    assert torch.equal(made.last(), torch.stack([row[-1] for row in rows]))


def test_mean_of_half_precision_does_not_overflow():
    made = Ragged.from_list([torch.full((4, 1), 60000.0, dtype=torch.float16)])
    assert made.mean().item() == 60000.0


def test_empty_rows_cannot_be_averaged_but_pass_through_pooling():
    made, rows = ragged(2, 0, 1)
    with pytest.raises(SpanError, match=r"cannot take the mean of rows without tokens: \[1\]"):
        made.mean()
    with pytest.raises(SpanError, match="cannot take the last of rows"):
        made.last()
    pooled = made.pool("mean")
    assert pooled.lengths.tolist() == [1, 0, 1]
    assert torch.allclose(pooled.values, torch.stack([rows[0].mean(0), rows[2].mean(0)]))
    assert ragged(0, 0)[0].pool("last").lengths.tolist() == [0, 0]


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpanError, match="lengths add up to 3 tokens but values hold 2"):
        Ragged(torch.zeros(2, 1), torch.tensor([1, 2]))
    with pytest.raises(SpanError, match="unknown pooling 'mena'; nearest: mean"):
        ragged(1)[0].pool("mena")
    with pytest.raises(SpanError, match="at least one row"):
        Ragged.from_list([])
    with pytest.raises(SpanError, match="empty list"):
        Ragged.cat([])


def test_features_keep_their_shape():
    made = Ragged(torch.randn(4, 2, 5), torch.tensor([1, 3]))
    assert made.mean().shape == (2, 2, 5)
    assert made.to(torch.float64).values.dtype == torch.float64
    assert made[[0, 0]].stack().shape == (2, 1, 2, 5)
