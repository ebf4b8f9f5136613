import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from seamscope.activations import Schema, create_store
from seamscope.hooks import Ragged

from .children import Children
from .making import SITE, capture


@pytest.fixture(scope="session")
def schema() -> Schema:
    return Schema(
        model="tiny", task="cards", conditions=("direct", "cascaded"), provenance={"seed": 3, "sites": ["lm.*"]}
    )


def table() -> pd.DataFrame:
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


def activations() -> dict[tuple[str, str], Ragged]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5, 4, generator=generator).bfloat16()
    last = torch.randn(3, 2, 3, generator=generator)
    return {
        (SITE, "image"): Ragged(image, torch.tensor([2, 3, 0])),
        (SITE, "last"): Ragged(last, torch.tensor([1, 1, 1])),
    }


@pytest.fixture
def rows() -> pd.DataFrame:
    return table()


@pytest.fixture
def acts() -> dict[tuple[str, str], Ragged]:
    return activations()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, schema: Schema) -> Path:
    """A folder of stores that tests copy."""
    folder = tmp_path_factory.mktemp("made")
    with create_store(folder / "run.h5", schema) as writer:
        writer.append("direct", table(), activations())
    assert capture(folder / "joined.h5")
    return folder


@pytest.fixture
def path(tmp_path: Path, made: Path) -> Path:
    """A finished store of one file with one batch under `direct`."""
    return Path(shutil.copy(made / "run.h5", tmp_path))


@pytest.fixture
def joined(tmp_path: Path, made: Path) -> Path:
    """A finished store of three shards."""
    shutil.copytree(made / "joined.shards", tmp_path / "joined.shards")
    return Path(shutil.copy(made / "joined.h5", tmp_path))


@pytest.fixture(scope="session")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Processes that call a function of `making`."""
    started = Children(tmp_path_factory.mktemp("children"))
    yield started
    started.close()
