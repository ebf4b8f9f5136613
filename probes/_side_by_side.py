"""Cells that are fitted side by side."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from tqdm import tqdm

from seamscope.probes._plan import Planned
from seamscope.probes._prober import Record


def in_threads(
    fit: Callable[[Planned], list[Record]], plan: list[Planned], workers: int, what: str, progress: bool
) -> list[Record]:
    """Fit the cells with one thread of torch each: on small cells more of them cost time, beside other work much."""
    with (
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
        tqdm(pool.map(fit, plan), total=len(plan), desc=what, unit="cell", disable=not progress) as found,
    ):
        return [record for records in found for record in records]
