"""Damage of any kind is found, and never shows as another library's exception, as a crash, or as other data."""

import os
import shutil
from dataclasses import replace

import pytest

from seamscope.activations import open_store
from seamscope.hooks import StoreError

from .making import SCHEMA, bits, capture, contents, damage, harm

CELL = ("lm.0.resid_post", "image", "direct")


@pytest.fixture
def shards(joined):
    return sorted(joined.with_suffix(".shards").glob("*.h5"))


@pytest.mark.parametrize(
    ("compression", "name", "count"),
    [
        (None, "run.h5", 40),
        (None, "run.shards/00000.h5", 40),
        ("bitshuffle", "run.shards/00001.h5", 40),
    ],
)
def test_any_damage_gives_our_error_or_the_same_data(tmp_path, children, compression, name, count):
    """In a process of its own, since HDF5 may end it: it did so where the sources of virtual datasets were damaged."""
    capture(tmp_path / "run.h5", compression=compression)
    before = contents(tmp_path)
    code, said = children.run(harm, tmp_path / "run.h5", tmp_path / name, 0, count)
    assert code == 0, said
    assert int(said) > count / 2
    assert contents(tmp_path) == before


def test_every_flipped_byte_of_a_joined_file_is_found(joined):
    """It is sealed, unlike its shards, which have room between datasets that nobody looks at."""
    size = joined.stat().st_size
    for offset in [0, 100, 511, 512, *range(1000, size, size // 40), size - 1]:
        damage(joined, offset)
        with pytest.raises(StoreError), open_store(joined) as store:
            store.verify()
        damage(joined, offset)
    with open_store(joined) as store:
        store.verify()


def test_a_flipped_bit_of_a_shard_is_found_by_name(joined, shards):
    content = shards[1].read_bytes()
    with open_store(joined) as store:
        expected = store.read(*CELL, [3]).values
    damage(shards[1], content.index(bits(expected).numpy().tobytes()))
    told = r"1 datasets differ .*: 00001.h5:/conditions/direct/acts/lm.0.resid_post/image/values$"
    with open_store(joined) as store, pytest.raises(StoreError, match=told):
        store.verify()


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_truncated_shard(joined, shards, keep):
    content = shards[1].read_bytes()
    cut = content[: int(keep * len(content)) if isinstance(keep, float) else keep]
    shards[1].write_bytes(cut)
    told = rf"00001.h5 is damaged: it has {len(cut)} bytes, and had {len(content)} when it was joined"
    with pytest.raises(StoreError, match=told):
        open_store(joined)
    with pytest.raises(StoreError, match=r"00001.h5 cannot be read, it is damaged or foreign: "):
        open_store(shards[1])


def test_a_missing_shard(joined, shards):
    """At the start, and when it is lost while the store is open: HDF5 would give zeros."""
    with open_store(joined) as store:
        assert store.read(*CELL, [0]).values.any()
        shards[1].unlink()
        assert store.read(*CELL, [6]).values.any()  # others are still there
        for do in (lambda: store.read(*CELL), lambda: store.read(*CELL, [4]), store.verify):
            with pytest.raises(
                StoreError, match=r"00001.h5 is missing, which holds 3 rows of direct and 3 rows of casc"
            ):
                do()
    with pytest.raises(StoreError, match=r"00001.h5 is missing"):
        open_store(joined)
    shards[1].mkdir()
    with pytest.raises(StoreError, match=r"00001.h5 is missing"):
        open_store(joined)


def test_shards_that_were_swapped(joined, shards):
    """Both are valid, and of the same capture; their rows would be others."""
    os.rename(shards[0], shards[0].with_name("x"))
    os.rename(shards[1], shards[0])
    os.rename(shards[0].with_name("x"), shards[1])
    with open_store(joined) as store:
        for do in (lambda: store.read(*CELL), lambda: store.read(*CELL, [0]), store.verify):
            with pytest.raises(StoreError, match=r"00000.h5 is not the file that was joined: its checksum is another"):
                do()


def test_the_same_shard_of_another_capture(tmp_path, joined, shards):
    """It has the same size, rows and names: only its checksum tells."""
    other = replace(SCHEMA, provenance={"n": 7, "seed": 1})
    capture(tmp_path / "other.h5", schema=other)
    shutil.copy(tmp_path / "other.shards" / "00001.h5", shards[1])
    with open_store(joined) as store:
        assert store.read(*CELL, [0]).values.any()
        for do in (lambda: store.read(*CELL), lambda: store.read(*CELL, [4]), store.verify):
            with pytest.raises(StoreError, match=r"00001.h5 is not the file that was joined: its checksum is another"):
                do()


def test_a_shard_made_later_by_the_same_capture_is_as_good(tmp_path, joined, shards):
    content = shards[1].read_bytes()
    shards[1].unlink()
    capture(tmp_path / "again.h5")
    shutil.copy(tmp_path / "again.shards" / "00001.h5", shards[1])
    assert shards[1].read_bytes() == content
    with open_store(joined) as store:
        store.verify()
