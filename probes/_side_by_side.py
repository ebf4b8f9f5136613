"""Cells that are fitted side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from tqdm import tqdm

P = TypeVar("P")
T = TypeVar("T")


def in_threads(fit: Callable[[P], T], plan: Sequence[P], workers: int, what: str, progress: bool) -> list[T]:
    """Fit the cells with one thread of torch each: on small cells more of them cost time, beside other work much."""
    with (
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        tqdm(pool.map(fit, plan), total=len(plan), desc=what, unit="cell", disable=not progress) as found,
    ):
        return list(found)
