"""Appending, completing, and failing on the way."""

import time

import h5py
import pandas as pd
import pytest
import torch

from seamscope.activations import FORMAT_VERSION, Schema, create_store, open_store
from seamscope.activations._file import StoreFile
from seamscope.activations._partial import Partial
from seamscope.hooks import Ragged, StoreError

from .making import SITE, noise, same


def partial(place):
    return place.with_name(place.name + ".partial")


def test_the_name_appears_only_when_the_store_is_complete(tmp_path, schema, rows, acts):
    place = tmp_path / "run.h5"
    with create_store(place, schema) as writer:
        writer.append("direct", rows, acts)
        assert not place.exists()
        assert partial(place).exists()
    assert [each.name for each in tmp_path.iterdir()] == ["run.h5"]


def test_after_an_exception_nothing_is_left(tmp_path, schema, rows, acts):
    def run():
        with create_store(tmp_path / "run.h5", schema) as writer:
            writer.append("direct", rows, acts)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert not list(tmp_path.iterdir())


def test_a_partial_file_is_replaced_only_on_demand(tmp_path, schema, rows, acts):
    place = tmp_path / "run.h5"
    partial(place).touch()  # by a process that was killed
    with pytest.raises(StoreError, match=r"was ended early; in that case delete it, or give replace_partial=True"):
        create_store(place, schema)
    assert partial(place).exists()
    with create_store(place, schema, replace_partial=True) as writer:
        writer.append("direct", rows, acts)
    assert open_store(place).verify() == 22


def test_an_existing_store_is_never_overwritten(path, schema):
    before = path.read_bytes()
    with pytest.raises(StoreError, match="exists already"):
        create_store(path, schema, replace_partial=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("links", [True, False])
def test_a_store_that_appears_meanwhile_is_kept(tmp_path, schema, monkeypatch, links):
    place = tmp_path / "run.h5"
    if not links:
        monkeypatch.setattr("os.link", no_links)
    writer = create_store(place, schema)
    place.write_text("someone else's")
    with pytest.raises(StoreError, match="appeared meanwhile"):
        writer.close()
    assert place.read_text() == "someone else's"
    assert not partial(place).exists()


def no_links(*_):
    raise PermissionError(1, "Operation not permitted")


def test_a_file_system_without_hard_links_will_do(tmp_path, schema, rows, acts, monkeypatch):
    monkeypatch.setattr("os.link", no_links)
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", rows, acts)
    assert [each.name for each in tmp_path.iterdir()] == ["run.h5"]
    assert open_store(tmp_path / "run.h5").verify() == 22


def test_a_write_that_fails_leaves_nothing(tmp_path, schema, rows, acts, monkeypatch):
    place = tmp_path / "run.h5"
    writer = create_store(place, schema)
    writer.append("direct", rows, acts)

    def full(*_):
        raise OSError(28, "a long story")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StoreError, match=r"run.h5.partial cannot be written: No space left on device$"):
        writer.close()
    assert not list(tmp_path.iterdir())
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


def test_a_batch_that_lacks_an_activation_has_no_tokens_there(tmp_path, schema, rows, acts):
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", rows, {(SITE, "last"): acts[SITE, "last"]})
        writer.append("direct", rows.assign(id=["d", "e", "f"]), acts)
    with open_store(tmp_path / "run.h5") as store:
        assert store.read(SITE, "image", "direct").lengths.tolist() == [0, 0, 0, 2, 3, 0]
        assert same(store.read(SITE, "image", "direct").values, acts[SITE, "image"].values)


def test_what_is_appended_is_copied(tmp_path, schema, rows, acts):
    expected = acts[SITE, "last"].values.clone()
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", rows, acts)
        acts[SITE, "last"].values.zero_()
        rows["id"] = "changed"
    with open_store(tmp_path / "run.h5") as store:
        assert same(store.read(SITE, "last", "direct").values, expected)
        assert store.rows("direct")["id"].tolist() == ["a", "b", "♥"]


def test_places_sort_the_rows(tmp_path, schema):
    with create_store(tmp_path / "run.h5", schema) as writer:
        for places in ([30, 2], [7, -1]):
            tokens = Ragged.from_list([torch.full((abs(k), 1), float(k)) for k in places])
            writer.append(
                "direct", pd.DataFrame({"id": [str(k) for k in places]}), {(SITE, "x"): tokens}, places=places
            )
    with open_store(tmp_path / "run.h5") as store:
        assert store.rows("direct")["id"].tolist() == ["-1", "2", "7", "30"]
        assert [row.flatten().tolist() for row in store.read(SITE, "x", "direct").split()] == [
            [float(k)] * abs(k) for k in (-1, 2, 7, 30)
        ]


@pytest.mark.parametrize("places", [[0], [0, 0, 1], [0, 1, 7]])
def test_places_must_be_free_and_as_many(tmp_path, schema, rows, acts, places):
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", rows.assign(id=["x", "y", "z"]), acts, places=[5, 6, 7])
        with pytest.raises(StoreError, match="3 rows need as many places, which no other row has"):
            writer.append("direct", rows, acts, places=places)
        writer.append("direct", rows, acts, places=[0, 1, 2])
    with open_store(tmp_path / "run.h5") as store:
        assert store.rows("direct")["id"].tolist() == ["a", "b", "♥", "x", "y", "z"]


def test_the_same_data_make_the_same_bytes(tmp_path, schema):
    """At another time, and in other batches; the control: other data do not."""

    def make(name, *batches, label="x"):
        for compression in (None, "bitshuffle"):
            with create_store(tmp_path / f"{name}.{compression}", schema, compression=compression) as writer:
                for places in batches:
                    numbers = pd.DataFrame({"id": [str(k) for k in places], "label": label})
                    tokens = Ragged.from_list([noise(torch.float32, (k, 5), seed=k) for k in places])
                    writer.append("direct", numbers, {(SITE, "image"): tokens}, places=places)
        return [file.read_bytes() for file in sorted(tmp_path.glob(f"{name}.*"))]

    one = make("one", [0, 1, 2, 3])
    time.sleep(1.05)  # HDF5 keeps whole seconds, where it keeps times
    assert make("two", [3, 1], [2], [0]) == one
    assert make("other", [0, 1, 2, 3], label="y") != one


def test_provenance_is_kept_and_completed(path, schema):
    with open_store(path) as store:
        kept = store.provenance
        assert (store.schema.model, store.schema.task) == ("tiny", "cards")
    assert {key: kept[key] for key in schema.provenance} == schema.provenance
    assert kept["format_version"] == FORMAT_VERSION
    assert kept["versions"].keys() >= {"python", "seamscope", "torch", "transformers", "numpy", "h5py"}
    assert kept["versions"]["h5py"] == h5py.__version__


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"versions": 1}, "'versions' is written by the store itself"),
        ({"x": object()}, "must be plain JSON: Object of type object"),
    ],
)
def test_provenance_that_cannot_be_kept_is_refused(tmp_path, provenance, message):
    def run():
        schema = Schema(model="m", task="t", conditions=("c",), provenance=provenance)
        with create_store(tmp_path / "s.h5", schema):
            pass

    with pytest.raises(StoreError, match=message):
        run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("conditions", [(), "direct", ("a/b",), ("",), ("\ud800",), (1,)])
def test_conditions_must_be_names(conditions):
    with pytest.raises(StoreError):
        Schema(model="m", task="t", conditions=conditions)


@pytest.mark.parametrize("place", ["", ".", "..", "/", "a\0b", "\udcff.h5"])
def test_places_that_cannot_be_files(schema, place):
    for do in (open_store, lambda each: create_store(each, schema)):
        with pytest.raises(StoreError, match="cannot be the name of a store"):
            do(place)


def test_folders_that_are_not_there_and_names_that_are_too_long(tmp_path, schema):
    with pytest.raises(StoreError, match=r"cannot be written: No such file or directory$"):
        create_store(tmp_path / "none" / "run.h5", schema)
    with pytest.raises(StoreError, match=r"cannot be written: File name too long$"):
        create_store(tmp_path / ("x" * 300), schema)
    with pytest.raises(StoreError, match=r"cannot be read: File name too long$"):
        open_store(tmp_path / ("x" * 300))


def test_an_unknown_compression(tmp_path, schema):
    with pytest.raises(StoreError, match=r"unknown compression 'gzip'.*bitshuffle"):
        create_store(tmp_path / "run.h5", schema, compression="gzip")
    assert not list(tmp_path.iterdir())


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


def test_a_copy_that_fails_adds_nothing_of_the_batch(tmp_path, schema, rows, acts):
    """Of two activations the first can be copied, the second cannot: it has no data."""
    nothing = Ragged(torch.zeros(3, 2, 3, device="meta"), torch.ones(3).long())
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", rows, acts)
        with pytest.raises(NotImplementedError):
            writer.append("direct", rows.assign(id=["d", "e", "f"]), {**acts, (SITE, "last"): nothing})
        writer.append("direct", rows.assign(id=["g", "h", "i"]), acts)
    with open_store(tmp_path / "run.h5") as store:
        assert store.rows("direct")["id"].tolist() == ["a", "b", "♥", "g", "h", "i"]
        assert same(store.read(SITE, "image", "direct").values, acts[SITE, "image"].values.repeat(2, 1))


def test_an_unknown_condition_names_the_nearest(tmp_path, schema, rows, acts):
    writer = create_store(tmp_path / "run.h5", schema)
    with pytest.raises(StoreError, match=r"unknown condition .cascade.; .*cascaded"):
        writer.append("cascade", rows, acts)
    writer.abandon()


def test_an_empty_batch_changes_nothing(tmp_path, schema):
    with create_store(tmp_path / "run.h5", schema) as writer:
        writer.append("direct", pd.DataFrame({"id": []}), {})
    assert open_store(tmp_path / "run.h5").conditions == ()


def test_uncompressed_values_lie_in_one_piece(tmp_path, schema):
    ids = pd.DataFrame({"id": [str(i) for i in range(64)]})
    with create_store(tmp_path / "run.h5", schema) as writer:
        values = noise(torch.float32, (64 * 64, 256))
        writer.append("direct", ids, {(SITE, "image"): Ragged(values, torch.full((64,), 64))})
    with h5py.File(tmp_path / "run.h5") as file:
        data = file[f"conditions/direct/acts/{SITE}/image/values"]
        assert data.chunks is None
        begin = data.id.get_offset()
    content = (tmp_path / "run.h5").read_bytes()
    assert content[begin : begin + values.nbytes] == values.numpy().tobytes()
    assert len(content) < values.nbytes + 2**14  # what room was taken for and not needed was given back


def test_a_file_that_is_not_finished_is_removed(tmp_path, schema):
    with StoreFile(Partial(tmp_path / "x.partial"), schema.stamped()):
        assert (tmp_path / "x.partial").exists()
    assert not list(tmp_path.iterdir())
