import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from seamscope.activations import Schema, Store, create_store, open_store
from seamscope.hooks import Ragged
from seamscope.probes import _side_by_side

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


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Work is shared however short it is, and this process waits with its part until another has begun."""
    for name in ("START", "WORTH"):
        monkeypatch.setattr(_side_by_side, name, -1.0)
    here, do, began = os.getpid(), _side_by_side._do, tmp_path / "began"

    def wait(fit, some):
        if os.getpid() != here:
            began.touch()
        while not began.exists():
            time.sleep(0.01)
        return do(fit, some)

    monkeypatch.setattr(_side_by_side, "_do", wait)
    return began
