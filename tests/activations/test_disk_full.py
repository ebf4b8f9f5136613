"""A disk that is full, and a limit to the size of files: one clear line, nothing half done, and the rest can follow."""

import os
import subprocess

import pytest

from seamscope.activations import open_store

from .making import capture, contents, join, make, make_within, one_file


@pytest.fixture
def disk(tmp_path):
    """A file system of 1 MB, and how to let it have more."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place, lambda: subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    subprocess.run(["umount", place], check=True)


def fill(place, left):
    """Leave so many bytes of a file system free."""
    with (place / "filling").open("wb") as file:
        free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
        file.write(b"x" * (free - left))


LAST_LINE = "cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("left", "options"),
    [(0, {}), (2**13, {}), (2**19, {}), (2**19, {"compression": "bitshuffle"}), (2**19, {"texts": 2**12})],
)
def test_a_store_that_the_disk_cannot_hold(disk, children, left, options):
    """Whatever is too large for it: what the file begins with, its activations, compressed ones, its table."""
    place, enlarge = disk
    fill(place, left)
    code, said = children.run(one_file, place / "run.h5", ends=True, **options)
    assert (code, said) == (2, f"StoreError: {place}/run.h5.partial {LAST_LINE}")  # and not a word of HDF5 at its end
    assert [each.name for each in place.iterdir()] == ["filling"]
    enlarge()
    assert children.run(one_file, place / "run.h5", **options) == (0, "")
    assert open_store(place / "run.h5").verify() == 9


def test_finished_shards_are_kept_and_the_rest_follows_when_there_is_room(disk, children, tmp_path):
    place, enlarge = disk
    wide = {"width": 2**14}
    capture(tmp_path / "whole" / "run.h5", **wide)
    whole = contents(tmp_path / "whole")
    code, said = children.run(make, place / "run.h5", ends=True, **wide)
    assert code == 2
    assert said.startswith(f"StoreError: {place}/run.shards/.0000")
    assert said.endswith(LAST_LINE)
    assert said.count("\n") == 1
    assert contents(place) == {name: whole[name] for name in ["run.shards/00000.h5"]}
    enlarge()
    assert children.run(make, place / "run.h5", **wide) == (0, "True\n")
    assert contents(place) == whole


@pytest.mark.parametrize("size", [2**10, 2**15])
def test_files_may_not_be_large_enough(children, tmp_path, size):
    capture(tmp_path / "whole" / "run.h5")
    whole = contents(tmp_path / "whole")
    assert children.run(make_within, tmp_path / "run.h5", 2**20) == (0, "True\n")  # the control
    code, said = children.run(make_within, tmp_path / "small" / "run.h5", size, ends=True)
    assert code == 2
    assert said.endswith("cannot be written: File too large\n")
    assert said.count("\n") == 1
    assert contents(tmp_path / "small").items() <= whole.items()
    assert children.run(make, tmp_path / "small" / "run.h5") == (0, "True\n")
    assert contents(tmp_path / "small") == whole


def test_a_joined_file_that_the_disk_cannot_hold(disk, children, tmp_path):
    place, enlarge = disk
    one_file(tmp_path / "a.h5", texts=2**12)
    fill(place, 2**14)
    code, said = children.run(join, place / "run.h5", [str(tmp_path / "a.h5")], ends=True)
    assert (code, said) == (2, f"StoreError: {place}/run.h5.partial {LAST_LINE}")
    assert [each.name for each in place.iterdir()] == ["filling"]
    enlarge()
    assert children.run(join, place / "run.h5", [str(tmp_path / "a.h5")]) == (0, "")
    assert open_store(place / "run.h5").verify() > 0
