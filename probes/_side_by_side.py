"""Independent pieces of work, done side by side in several processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache, partial
from threading import Lock, Thread
from time import perf_counter, sleep
from typing import Final, Generic, TypeVar

import torch
from joblib import effective_n_jobs
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend.reduction import dumps, loads
from joblib.externals.loky.process_executor import BrokenProcessPool, ShutdownExecutorError
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from seamscope.hooks import RunError

P = TypeVar("P")
T = TypeVar("T")

START: Final = 6.0  # seconds that other processes must save where they have to be started first; it takes about four
WORTH: Final = 1.0  # where they are there already
AT_ONCE: Final = 4  # pieces that a process is given together at most, with all that is needed to do them
TOGETHER: Final = 1.0  # seconds that they take at most; long ones go one by one, so that no process is left with two
IDLE: Final = 300  # seconds after which a process without work ends
ONE_THREAD: Final = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}


def side_by_side(
    do: Callable[[P], T],
    plan: Sequence[P],
    *,
    workers: int,
    what: str,
    unit: str = "cell",
    long: bool = False,
    progress: bool = False,
) -> list[T]:
    """Do every piece of a plan, in several processes, of which this is one, or here alone where that is soon done.

    Threads would wait for one another: on small cells two of them were 1.2 times as fast as one, two processes nearly
    twice. Whichever is free takes the next piece, this one from the start, while the others still import what they
    need. They end with this one, however that ends, and stay for the next plan; each takes about as much memory. Where
    one is killed, what is left is done here.

    Args:
        do: does a piece; it travels to the processes, with all that it holds.
        plan: the pieces.
        workers: how many processes, with one thread of torch each.
        what: the title of the progress bar.
        unit: of what it counts.
        long: pieces are known to take long; the other processes start at once, not after some have been timed.
        progress: show it.

    Returns:
        What was found, in the order of the plan.

    Raises:
        RunError: if `workers` is no number from 1 up.
    """
    if not isinstance(workers, int) or workers < 1:
        raise RunError(f"workers is {workers!r}; expected a whole number from 1 up")
    found: list[T] = []
    with (
        _one_thread(),  # here, too, so that results do not depend on where a piece is done
        tqdm(total=len(plan), desc=what, unit=unit, disable=not progress) as bar,
    ):
        workers = min(workers, effective_n_jobs(workers))  # one, where no process can be started
        start, each = perf_counter(), TOGETHER
        while not long and len(found) < len(plan):
            found.append(do(plan[len(found)]))
            bar.update()
            each = (perf_counter() - start) / len(found)
            left = each * (len(plan) - len(found))
            if left * (1 - 1 / workers) > (WORTH if _pool.cache_info().currsize else START):
                break
        return found + _shared(do, plan[len(found) :], workers - 1, each=each, tell=bar.update)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch and numpy use one thread in here: on small work more cost time, beside other work much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def _shared(
    do: Callable[[P], T], plan: Sequence[P], others: int, *, each: float, tell: Callable[[int], object]
) -> list[T]:
    """What this process and the `others` find together, where a piece takes `each` seconds."""
    pile: _Pile[P, T] = _Pile(plan, size=_together(each, len(plan), others + 1), tell=tell)
    here = partial(_do, do)
    if others and len(plan) > 1:
        pool, packed = _pool(others, os.getpid()), bytes(dumps(here))  # before work in this process changes it
        asking = Lock()

        def elsewhere(some: Sequence[P]) -> list[T] | None:
            try:
                with asking:
                    future = pool.submit(_do_elsewhere, packed, some)
                    while not (future.running() or future.done()):  # loky fails if it is ended before it takes it up
                        sleep(0.001)
                found: list[T] = future.result()
            except (BrokenProcessPool, ShutdownExecutorError):  # killed, or it cannot do it
                end()  # so that none still does what is done here
                return None
            return found

        def end() -> None:
            with asking:
                _pool.cache_clear()
                pool.shutdown(kill_workers=True)

        waiting = others * (2 if each < TOGETHER else 1)  # what is short is asked for ahead
        with ThreadPoolExecutor(waiting) as threads:
            try:
                working = [threads.submit(pile.work, elsewhere) for _ in range(waiting)]
                pile.work(here)
                for thread in wait(working, return_when=FIRST_EXCEPTION).done:
                    thread.result()
            except BaseException:
                end()
                raise
    pile.work(here)
    return pile.found


class _Pile(Generic[P, T]):
    """The pieces of a plan that several take from, `size` at once, and what they found."""

    def __init__(self, plan: Sequence[P], *, size: int, tell: Callable[[int], object]) -> None:
        self._plan, self._tell = plan, tell
        self._left = deque(range(len(plan))[first : first + size] for first in range(0, len(plan), size))
        self._found: dict[int, T] = {}
        self._lock = Lock()

    def work(self, find: Callable[[Sequence[P]], list[T] | None]) -> None:
        """Take pieces until none are left, or one fails, or what was taken cannot be done so: None."""
        try:
            while some := self._take():
                found = find([self._plan[k] for k in some])
                with self._lock:
                    if found is None:
                        return self._left.append(some)
                    self._found.update(zip(some, found, strict=True))
                    self._tell(len(some))
        except BaseException:
            self._left.clear()
            raise

    def _take(self) -> range:
        with self._lock:
            return self._left.popleft() if self._left else range(0)

    @property
    def found(self) -> list[T]:
        """What was found, in the order of the plan."""
        return [self._found[k] for k in range(len(self._plan))]


def _together(each: float, pieces: int, workers: int) -> int:
    """How many pieces of `each` seconds are taken at once."""
    most = AT_ONCE if each * AT_ONCE <= TOGETHER else int(TOGETHER / each)
    return max(1, min(most, pieces // (2 * workers)))


def _do(do: Callable[[P], T], some: Sequence[P]) -> list[T]:
    return [do(piece) for piece in some]


def _do_elsewhere(packed: bytes, some: Sequence[P]) -> list[T]:
    do: Callable[[Sequence[P]], list[T]] = loads(packed)
    return do(some)


@lru_cache(maxsize=1)
def _pool(others: int, parent: int) -> ProcessPoolExecutor:
    """The other processes; they stay for the next plan. joblib's own pool serves others, too."""
    return ProcessPoolExecutor(others, timeout=IDLE, initializer=_begin, initargs=(parent,), env=ONE_THREAD)


def _begin(parent: int) -> None:
    """Work with one thread, and end soon after the parent, which may be killed and tell nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
    torch.set_num_threads(1)
