"""What is read is what was written, bit for bit."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seamscope.activations import Schema, create_store, open_store
from seamscope.hooks import Ragged

SITE = "lm.0.resid_post"
DTYPES = [
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    return tensor if tensor.dtype == torch.bool else tensor.contiguous().view(WORDS[tensor.element_size()])


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def random_tensor(dtype, shape, seed):
    """Every bit pattern is as likely as any other: NaN payloads, infinities, subnormals and -0.0 included."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    size = torch.empty(0, dtype=dtype).element_size()
    word = torch.randint(0, 256, (*shape, size), generator=generator, dtype=torch.uint8)
    return word.view(dtype).reshape(shape)


def write(place, ragged, ids=None, condition="direct"):
    rows = pd.DataFrame({"id": ids or [str(i) for i in range(len(ragged))]})
    with create_store(place, Schema(model="m", task="t", conditions=(condition,))) as writer:
        writer.append(condition, rows, {(SITE, "image"): ragged})


def read(place, rows=None):
    with open_store(place) as store:
        store.verify()
        return store.read(SITE, "image", "direct", rows)


SPECIAL = {
    torch.bfloat16: [0x7FC1, 0xFFC0, 0x7F81, 0x8000, 0x7F80, 0xFF80, 0x0001],
    torch.float16: [0x7E01, 0xFE00, 0x7C01, 0x8000, 0x7C00, 0xFC00, 0x0001],
    torch.float32: [0x7FC00001, 0xFFC00000, 0x7F800001, 0x80000000, 0x7F800000, 0xFF800000, 1],
}


@pytest.mark.parametrize("dtype", SPECIAL, ids=str)
def test_nan_payloads_negative_zero_and_infinities_survive(tmp_path, dtype):
    width = torch.empty(0, dtype=dtype).element_size()
    raw = np.array(SPECIAL[dtype], dtype=f"<u{width}")
    values = torch.from_numpy(raw.view(f"<i{width}")).view(dtype)[:, None]
    assert values.isnan().any()
    assert values.isinf().any()
    write(tmp_path / "s.h5", Ragged(values, torch.tensor([len(raw)])))
    assert same(read(tmp_path / "s.h5").values, values)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_round_trip_of_any_shape_type_length_and_name(tmp_path_factory, data):
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    lengths = data.draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=3))
    feature = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    dtype = data.draw(st.sampled_from(DTYPES))
    n_rows = sum(map(len, lengths))
    cells = {
        "id": data.draw(st.lists(text, min_size=n_rows, max_size=n_rows, unique=True)),
        "said": data.draw(st.lists(st.none() | text, min_size=n_rows, max_size=n_rows)),
        "n": data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=n_rows, max_size=n_rows)),
    }
    table = pd.DataFrame(cells)
    parts = [
        Ragged(random_tensor(dtype, (sum(batch), *feature), seed), torch.tensor(batch))
        for seed, batch in enumerate(lengths)
    ]
    place = tmp_path_factory.mktemp("s") / "s.h5"
    with create_store(place, Schema(model="m", task="t", conditions=("direct",))) as writer:
        at = 0
        for part in parts:
            writer.append("direct", table.iloc[at : at + len(part)], {(SITE, "image"): part})
            at += len(part)
    whole = Ragged.cat(parts)
    picked = data.draw(st.lists(st.integers(-n_rows, n_rows - 1), max_size=6))
    with open_store(place) as store:
        store.verify()
        got, some = store.read(SITE, "image", "direct"), store.read(SITE, "image", "direct", picked)
        back = store.rows("direct")
    assert same(got.values, whole.values)
    assert torch.equal(got.lengths, whole.lengths)
    expected = whole[torch.tensor(picked, dtype=torch.long)]
    assert same(some.values, expected.values)
    assert torch.equal(some.lengths, expected.lengths)
    for name, expected_cells in cells.items():
        assert [None if pd.isna(cell) else cell for cell in back[name]] == expected_cells


def test_every_row_is_read_back_with_its_column_types(path, rows, acts):
    with open_store(path) as store:
        back = store.rows("direct")
        for (site, span), ragged in acts.items():
            got = store.read(site, span, "direct")
            assert same(got.values, ragged.values)
            assert torch.equal(got.lengths, ragged.lengths)
    assert list(back) == list(rows)
    assert back["var:card.0.rank"].isna().tolist() == [False, True, False]
    assert back["var:sum"].dtype == "int64"
    assert back["correct"].dtype == "bool"
    assert back["score"].tolist()[:2] == [0.5, float("-inf")]
    assert back["var:count"].isna().tolist() == [False, False, True]


def test_a_column_may_come_late_and_whole_numbers_may_have_gaps(tmp_path):
    one = {(SITE, "image"): Ragged(torch.zeros(1, 2), torch.tensor([1]))}
    with create_store(tmp_path / "s.h5", Schema(model="m", task="t", conditions=("direct",))) as writer:
        writer.append("direct", pd.DataFrame({"id": ["a"], "n": [None]}), one)
        writer.append("direct", pd.DataFrame({"id": ["b"], "n": [2], "ok": [True]}), one)
    with open_store(tmp_path / "s.h5") as store:
        back = store.rows("direct")
    assert back["n"].dtype == "Int64"
    assert back["ok"].dtype == "boolean"
    assert back["n"].isna().tolist() == back["ok"].isna().tolist() == [True, False]
    assert (back["n"][1], back["ok"][1]) == (2, True)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([2, 0], [2, 0]),
        ([1, 1, -1], [1, 1, 2]),
        (slice(1, None), [1, 2]),
        ([True, False, True], [0, 2]),
        (np.array([2]), [2]),
        ([], []),
    ],
)
def test_rows_are_selected_like_an_array(tmp_path, rows, expected):
    whole = Ragged(torch.arange(6.0)[:, None], torch.tensor([2, 3, 1]))
    write(tmp_path / "s.h5", whole)
    got = read(tmp_path / "s.h5", rows)
    assert [row.flatten().tolist() for row in got.split()] == [whole.split()[i].flatten().tolist() for i in expected]


def test_a_partial_read_touches_only_its_rows(tmp_path, monkeypatch):
    import h5py

    lengths = torch.tensor([100, 7, 0, 5, 100])
    write(tmp_path / "s.h5", Ragged(torch.randn(212, 3), lengths))
    pieces, plain = [], h5py.Dataset.read_direct

    def spy(self, dest, source_sel, dest_sel):
        pieces.append((source_sel.start, source_sel.stop))
        plain(self, dest, source_sel, dest_sel)

    monkeypatch.setattr(h5py.Dataset, "read_direct", spy)
    with open_store(tmp_path / "s.h5") as store:
        got = store.read(SITE, "image", "direct", [3, 1, 2])
        store.read(SITE, "image", "direct", [0, 4])
    assert got.lengths.tolist() == [5, 7, 0]
    assert pieces == [(100, 112), (0, 100), (112, 212)]
