"""The page about the format is complete: its own code reads a store with h5py alone."""

import re
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[2] / "docs" / "store_format.md"


def test_the_page_reads_a_store_with_h5py_alone(path, rows, acts):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "seamscope" not in code
    scope = {"path": path}
    exec(compile(code, "store_format.md", "exec"), scope)
    assert scope["schema"]["provenance"]["seed"] == 3
    assert scope["table"]["id"] == ["a", "b", "♥"]
    assert scope["table"]["var:card.0.rank"] == ["K", None, "Ace"]
    assert scope["table"]["var:sum"] == [3, 4, 5]
    assert set(scope["table"]) == set(rows)
    expected = acts["lm.0.resid_post", "image"].split()[1].float().numpy()
    np.testing.assert_array_equal(scope["tokens"], expected)
