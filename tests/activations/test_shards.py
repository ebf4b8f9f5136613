"""Stores made shard by shard: by several processes, by ones that are killed, and never by two at once."""

import fcntl
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from seamscope.activations import (
    _partial,
    _shards,
    create_store,
    fitting_rows_per_shard,
    join_stores,
    open_store,
    planned_rows_per_shard,
)
from seamscope.activations._layout import partial_of
from seamscope.activations._partial import Partial, remove_left
from seamscope.hooks import StoreError

from .making import (
    PER_SHARD,
    ROWS,
    SCHEMA,
    batch,
    capture,
    contents,
    hold,
    hold_file,
    make,
    make_and_die,
    make_as_nobody,
    same,
    shards_of,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of all files of a capture that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert capture(folder / "run.h5")
    return contents(folder)


def test_a_capture_holds_what_one_file_would(tmp_path, joined):
    with create_store(tmp_path / "one.h5", SCHEMA) as writer:
        for condition in SCHEMA.conditions:
            writer.append(condition, *batch(range(ROWS)))
    with open_store(joined) as many, open_store(tmp_path / "one.h5") as one:
        assert many.conditions == one.conditions
        for condition in one.conditions:
            pd.testing.assert_frame_equal(many.rows(condition), one.rows(condition))
            assert set(many.cells(condition)) == set(one.cells(condition))
            for site, span in one.cells(condition):
                got, expected = many.read(site, span, condition), one.read(site, span, condition)
                assert same(got.values, expected.values)
                assert torch.equal(got.lengths, expected.lengths)


def test_the_plan(tmp_path):
    shards = shards_of(tmp_path / "run.h5")
    assert [list(shards.rows_of(k)) for k in range(shards.count)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert shards.missing() == [0, 1, 2]
    assert [shards_of(tmp_path / "run.h5", (i, 2)).missing() for i in (0, 1)] == [[0, 2], [1]]
    assert planned_rows_per_shard(tmp_path / "run.h5") is None
    assert not shards.join()
    assert not list(tmp_path.iterdir())  # a plan writes nothing
    capture(tmp_path / "run.h5", (1, 2))
    assert (shards.finished(), shards.missing()) == ([1], [0, 2])
    assert planned_rows_per_shard(tmp_path / "run.h5") == PER_SHARD
    for number in (-1, 3):
        with pytest.raises(StoreError, match=f"there is no shard {number}: the store has shards 0 to 2"):
            shards.create(number)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "a store needs rows, and shards of some: got 0 and 3"),
        ({"per_shard": 0}, "got 7 and 0"),
        ({"part": (2, 2)}, "part 2 of 2 does not exist: parts are counted from 0 to 1"),
        ({"part": (-1, 2)}, "part -1 of 2 does not exist"),
        ({"compression": "gzip"}, "unknown compression 'gzip'"),
        ({"schema": replace(SCHEMA, provenance={"versions": 1})}, "'versions' is written by the store itself"),
        ({"schema": replace(SCHEMA, provenance={"x": {1}})}, "must be plain JSON"),
    ],
)
def test_plans_that_cannot_be(tmp_path, options, message):
    with pytest.raises(StoreError, match=message):
        shards_of(tmp_path / "run.h5", **options)


@pytest.mark.parametrize(("row_bytes", "rows"), [(0, 10), (1, 10**9), (10**6, 10**4), (10**8, 10**5), (10**12, 3)])
def test_shards_are_of_a_reasonable_size(row_bytes, rows):
    fitting = fitting_rows_per_shard(row_bytes, rows)
    assert 8 <= fitting <= 1024
    assert fitting.bit_count() == 1
    assert fitting == 8 or fitting * row_bytes <= 2**28
    assert fitting == fitting_rows_per_shard(row_bytes * 1.0001, rows)


def test_a_shard_needs_all_its_rows(tmp_path):
    with shards_of(tmp_path / "run.h5") as shards:
        file = shards.create(0)
        file.append("direct", *batch(range(3)))
        file.append("cascaded", *batch(range(2)))
        with pytest.raises(StoreError, match=r"00000.h5 needs 3 rows under 'cascaded'; it got 2"):
            file.close()
        assert shards.missing() == [0, 1, 2]


@pytest.mark.parametrize("parts", [2, 4])
def test_which_process_makes_a_shard_does_not_show(tmp_path, whole, parts):
    """More parts than shards included."""
    done = [capture(tmp_path / "run.h5", (i, parts)) for i in reversed(range(parts))]
    assert done[-1]
    assert contents(tmp_path) == whole


def test_the_same_again_does_nothing(tmp_path, whole):
    capture(tmp_path / "run.h5")
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.h5")}
    assert capture(tmp_path / "run.h5")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.h5")} == before
    assert contents(tmp_path) == whole


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"schema": replace(SCHEMA, model="n")},
            r"00000.h5 was captured otherwise \(model: 'm', not 'n'\); choose anoth",
        ),
        ({"schema": replace(SCHEMA, provenance={"n": 7, "seed": 1})}, "seed: 0, not 1"),
        ({"rows": 6}, "rows: 7, not 6"),
        ({"per_shard": 4}, "rows_per_shard: 3, not 4"),
    ],
)
def test_what_another_capture_made_is_never_continued(tmp_path, other, message):
    capture(tmp_path / "run.h5", (0, 2))
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=message) as caught:
        shards_of(tmp_path / "run.h5", **other)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_two_captures_that_began_at_once_are_not_mixed(tmp_path):
    """Each found nothing that contradicts it when it began; at the end, one of them does."""
    one, two = (shards_of(tmp_path / "run.h5", (i, 2), replace(SCHEMA, model=str(i))) for i in (0, 1))
    for shards in (one, two):
        with shards:
            for number in shards.missing():
                with shards.create(number) as file:
                    for condition in SCHEMA.conditions:
                        file.append(condition, *batch(shards.rows_of(number)))
    for shards in (one, two):
        with pytest.raises(StoreError, match=r"was captured otherwise \(model"):
            shards.join()
    assert not (tmp_path / "run.h5").exists()


def test_something_else_under_the_name_of_the_store(tmp_path):
    (tmp_path / "run.h5").write_text("a diary")
    with pytest.raises(StoreError, match=r"run.h5 cannot be read.* delete it"):
        capture(tmp_path / "run.h5")
    assert (tmp_path / "run.h5").read_text() == "a diary"


def test_a_shard_that_does_not_belong_there(tmp_path, joined):
    folder = joined.with_suffix(".shards")
    shutil.copy(folder / "00000.h5", folder / "00007.h5")
    with pytest.raises(StoreError, match=r"00007.h5 does not belong there: the store has shards 0 to 2"):
        shards_of(joined)


def test_what_may_not_be_read_or_written_is_told(tmp_path, children):
    folder = tmp_path / "mine"
    capture(folder / "run.h5", (0, 2))
    (folder / "run.shards").chmod(0o500)
    folder.chmod(0o500)
    before = contents(folder)
    code, said = children.run(make_as_nobody, folder / "run.h5")
    folder.chmod(0o700)
    (folder / "run.shards").chmod(0o700)
    assert code == 2
    assert said.endswith("Permission denied\n")
    assert said.count("\n") == 2
    assert contents(folder) == before


def test_a_damaged_shard_is_made_again_once_it_is_deleted(tmp_path, whole):
    capture(tmp_path / "run.h5", (0, 2))
    file = tmp_path / "run.shards" / "00002.h5"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        StoreError, match=r"00002.h5 cannot be read.*; choose .*, or delete it, and the same command makes it again"
    ):
        capture(tmp_path / "run.h5")
    file.unlink()
    assert capture(tmp_path / "run.h5")
    assert contents(tmp_path) == whole


def test_a_shard_that_was_lost_after_joining_is_made_and_joined_again(tmp_path, whole):
    """The second time elsewhere, so that the joined file's checksum of it changes too."""
    capture(tmp_path / "run.h5")
    (tmp_path / "run.shards" / "00001.h5").unlink()
    with shards_of(tmp_path / "run.h5") as shards:
        assert shards.missing() == [1]
        with shards.create(1, {"device": "other"}) as file:
            for condition in SCHEMA.conditions:
                file.append(condition, *batch(shards.rows_of(1)))
        assert shards.join()
    with open_store(tmp_path / "run.h5") as store:
        store.verify()
        assert store.made_with == [{}, {"device": "other"}]
    assert contents(tmp_path)["run.shards/00000.h5"] == whole["run.shards/00000.h5"]


def test_a_shard_that_two_make_is_that_of_the_first(tmp_path):
    """Otherwise the joined file would know another checksum of it."""
    one, two = shards_of(tmp_path / "run.h5", (0, 1)), shards_of(tmp_path / "run.h5", (0, 2))
    with one, two:
        files = [shards.create(0, {"device": name}) for shards, name in ((one, "first"), (two, "second"))]
        for file in files:
            for condition in SCHEMA.conditions:
                file.append(condition, *batch(range(3)))
            file.close()
    with open_store(tmp_path / "run.shards" / "00000.h5") as store:
        assert store.made_with == [{"device": "first"}]
    assert list(contents(tmp_path)) == ["run.shards/00000.h5"]


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, whole):
    folder = tmp_path / "run.shards"
    folder.mkdir()
    for _ in range(2):  # once before there is anything, and once when all is there
        (folder / ".00001.0-of-1.partial").write_bytes(b"half")
        (folder / ".00001.2-of-3.partial").write_bytes(b"half")
        (tmp_path / "run.h5.partial").write_bytes(b"half")
        assert capture(tmp_path / "run.h5")
        assert contents(tmp_path) == whole


def test_nothing_is_left_to_tidy_once_the_file_has_its_name(tmp_path, whole, monkeypatch):
    """Whoever finds it asks no more what else is there, also after a process that was killed right then."""

    def killed_after(*args, join=_shards.join_stores, **kwargs):
        join(*args, **kwargs)
        raise KeyboardInterrupt

    (tmp_path / "run.shards").mkdir()
    (tmp_path / "run.shards" / ".00001.2-of-3.partial").write_bytes(b"half")
    monkeypatch.setattr(_shards, "join_stores", killed_after)
    with pytest.raises(KeyboardInterrupt):
        capture(tmp_path / "run.h5")
    assert contents(tmp_path) == whole


def test_to_tidy_makes_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_partial.Partial, "__init__", lambda *_: pytest.fail("it was opened"))
    remove_left(tmp_path / "run.h5.partial")
    assert contents(tmp_path) == {}


def test_a_shard_that_another_process_made_meanwhile_is_kept(tmp_path, whole):
    """Also if that process tidied up what it took for left behind."""
    one = shards_of(tmp_path / "run.h5", (0, 2))
    with one:
        file = one.create(0)
        for condition in SCHEMA.conditions:
            file.append(condition, *batch(range(3)))
        held = Partial(tmp_path / "run.shards" / ".00000.0-of-2.partial")
        assert capture(tmp_path / "run.h5")
        held.begin(b"half")
        assert not held.name(tmp_path / "run.shards" / "00000.h5")
        held.remove()
        file.close()
    assert contents(tmp_path) == whole


def test_two_processes_at_one_part(tmp_path, children, whole):
    first = children.start(hold, tmp_path / "run.h5", (1, 2))
    first.until("held")
    code, said = children.run(make, tmp_path / "run.h5", (1, 2))
    assert code == 2
    assert "part 1 of 2 is being written by another process; wait for it, or give each process" in said
    assert children.run(make, tmp_path / "run.h5", (0, 2)) == (0, "False\n")  # another part is free
    assert first.kill() == -signal.SIGKILL
    assert children.run(make, tmp_path / "run.h5", (1, 2)) == (0, "True\n")  # and so is that of a dead process
    assert contents(tmp_path) == whole


def test_four_processes_at_once_two_of_them_at_the_same_shards(tmp_path, children, whole):
    parts = [(0, 2), (1, 2), (0, 1), (2, 3)]
    running = [children.start(make, tmp_path / "run.h5", part) for part in parts]
    assert [child.wait() for child in running] == [0] * len(parts), [child.said for child in running]
    assert any(child.said == "True\n" for child in running)
    assert contents(tmp_path) == whole


def test_a_second_writer_of_a_file_is_refused_and_disturbs_nothing(tmp_path, children, joined):
    """Whether it begins a store, takes one that is unfinished for left behind, or joins others."""
    place = tmp_path / "run.h5"
    first = children.start(hold_file, place)
    first.until("held")
    with pytest.raises(StoreError, match=r"run.h5.partial stands there: another process writes this store"):
        create_store(place, SCHEMA)
    with pytest.raises(StoreError, match=r"run.h5.partial cannot be written: another process is writing it"):
        create_store(place, SCHEMA, replace_partial=True)
    with pytest.raises(StoreError, match=r"run.h5 cannot be written: another process is writing it"):
        join_stores(place, [joined])
    first.kill(signal.SIGUSR1)
    assert first.said == "held\nfinished\n"
    with open_store(place) as store:
        assert len(store.rows("direct")) == ROWS
        store.verify()
    assert not partial_of(place).exists()


def test_a_file_that_just_got_its_name_can_be_read_although_it_is_locked_for_a_moment(path, acts):
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        with open_store(path) as store:
            assert store.verify() > 0
        timer.join()


def test_what_a_dead_writer_left_is_no_obstacle_to_joining(tmp_path, children, joined):
    first = children.start(hold_file, tmp_path / "run.h5")
    first.until("held")
    first.kill()
    assert partial_of(tmp_path / "run.h5").exists()
    join_stores(tmp_path / "run.h5", [joined])
    assert open_store(tmp_path / "run.h5").verify() > 0
    assert not partial_of(tmp_path / "run.h5").exists()


def test_a_file_that_got_its_name_before_it_was_locked_is_left_alone(tmp_path, monkeypatch):
    """Two processes open one file; the first finishes it between the second's two steps, opening and locking."""
    first = Partial(tmp_path / "x.partial")

    def late(*args, plain=fcntl.flock):
        monkeypatch.undo()
        first.begin(b"precious")
        assert first.name(tmp_path / "x")
        first.remove()
        plain(*args)

    monkeypatch.setattr(fcntl, "flock", late)
    second = Partial(tmp_path / "x.partial")
    second.begin(b"other")
    assert not second.name(tmp_path / "x")
    second.remove()
    second.remove()
    assert contents(tmp_path) == {"x": b"precious"}


def test_a_file_whose_writer_died_between_its_two_names_is_left_alone(tmp_path, joined):
    """It has both; to write the next one under the old name must not write into it."""
    joined.rename(tmp_path / "kept.h5")
    os.link(tmp_path / "kept.h5", partial_of(joined))
    before = (tmp_path / "kept.h5").read_bytes()
    join_stores(joined, [joined.with_suffix(".shards")])
    assert not joined.samefile(tmp_path / "kept.h5")
    joined.unlink()
    os.link(tmp_path / "kept.h5", partial_of(joined))
    with create_store(joined, SCHEMA, replace_partial=True):
        pass
    assert not partial_of(joined).exists()
    assert (tmp_path / "kept.h5").read_bytes() == before


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with create_store(tmp_path / "run.h5", SCHEMA):
        pass
    assert open_store(tmp_path / "run.h5").verify() == 1


def test_a_reader_while_a_writer_works(tmp_path, children):
    with pytest.raises(StoreError, match=r"run.h5 is not there$"):
        open_store(tmp_path / "run.h5")
    capture(tmp_path / "run.h5", (0, 2))
    writer = children.start(hold, tmp_path / "run.h5", (1, 2))
    writer.until("held")
    with pytest.raises(StoreError, match=r"run.h5 is not finished, shards of it are \(2\): .* can be opened alone"):
        open_store(tmp_path / "run.h5")
    with open_store(tmp_path / "run.shards" / "00002.h5") as store:
        assert store.rows("direct")["id"].tolist() == ["item 6"]
        assert store.verify() > 0
    writer.kill()


@pytest.fixture(scope="module")
def moments(tmp_path_factory, children, whole):
    """How many calls a capture makes where files are written; the control of the tests that stop it at one of them."""
    folder = tmp_path_factory.mktemp("moments")
    code, said = children.run(make_and_die, folder / "run.h5", 0)
    assert code == 0, said
    assert contents(folder) == whole
    return int(said.split()[-1])


@pytest.mark.parametrize("part", [0.003, 0.1, 0.3, 0.45, 0.6, 0.75, 0.88, 0.97])
def test_a_process_killed_at_any_call_loses_nothing(tmp_path, children, whole, moments, part):
    """Twice, the second time on the way of what is left."""
    assert moments > 500
    for moment in (round(moments * part), round(moments * part / 3)):
        finished = contents(tmp_path)
        assert children.run(make_and_die, tmp_path / "run.h5", moment)[0] in {-signal.SIGKILL, 0}
        kept = contents(tmp_path)
        assert all(kept[name] == content for name, content in finished.items() if name.endswith(".h5"))
        assert all(kept[name] == whole[name] for name in kept if name.endswith(".h5"))
    assert children.run(make, tmp_path / "run.h5") == (0, "True\n")
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_process_stopped_at_any_time_loses_nothing(tmp_path, children, whole, number):
    for delay in (0.01, 0.03, 0.05, 0.07):
        child = children.start(make, tmp_path / "run.h5")
        time.sleep(delay)
        assert child.kill(number) in {-number, 0, 1}
        kept = contents(tmp_path)
        assert all(kept[name] == whole[name] for name in kept if name.endswith(".h5"))
    assert children.run(make, tmp_path / "run.h5") == (0, "True\n")
    assert contents(tmp_path) == whole


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, schema, monkeypatch):
    """Its content first, and its name at last."""
    done = []

    def spy(name, plain):
        def call(*args, **options):
            what = os.readlink(f"/dev/fd/{args[0]}") if isinstance(args[0], int) else args[0]
            done.append((name, os.path.basename(what)))
            return plain(*args, **options)

        return call

    for name in ("fsync", "link", "ftruncate"):
        monkeypatch.setattr(os, name, spy(name, getattr(os, name)))
    with create_store(tmp_path / "run.h5", schema):
        pass
    partial = "run.h5.partial"
    assert done == [("ftruncate", partial), ("fsync", partial), ("link", partial), ("fsync", tmp_path.name)]
