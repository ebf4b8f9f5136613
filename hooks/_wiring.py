"""What the hooks of one model share: its taps, and the batch whose prompt is being read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from seamscope.hooks._errors import SpanError
from seamscope.hooks._taps import Taps

if TYPE_CHECKING:
    from seamscope.hooks._batch import Batch

Listener = Callable[["Batch"], None]


class Wiring:
    """Tells hooks which batch is running, and whether the pass is the one that reads the prompt."""

    def __init__(self) -> None:
        self.taps = Taps()
        self._listeners: list[Listener] = []
        self._batch: Batch | None = None
        self._passes = 0

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Call `listener` with each batch before the model sees it, so that it can refuse it and prepare."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextmanager
    def running(self, batch: Batch) -> Iterator[None]:
        """Make `batch` the one that is running."""
        for listener in self._listeners:
            listener(batch)
        self._batch, self._passes = batch, 0
        try:
            yield
        finally:
            self._batch = None

    def count_pass(self, *_: object) -> None:
        """Note that the model starts another pass over the running batch; `generate` hooks this in."""
        self._passes += 1

    @property
    def reading(self) -> bool:
        """Whether hooks act now: always, but for the passes of `generate` after the prompt's."""
        return self._batch is None or self._passes <= 1

    @property
    def batch(self) -> Batch:
        """The running batch; `SpanError` if the model was called without one."""
        if self._batch is None:
            raise SpanError("spans need a batch: run it with vlm.forward, vlm.score or vlm.generate")
        return self._batch
