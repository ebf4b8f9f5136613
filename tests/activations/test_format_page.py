"""The page about the format is complete: its own code reads a store with h5py alone."""

import re
import shutil
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from seamscope.activations import FORMAT_VERSION, join_stores, open_store

PAGE = Path(__file__).parents[2] / "docs" / "store_format.md"


@cache
def code():
    (found,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    return found


@cache
def page():
    """The functions of the page."""
    scope = {}
    exec(compile(code().partition("\nwith ")[0], "store_format.md", "exec"), scope)
    return scope


def run(path, span="last"):
    scope = {"path": path}
    exec(compile(code().replace("/last", f"/{span}"), "store_format.md", "exec"), scope)
    return scope


def test_the_page_is_of_this_version():
    assert f"version {FORMAT_VERSION}" in PAGE.read_text(encoding="utf-8").splitlines()[0]
    assert f"format_version = {FORMAT_VERSION}" in PAGE.read_text(encoding="utf-8")
    assert "seamscope" not in code()


@pytest.mark.parametrize("kind", ["single", "joined"])
def test_the_page_reads_a_store_with_h5py_alone(path, rows, acts, kind):
    if kind == "joined":
        join_stores(path.with_name("joined.h5"), [path])
        path = path.with_name("joined.h5")
    scope = run(path)
    assert scope["schema"]["provenance"]["seed"] == 3
    assert scope["table"]["id"] == ["a", "b", "♥"]
    assert scope["table"]["var:card.0.rank"] == ["K", None, "Ace"]
    assert scope["table"]["var:sum"] == [3, 4, 5]
    assert set(scope["table"]) == set(rows)
    expected = acts["lm.0.resid_post", "last"].split()[1].float().numpy()
    np.testing.assert_array_equal(scope["second"], expected)


def test_it_reads_what_open_store_reads(joined):
    """Variable and fixed token counts, bfloat16, rows and shards that lack a span, and text that is missing."""
    scope = run(joined, span="image")
    with open_store(joined) as store, h5py.File(joined) as file:
        for condition in store.conditions:
            group = file["conditions"][condition]
            table = store.rows(condition)
            assert table["label"].isna().any()
            for name in table:
                assert scope["column"](group["rows"][name]) == [None if cell is None else cell for cell in table[name]]
            for site, span in store.cells(condition):
                for row, expected in enumerate(store.read(site, span, condition).split()):
                    found = scope["tokens"](group["acts"][site][span], row)
                    wide = expected.float() if expected.dtype.is_floating_point else expected
                    np.testing.assert_array_equal(found, wide.numpy())


def test_it_does_not_take_zeros_for_a_missing_shard(joined):
    """HDF5 does; so this is what the page's own check is for."""
    lost = joined.with_suffix(".shards") / "00001.h5"
    lost.unlink()
    with h5py.File(joined) as file:
        values = file["conditions/direct/acts/lm.1.mlp_out/last/values"][3:6]
        assert not values.any()  # the control: what a careless reader gets
    with pytest.raises(FileNotFoundError, match="00001"):
        run(joined)
    shutil.copy(lost.with_name("00000.h5"), lost)
    with pytest.raises(ValueError, match="is not the file that was joined"):
        run(joined)
