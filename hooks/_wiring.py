"""What the hooks of one model share: its taps, and the batch that is running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from seamscope.hooks._errors import SpanError
from seamscope.hooks._taps import Taps

if TYPE_CHECKING:
    from seamscope.hooks._batch import Batch
    from seamscope.hooks._engine import Engine
    from seamscope.hooks._steps import Fed

Listener = Callable[["Batch"], object]


class Portion(NamedTuple):
    """The tokens that a single layer is given of a prompt, a batch of one row; the same ones in every row."""

    batch: Batch
    positions: slice | Tensor


class Wiring:
    """Tells hooks which batch is running, and which pass of it.

    `current` is that batch, None where the model is called without one; `generating` tells whether it is continued, and
    `fed`, once it has been, which generated tokens the model read again. `portion` is set while a layer is run by
    itself, as replays do.
    """

    def __init__(self, engine: Engine) -> None:
        self.taps = Taps(engine)
        self._listeners: list[tuple[Listener, Callable[[], None] | None]] = []
        self.current: Batch | None = None
        self._passes = 0
        self.generating = False
        self.fed: Fed | None = None
        self.portion: Portion | None = None

    @contextmanager
    def listening(self, begin: Listener, end: Callable[[], None] | None = None) -> Iterator[None]:
        """Call `begin` with each batch before the model sees it, so that it can refuse it and prepare; `end` after."""
        entry = (begin, end)
        self._listeners.append(entry)
        try:
            yield
        finally:
            self._listeners.remove(entry)

    @contextmanager
    def running(self, batch: Batch, *, generating: bool = False) -> Iterator[None]:
        """Make `batch` the one that is running."""
        self.current, self._passes, self.generating, self.fed = batch, 0, generating, None
        try:
            for begin, _ in self._listeners:
                begin(batch)
            with self.taps.bound(batch):
                yield
            for _, end in self._listeners:
                if end is not None:
                    end()
        finally:
            self.current, self.generating, self.taps.reading = None, False, True

    @contextmanager
    def giving(self, batch: Batch, positions: slice | Tensor) -> Iterator[None]:
        """While a layer is given some tokens of a prompt, not a pass over a batch."""
        before, self.portion = self.portion, Portion(batch, positions)
        try:
            yield
        finally:
            self.portion = before

    def count_pass(self, *_: Any) -> None:
        """Note that the model starts another pass over the running batch; `generate` hooks this in."""
        self._passes += 1
        self.taps.reading = self._passes <= 1

    @property
    def reading(self) -> bool:
        """Whether the pass is one over the prompt: always, but for those of `generate` after the first."""
        return self.taps.reading

    @property
    def batch(self) -> Batch:
        """The running batch; `SpanError` if the model was called without one."""
        return require_batch(self.current)


def require_batch(batch: Batch | None) -> Batch:
    """Raise `SpanError` if the model was called without a batch."""
    if batch is None:
        raise SpanError("spans need a batch: run it with vlm.forward, vlm.score or vlm.generate")
    return batch
