from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from seamscope.activations import Schema, Store, create_store, open_store
from seamscope.hooks import Ragged

Acts = dict[tuple[str, str], Ragged]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """More threads only slow down such small problems, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[Callable[..., Store]]:
    """Write tables and activations by condition, and open the store."""
    opened = []

    def make(tables: dict[str, tuple[pd.DataFrame, Acts]]) -> Store:
        place = tmp_path / f"s{len(opened)}.h5"
        with create_store(place, Schema(model="tiny", task="test", conditions=tuple(tables))) as writer:
            for condition, (rows, acts) in tables.items():
                writer.append(condition, rows, acts)
        opened.append(open_store(place))
        return opened[-1]

    yield make
    for store in opened:
        store.close()
