"""Appending, completing, and failing on the way."""

import os

import h5py
import pandas as pd
import pytest
import torch

from seamscope.activations import FORMAT_VERSION, Schema, create_store, open_store
from seamscope.hooks import Ragged, StoreError

SITE = "lm.0.resid_post"


def partial(place):
    return place.with_name(place.name + ".partial")


def test_the_name_appears_only_when_the_store_is_complete(tmp_path, schema, rows, acts):
    place = tmp_path / "run.h5"
    with create_store(place, schema) as writer:
        writer.append("direct", rows, acts)
        writer.flush()
        assert not place.exists()
        assert partial(place).exists()
    assert place.exists()
    assert not partial(place).exists()


def test_an_exception_leaves_a_marked_partial_file(tmp_path, schema, rows, acts):
    place = tmp_path / "run.h5"

    def run():
        with create_store(place, schema) as writer:
            writer.append("direct", rows, acts)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert not place.exists()
    with h5py.File(partial(place)) as file:
        assert file.attrs["complete"] == 0
    with pytest.raises(StoreError, match="never completed"):
        open_store(partial(place))


def test_a_partial_file_is_replaced_only_on_demand(tmp_path, schema):
    place = tmp_path / "run.h5"
    create_store(place, schema).abandon()
    with pytest.raises(StoreError, match=r"left by an unfinished run; delete it, or give replace_partial=True"):
        create_store(place, schema)
    create_store(place, schema, replace_partial=True).close()
    assert open_store(place).conditions == ()


def test_an_existing_store_is_never_overwritten(path, schema):
    before = path.read_bytes()
    with pytest.raises(StoreError, match="exists already"):
        create_store(path, schema, replace_partial=True)
    assert path.read_bytes() == before


def test_a_store_that_appears_meanwhile_is_kept(tmp_path, schema):
    place = tmp_path / "run.h5"
    writer = create_store(place, schema)
    place.write_text("someone else's")
    with pytest.raises(StoreError, match="appeared meanwhile"):
        writer.close()
    assert place.read_text() == "someone else's"


def test_a_write_that_fails_leaves_no_finished_file(tmp_path, schema, rows, acts, monkeypatch):
    place = tmp_path / "run.h5"
    writer = create_store(place, schema)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(h5py.Dataset, "__setitem__", full)
    with pytest.raises(StoreError, match="No space left"):
        writer.append("direct", rows, acts)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"a write failed, so the file stays run\.h5\.partial"):
        writer.close()
    assert not place.exists()
    with pytest.raises(StoreError, match="is closed"):
        writer.append("direct", rows, acts)


def test_batches_follow_one_another_under_each_condition(tmp_path, schema, rows, acts):
    place = tmp_path / "run.h5"
    with create_store(place, schema) as writer:
        for number in range(3):
            batch = rows.assign(id=[f"{number}.{i}" for i in range(3)])
            writer.append("direct", batch, acts)
        writer.append("cascaded", rows, {(SITE, "last"): acts[SITE, "last"]})
        assert repr(writer).endswith("rows={'direct': 9, 'cascaded': 3})")
    with open_store(place) as store:
        assert store.conditions == ("direct", "cascaded")
        assert store.cells("cascaded") == ((SITE, "last"),)
        assert store.rows("direct")["id"].tolist() == [f"{b}.{i}" for b in range(3) for i in range(3)]
        assert store.read(SITE, "image", "direct").lengths.tolist() == [2, 3, 0] * 3
        assert torch.equal(store.read(SITE, "last", "direct").values, acts[SITE, "last"].values.repeat(3, 1, 1))


def test_provenance_is_kept_and_completed(path, schema):
    with open_store(path) as store:
        kept = store.provenance
        assert (store.schema.model, store.schema.task) == ("tiny", "cards")
    assert {key: kept[key] for key in schema.provenance} == schema.provenance
    assert kept["format_version"] == FORMAT_VERSION
    assert kept["versions"].keys() == {"python", "seamscope", "torch", "transformers", "numpy", "h5py"}
    assert kept["versions"]["h5py"] == h5py.__version__


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"versions": 1}, "'versions' is written by the store itself"),
        ({"x": object()}, "must be plain JSON: Object of type object"),
    ],
)
def test_provenance_that_cannot_be_kept_is_refused_at_once(tmp_path, provenance, message):
    with pytest.raises(StoreError, match=message):
        create_store(tmp_path / "s.h5", Schema(model="m", task="t", conditions=("c",), provenance=provenance))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("conditions", [(), "direct", ("a/b",), ("",), ("\ud800",), (1,)])
def test_conditions_must_be_names(conditions):
    with pytest.raises(StoreError):
        Schema(model="m", task="t", conditions=conditions)


WRONG_ROWS = [
    (lambda r: r.drop(columns="id"), "rows need unique columns and an 'id'"),
    (lambda r: r.assign(id=["a", "a", "b"]), "id 'a' comes twice"),
    (lambda r: r.assign(id=[1, 2, 3]), "every row needs a text 'id'; got 1"),
    (lambda r: r.assign(id=["a", None, "b"]), "every row needs a text 'id'; got None"),
    (lambda r: r.rename(columns={"score": "a/b"}), "column 'a/b' cannot name a part of a store"),
    (lambda r: r.assign(score=[1, "x", 2]), "column 'score' mixes int and str"),
    (lambda r: r.assign(score=[1, True, 2]).astype({"score": object}), "column 'score' mixes bool and int"),
    (lambda r: r.assign(score=[[1], [2], [3]]), r"column 'score' holds \[1\]: only text"),
    (lambda r: r.assign(score=[2**63, 1, 2]), "column 'score' holds 9223372036854775808"),
    (lambda r: r.assign(score=["\ud800", "", ""]).astype({"score": object}), "column 'score' holds"),
    (lambda r: r.iloc[:2], "has 3 rows of activations for 2 rows"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG_ROWS)
def test_wrong_rows_are_refused_and_nothing_is_written(tmp_path, schema, rows, acts, spoil, message):
    place = tmp_path / "run.h5"
    with create_store(place, schema) as writer:
        with pytest.raises(StoreError, match=message):
            writer.append("direct", spoil(rows), acts)
        writer.append("direct", rows, acts)
    with open_store(place) as store:
        assert store.rows("direct")["id"].tolist() == ["a", "b", "♥"]
        assert store.verify() > 0


WRONG_ACTS = [
    (lambda a: {(SITE, "last"): a[SITE, "last"]}, f"needs the same activations; differing: {SITE} image"),
    (lambda a: {**a, (SITE, "last"): Ragged(torch.zeros(3, 2, 4), torch.ones(3).long())}, "last was .* and is"),
    (lambda a: {**a, (SITE, "last"): Ragged(torch.zeros(3, 2, 3).half(), torch.ones(3).long())}, "float16"),
    (lambda a: {**a, (SITE, "last"): Ragged(torch.zeros(3, 0), torch.ones(3).long())}, "empty features"),
    (lambda a: {**a, (SITE, "last"): Ragged(torch.zeros(3, 2).cfloat(), torch.ones(3).long())}, "complex64"),
    (lambda a: {**a, ("a/b", "last"): a[SITE, "last"]}, "site 'a/b' cannot name a part"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG_ACTS)
def test_activations_that_do_not_fit_are_refused(tmp_path, schema, rows, acts, spoil, message):
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", rows, acts)
        with pytest.raises(StoreError, match=message):
            writer.append("direct", rows.assign(id=["d", "e", "f"]), spoil(acts))
    assert len(open_store(tmp_path / "run.h5").rows("direct")) == 3


def test_an_unknown_condition_names_the_nearest(tmp_path, schema, rows, acts):
    writer = create_store(tmp_path / "run.h5", schema)
    with pytest.raises(StoreError, match=r"unknown condition .cascade.; .*cascaded"):
        writer.append("cascade", rows, acts)
    writer.abandon()


def test_an_empty_batch_changes_nothing(tmp_path, schema):
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", pd.DataFrame({"id": []}), {})
    assert open_store(tmp_path / "run.h5").conditions == ()


def test_chunks_follow_the_batch_up_to_a_megabyte(tmp_path, schema):
    with create_store(tmp_path / "run.h5", schema) as writer:
        ids = pd.DataFrame({"id": [str(i) for i in range(64)]})
        small = Ragged(torch.zeros(64, 8), torch.ones(64).long())
        large = Ragged(torch.zeros(64 * 64, 256), torch.full((64,), 64))
        writer.append("direct", ids, {(SITE, "last"): small, (SITE, "image"): large})
    with h5py.File(tmp_path / "run.h5") as file:
        group = file[f"conditions/direct/acts/{SITE}"]
        assert group["last/values"].chunks == (256, 8)
        assert group["image/values"].chunks == (1024, 256)
    assert os.path.getsize(tmp_path / "run.h5") < 5.5e6
