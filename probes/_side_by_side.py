"""Independent pieces of work, done side by side in several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from threading import Thread
from time import perf_counter, sleep
from typing import Final, TypeVar

import torch
from joblib import Parallel, delayed
from joblib.externals.loky import reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool
from tqdm import tqdm

from seamscope.hooks import RunError

P = TypeVar("P")
T = TypeVar("T")

START: Final = 6.0  # seconds that other processes must save where they have to be started first; it takes about four
WORTH: Final = 1.0  # where they are there already
AT_ONCE: Final = 4  # pieces that a process is given together at most, with all that is needed to do them
TOGETHER: Final = 1.0  # seconds that they take at most; long ones go one by one, so that no process is left with two


def side_by_side(
    do: Callable[[P], T],
    plan: Sequence[P],
    *,
    workers: int,
    what: str,
    unit: str = "cell",
    single: bool = True,
    progress: bool = False,
) -> list[T]:
    """Do every piece of a plan, in its order, in several processes, or in this one where that is soon done.

    Threads would wait for one another: on small cells two of them were 1.2 times as fast as one, two processes nearly
    twice. Processes end with this one, however that ends, and stay for the next plan; each takes about as much memory
    as this one. Where one is killed, what is left is done here.

    Args:
        do: does a piece; it travels to the processes, with all that it holds.
        plan: the pieces.
        workers: how many processes, with one thread of torch each.
        what: the title of the progress bar.
        unit: of what it counts.
        single: use one thread of torch here, too, so that results do not depend on where a piece is done.
        progress: show it.

    Raises:
        RunError: if `workers` is no number from 1 up.
    """
    if not isinstance(workers, int) or workers < 1:
        raise RunError(f"workers is {workers!r}; expected a whole number from 1 up")
    found: list[T] = []
    with (
        one_thread() if single else nullcontext(),
        tqdm(total=len(plan), desc=what, unit=unit, disable=not progress) as bar,
    ):
        start, each = perf_counter(), 0.0
        while len(found) < len(plan):
            found.append(do(plan[len(found)]))
            bar.update()
            each = (perf_counter() - start) / len(found)
            left = each * (len(plan) - len(found))
            if left * (1 - 1 / workers) > (WORTH if _are_running() else START):
                break
        most = AT_ONCE if each * AT_ONCE <= TOGETHER else int(TOGETHER / each)
        try:
            for some in _elsewhere(do, plan[len(found) :], workers, most=most):
                found += some
                bar.update(len(some))
        except BrokenProcessPool:  # a process was killed, or cannot do it: here it works, or says why not
            for piece in plan[len(found) :]:
                found.append(do(piece))
                bar.update()
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in here: on small work more of them cost time, beside other work much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _are_running() -> bool:
    return getattr(reusable_executor, "_executor", None) is not None


def _elsewhere(do: Callable[[P], T], plan: Sequence[P], workers: int, *, most: int) -> Iterator[list[T]]:
    if plan:
        size = max(1, min(most, len(plan) // (2 * workers)))
        several = (plan[start : start + size] for start in range(0, len(plan), size))
        yield from Parallel(n_jobs=workers, return_as="generator", max_nbytes=None)(
            delayed(_do)(do, some, os.getpid()) for some in several
        )


def _do(do: Callable[[P], T], some: Sequence[P], parent: int) -> list[T]:
    if os.getpid() != parent:  # where joblib cannot start processes, it works in this one
        _end_with(parent)
    torch.set_num_threads(1)
    return [do(piece) for piece in some]


@lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed and tell nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
