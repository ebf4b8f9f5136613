"""The shipped organisms, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
import torch

from seamscope.hooks import Vlm, load_vlm


@pytest.fixture(scope="session")
def organism() -> Vlm:
    return load_vlm("organism", check=False)


@pytest.fixture(scope="session")
def composing() -> Vlm:
    return load_vlm("organism-composing", check=False)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    plt.close("all")
