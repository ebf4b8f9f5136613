"""Work beside the model: copies to the host, and calls in another thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from seamscope.hooks import Ragged

Key = tuple[str, str]


class Background:
    """Makes calls one after another in one thread; at most `waiting` of them wait, so that memory stays flat.

    What goes wrong in a call is raised by the next `submit`, or at the end of the `with` block; no call after it is
    made. If the block itself raises, calls that wait are dropped.
    """

    def __init__(self, waiting: int = 4) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="seamscope-writer")
        self._waiting = waiting
        self._pending: deque[Future[Any]] = deque()
        self._failed = False

    def submit(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Have a call made; waits while too many wait already."""
        while self._pending and (len(self._pending) >= self._waiting or self._pending[0].done()):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._make, call, args, kwargs))

    def _make(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._failed:
            return
        try:
            call(*args, **kwargs)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._pending:
                self._pending.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def to_host(acts: Mapping[Key, Ragged]) -> Callable[[], dict[Key, Ragged]]:
    """Begin to copy activations to the host; the call that it gives waits for the copies, and gives them.

    From a CUDA device they go to pinned memory, on a stream of their own: the model's work is not waited for.
    """
    events: dict[torch.device, torch.cuda.Event] = {}
    copies = {key: Ragged(_copy(each.values), each.lengths) for key, each in acts.items()}
    for device in {each.values.device for each in acts.values() if each.values.is_cuda}:
        events[device] = _stream(device).record_event()

    def wait() -> dict[Key, Ragged]:
        for event in events.values():
            event.synchronize()
        return copies

    return wait


def _copy(values: torch.Tensor) -> torch.Tensor:
    if not values.is_cuda:
        return values.cpu()
    stream = _stream(values.device)
    stream.wait_stream(torch.cuda.current_stream(values.device))
    with torch.cuda.stream(stream):
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
    values.record_stream(stream)  # its memory is not given to others before the copy is made
    return host


_STREAMS: dict[torch.device, Any] = {}


def _stream(device: torch.device) -> Any:
    """The stream on which copies from a device are made."""
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _STREAMS[device]
