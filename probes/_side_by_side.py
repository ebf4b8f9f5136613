"""Cells that are fitted side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Final, TypeVar

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

P = TypeVar("P")
T = TypeVar("T")

WORTH: Final = 1.0  # seconds that other processes must save; starting them takes about four, once
AT_ONCE: Final = 4  # cells that a process is given together at most, with all that is needed to fit them


def side_by_side(fit: Callable[[P], T], plan: Sequence[P], workers: int, what: str, progress: bool) -> list[T]:
    """Fit the cells in several processes, one thread of torch each, or in this one where that is soon done.

    Threads would wait for one another: two of them were 1.2 times as fast as one, two processes nearly twice.
    """
    with (
        ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as here,
        tqdm(total=len(plan), desc=what, unit="cell", disable=not progress) as bar,
    ):
        found: list[T] = []
        start = perf_counter()
        for each in plan:
            found.append(here.submit(fit, each).result())
            bar.update()
            left = (perf_counter() - start) / len(found) * (len(plan) - len(found))
            if left * (1 - 1 / workers) > WORTH:
                break
        for some in _elsewhere(fit, plan[len(found) :], workers):
            found += some
            bar.update(len(some))
    return found


def _elsewhere(fit: Callable[[P], T], plan: Sequence[P], workers: int) -> Iterator[list[T]]:
    if plan:
        size = max(1, min(AT_ONCE, len(plan) // (2 * workers)))
        several = (plan[start : start + size] for start in range(0, len(plan), size))
        yield from Parallel(n_jobs=workers, return_as="generator", max_nbytes=None)(
            delayed(_each)(fit, some) for some in several
        )


def _each(fit: Callable[[P], T], some: Sequence[P]) -> list[T]:
    torch.set_num_threads(1)
    return [fit(each) for each in some]
