"""Joining stores: what goes together, what does not, and where the shards are found."""

import json
import os
import resource
import shutil
import time

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from seamscope.activations import Schema, create_store, join_stores, open_store
from seamscope.hooks import Ragged, StoreError

from .making import SITE, capture, contents

BASE = {"model": "m", "task": "t", "conditions": ("direct",)}


def store(place, ids, *, number=0.0, acts=None, column=None, provenance=None, **schema):
    """A store of one file; its only cell counts from `number` on."""
    place.parent.mkdir(parents=True, exist_ok=True)
    tokens = Ragged(torch.arange(number, number + len(ids))[:, None], torch.ones(len(ids)).long())
    rows = pd.DataFrame({"id": ids} | ({} if column is None else {"x": column}))
    with create_store(place, Schema(**{**BASE, **schema}, provenance=provenance or {})) as writer:
        writer.append("direct", rows, {(SITE, "last"): tokens} if acts is None else acts)
    return place


@pytest.fixture
def two(tmp_path):
    return [store(tmp_path / "a.h5", ["a", "b"]), store(tmp_path / "b.h5", ["c"], number=7.0, column=["late"])]


def values(place, rows=None):
    with open_store(place) as opened:
        opened.verify()
        return opened.read(SITE, "last", "direct", rows).values.flatten().tolist()


def test_rows_follow_one_another_in_the_order_of_the_stores(tmp_path, two):
    join_stores(tmp_path / "run.h5", two)
    join_stores(tmp_path / "turned.h5", two[::-1])
    assert values(tmp_path / "run.h5") == [0, 1, 7]
    assert values(tmp_path / "turned.h5") == [7, 0, 1]
    assert values(tmp_path / "run.h5", [-1, 0, 2]) == [7, 0, 7]
    with open_store(tmp_path / "run.h5") as opened:
        assert opened.rows("direct")["id"].tolist() == ["a", "b", "c"]
        assert opened.rows("direct")["x"].tolist() == [None, None, "late"]
        assert [(shard.path.name, shard.rows) for shard in opened.shards] == [
            ("a.h5", {"direct": 2}),
            ("b.h5", {"direct": 1}),
        ]
        assert opened.nbytes == sum((tmp_path / name).stat().st_size for name in ("run.h5", "a.h5", "b.h5"))


def test_nothing_is_copied_but_the_tables(tmp_path):
    for name in "ab":
        wide = Ragged(torch.zeros(64, 4096), torch.full((1,), 64))
        store(tmp_path / f"{name}.h5", [name], acts={(SITE, "last"): wide})
    join_stores(tmp_path / "run.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    assert (tmp_path / "a.h5").stat().st_size > 2**20 > 50 * (tmp_path / "run.h5").stat().st_size


def test_the_same_stores_make_the_same_file(tmp_path, two):
    join_stores(tmp_path / "one.h5", two)
    time.sleep(1.05)  # HDF5 keeps whole seconds, where it keeps times
    join_stores(tmp_path / "two.h5", two)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"model": "n"}, "b.h5 was captured otherwise than .*a.h5: model: 'n', not 'm'"),
        ({"task": "u"}, "task: 'u', not 't'"),
        ({"conditions": ("direct", "cot")}, r"conditions: \['direct', 'cot'\], not \['direct'\]"),
        ({"provenance": {"spans": ["last"]}}, r"spans: \['last'\], not nothing"),
        ({"provenance": {"options": {"rows": 3}}}, r"options.rows: 3, not nothing"),
        ({"acts": {(SITE, "last"): Ragged(torch.zeros(1, 2), torch.ones(1).long())}},
         r"b.h5 holds lm.0.resid_post at last as float32 of shape \(2,\); .* before it as float32 of shape \(1,\)"),
        ({"ids": ["a"]}, "b.h5 does not go with the stores before it: id 'a' comes twice"),
        ({"column": ["text"]}, "b.h5 does not go with the stores before it: column 'x' mixes int and str"),
    ],
)  # fmt: skip
def test_stores_that_do_not_go_together(tmp_path, other, message):
    one = store(tmp_path / "a.h5", ["a"], column=[1])
    two = store(tmp_path / "b.h5", **{"ids": ["b"], **other})
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=message) as caught:
        join_stores(tmp_path / "sub" / "run.h5", [one, two])
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before
    assert not (tmp_path / "sub").exists()


def test_captures_of_other_items_may_be_merged(tmp_path):
    """Which were asked for is listed; the seed that all share is not."""
    one = store(tmp_path / "a.h5", ["a"], provenance={"n": 1, "seed": 0})
    two = store(tmp_path / "b.h5", ["b", "c"], provenance={"n": 2, "seed": 0})
    join_stores(tmp_path / "run.h5", [one, two, store(tmp_path / "c.h5", ["d"], provenance={"n": 1, "seed": 0})])
    with open_store(tmp_path / "run.h5") as opened:
        assert (opened.provenance["n"], opened.provenance["seed"]) == ([1, 2], 0)
        assert len(opened.rows("direct")) == 4


def test_shards_of_a_capture_that_are_missing_are_missed(tmp_path, joined):
    folder = joined.with_suffix(".shards")
    parts = sorted(folder.glob("*.h5"))
    with pytest.raises(StoreError, match=r"joined.shards has 4 of 7 rows of direct; the rest is missing"):
        join_stores(tmp_path / "less.h5", [parts[0], parts[2]])
    join_stores(tmp_path / "all.h5", [parts[2], parts[0], parts[1]])
    with open_store(tmp_path / "all.h5") as opened:
        assert opened.rows("direct")["id"].tolist() == [f"item {k}" for k in (6, 0, 1, 2, 3, 4, 5)]
        assert opened.verify() > 0


def test_joined_stores_are_taken_apart(tmp_path, two):
    """Alone and in a folder: what is joined at last are files that hold their data themselves."""
    join_stores(tmp_path / "inner" / "run.h5", two)
    third = store(tmp_path / "inner" / "z.h5", ["z"], number=9.0)
    for name, stores in (("one.h5", [tmp_path / "inner" / "run.h5", third]), ("two.h5", [tmp_path / "inner"])):
        join_stores(tmp_path / name, stores)
        assert values(tmp_path / name) == [0, 1, 7, 9]
        with open_store(tmp_path / name) as opened:
            assert [shard.path.name for shard in opened.shards] == ["a.h5", "b.h5", "z.h5"]
    with h5py.File(tmp_path / "two.h5") as file:
        assert file[f"conditions/direct/acts/{SITE}/last/values"][:, 0].tolist() == [0, 1, 7, 9]


def test_a_joined_store_moves_with_its_shards(tmp_path, two):
    join_stores(tmp_path / "deep" / "er" / "run.h5", two)
    shutil.move(tmp_path / "deep", tmp_path / "moved" / "deep")
    with pytest.raises(StoreError, match=r"a.h5 is missing, which holds 2 rows of direct of the store"):
        open_store(tmp_path / "moved" / "deep" / "er" / "run.h5")
    for file in two:
        shutil.move(file, tmp_path / "moved" / file.name)
    assert values(tmp_path / "moved" / "deep" / "er" / "run.h5") == [0, 1, 7]
    shutil.copytree(tmp_path / "moved", tmp_path / "♥ #%b copy")
    assert values(tmp_path / "♥ #%b copy" / "deep" / "er" / "run.h5") == [0, 1, 7]


def test_paths_are_right_where_folders_and_files_are_links(tmp_path, two):
    """`..` leads from a linked folder to where it really is: a path that ignores that finds nothing."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    join_stores(tmp_path / "link" / "run.h5", two)
    assert values(tmp_path / "link" / "run.h5") == [0, 1, 7]
    assert values(tmp_path / "real" / "deep" / "run.h5") == [0, 1, 7]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run.h5").symlink_to(tmp_path / "link" / "run.h5")
    assert values(tmp_path / "elsewhere" / "run.h5") == [0, 1, 7]
    with h5py.File(tmp_path / "link" / "run.h5") as file:  # so does HDF5
        assert file[f"conditions/direct/acts/{SITE}/last/values"][:, 0].tolist() == [0, 1, 7]


def test_relative_paths_given_from_another_folder(tmp_path, two, monkeypatch):
    monkeypatch.chdir(tmp_path)
    join_stores("run.h5", ["a.h5", "./b.h5"])
    assert values("run.h5") == [0, 1, 7]
    monkeypatch.chdir("/")
    assert values(tmp_path / "run.h5") == [0, 1, 7]


def test_a_file_that_exists_is_replaced_only_on_demand_and_never_if_it_is_joined(tmp_path, two):
    join_stores(tmp_path / "run.h5", two)
    with pytest.raises(StoreError, match=r"run.h5 exists already; a store is never overwritten"):
        join_stores(tmp_path / "run.h5", two)
    join_stores(tmp_path / "run.h5", [tmp_path / "run.h5", store(tmp_path / "c.h5", ["d"], number=9.0)], replace=True)
    assert values(tmp_path / "run.h5") == [0, 1, 7, 9]
    before = contents(tmp_path)
    (tmp_path / "link.h5").symlink_to(tmp_path / "a.h5")
    for name in ("a.h5", "link.h5"):
        with pytest.raises(StoreError, match=f"{name} is one of the stores to join; give the joined file another name"):
            join_stores(tmp_path / name, two, replace=True)
    (tmp_path / "link.h5").unlink()
    assert contents(tmp_path) == before


def test_stores_that_are_not_there(tmp_path, two):
    with pytest.raises(StoreError, match="nothing to join"):
        join_stores(tmp_path / "run.h5", [])
    with pytest.raises(StoreError, match=r"none.h5 is no file"):
        join_stores(tmp_path / "run.h5", [two[0], tmp_path / "none.h5"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match="empty holds no shards"):
        join_stores(tmp_path / "run.h5", [tmp_path / "empty"])
    assert not (tmp_path / "run.h5").exists()


def test_stores_without_rows(tmp_path, two):
    with create_store(tmp_path / "none.h5", Schema(**BASE)):
        pass
    join_stores(tmp_path / "run.h5", [tmp_path / "none.h5", *two, tmp_path / "none.h5"])
    assert values(tmp_path / "run.h5") == [0, 1, 7]
    join_stores(tmp_path / "all.h5", [tmp_path / "none.h5", tmp_path / "none.h5"])
    with open_store(tmp_path / "all.h5") as opened:
        assert opened.conditions == ()
        opened.verify()


def test_shards_beyond_five_digits_come_last(tmp_path):
    store(tmp_path / "s" / "99999.h5", ["a"])
    store(tmp_path / "s" / "100000.h5", ["b"], number=1.0)
    join_stores(tmp_path / "run.h5", [tmp_path / "s"])
    assert values(tmp_path / "run.h5") == [0, 1]


def test_many_shards_are_never_open_at_once(tmp_path, monkeypatch):
    """Joined, read and verified where fewer files can be open than there are shards."""
    files = [store(tmp_path / "s" / f"{k:05d}.h5", [f"{k}"], number=float(k)) for k in range(20)]
    monkeypatch.setattr("seamscope.activations._store._OPEN", 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 + max(map(int, os.listdir("/dev/fd"))) + 10, hard))
    try:
        join_stores(tmp_path / "run.h5", files)
        with open_store(tmp_path / "run.h5") as opened:
            assert opened.verify() == 4 + 20 * 6
            assert opened.read(SITE, "last", "direct").values.flatten().tolist() == list(map(float, range(20)))
            assert opened.made_with == [{}]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_list_of_shards_says_what_they_are(tmp_path, two):
    join_stores(tmp_path / "sub" / "run.h5", two)
    with h5py.File(tmp_path / "sub" / "run.h5") as file, h5py.File(two[0]) as one:
        told = json.loads(file["manifest"][()].tobytes())["shards"]
        assert told[0] == {
            "file": "../a.h5",
            "bytes": two[0].stat().st_size,
            "manifest_sha256": one.attrs["manifest_sha256"].decode(),
            "rows": {"direct": 2},
        }
        assert file[f"conditions/direct/acts/{SITE}/last/values"].is_virtual
        assert not file["conditions/direct/rows/id/values"].is_virtual


def test_tables_are_joined_as_they_would_have_been_written_at_once(tmp_path):
    """Numbers with gaps, numbers that become broken only later, and columns that a store lacks."""
    whole = pd.DataFrame(
        {
            "id": list("abcd"),
            "gaps": pd.array([1, None, 2**62 + 1, None], dtype="Int64"),
            "broken": [1.0, float("nan"), 0.5, -0.0],
            "said": ["", None, "♥", None],
            "right": pd.array([True, None, None, False], dtype="boolean"),
        }
    )
    with create_store(tmp_path / "whole.h5", Schema(**BASE)) as writer:
        writer.append("direct", whole, {})
    for name, part in (("a", whole[:2]), ("b", whole[2:])):
        with create_store(tmp_path / f"{name}.h5", Schema(**BASE)) as writer:
            writer.append("direct", part.reset_index(drop=True), {})
    join_stores(tmp_path / "run.h5", [tmp_path / "a.h5", tmp_path / "b.h5"])
    with open_store(tmp_path / "whole.h5") as one, open_store(tmp_path / "run.h5") as two:
        pd.testing.assert_frame_equal(one.rows("direct"), two.rows("direct"))
        assert np.signbit(two.rows("direct")["broken"][3])


def test_a_capture_joined_again_is_the_same(tmp_path, joined):
    before = joined.read_bytes()
    join_stores(joined, [joined], replace=True)
    assert joined.read_bytes() == before
    joined.unlink()
    assert capture(joined)
    assert joined.read_bytes() == before
