from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from seamscope.activations import Schema, create_store
from seamscope.hooks import Ragged

from .children import Children
from .making import SITE, capture


@pytest.fixture
def schema() -> Schema:
    return Schema(
        model="tiny", task="cards", conditions=("direct", "cascaded"), provenance={"seed": 3, "sites": ["lm.*"]}
    )


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": ["a", "b", "♥"],
            "group": ["g0", "g0", "g1"],
            "var:card.0.rank": ["K", None, "Ace"],
            "var:count": [1, 2, None],
            "var:sum": [3, 4, 5],
            "correct": [True, False, True],
            "score": [0.5, float("-inf"), float("nan")],
        }
    )


@pytest.fixture
def acts() -> dict[tuple[str, str], Ragged]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, 4, generator=generator).bfloat16()
    last = torch.randn(3, 2, 3, generator=generator)
    return {
        (SITE, "image"): Ragged(image, torch.tensor([2, 3, 0])),
        (SITE, "last"): Ragged(last, torch.tensor([1, 1, 1])),
    }


@pytest.fixture
def path(tmp_path: Path, schema: Schema, rows: pd.DataFrame, acts: dict[tuple[str, str], Ragged]) -> Path:
    """A finished store of one file with one batch under `direct`."""
    place = tmp_path / "run.h5"
    with create_store(place, schema) as writer:
        writer.append("direct", rows, acts)
    return place


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """A finished store of three shards."""
    assert capture(tmp_path / "joined.h5")
    return tmp_path / "joined.h5"


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Processes that call a function of `making`."""
    made = Children(tmp_path_factory.mktemp("children"))
    yield made
    made.close()
