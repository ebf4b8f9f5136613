"""What is to happen at the places of a model, in a fixed order: what completes a value, what edits it, what reads it.

All that seamscope does at one place of a model goes through one tap, so the order does not depend on which
context manager was entered first: a capture always sees the patched value. Taps only say what is to happen; an
engine makes it happen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from seamscope.hooks._batch import Batch
    from seamscope.hooks._engine import Engine

    # A function of `_moves` with its data bound: it gives the tensor that takes the passing one's place, or None.
    Move = Callable[[Tensor], Tensor | None]
    # Binds the data of one batch; None where the model is run without one.
    Maker = Callable[[Batch | None], list[Move]]


class Phase(IntEnum):
    """When something happens to a value, within one tap.

    The first three in the pass over the prompt, in this order; STEP in every later pass of `generate`.
    """

    COMPLETE = 0
    EDIT = 1
    READ = 2
    STEP = 3


@dataclass(frozen=True)
class Place:
    """Where a value passes: the output (element `item` of a tuple) of a module, or its input `argument`."""

    module: nn.Module = field(compare=False)
    side: str = "out"
    item: int = 0
    argument: str = "hidden_states"
    key: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", id(self.module))


class Moves(NamedTuple):
    """What happens at one place: in the pass over the prompt, and in each later one."""

    prompt: list[Move]
    later: list[Move]


class Taps:
    """The taps of one model, and what they do with the batch that is running."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._attached: dict[Place, list[tuple[Phase, Maker]]] = {}
        self._bound: dict[Place, Moves] = {}
        self.reading = True

    @contextmanager
    def attach(self, place: Place, phase: Phase, make: Maker) -> Iterator[None]:
        """Let the moves that `make` gives for a batch act on the value at `place`."""
        entry = (phase, make)
        if place not in self._attached:
            self._engine.open(place, self)
        self._attached.setdefault(place, []).append(entry)
        self._attached[place].sort(key=lambda each: each[0])
        try:
            yield
        finally:
            self._attached[place].remove(entry)
            if not self._attached[place]:
                del self._attached[place]
                self._engine.close(place)

    @contextmanager
    def bound(self, batch: Batch) -> Iterator[None]:
        """Bind all moves to a batch; whatever is wrong with it is raised here, before the model runs."""
        self._bound = {place: self._bind(place, batch) for place in self._attached}
        try:
            yield
        finally:
            self._bound = {}

    def moves(self, place: Place) -> Moves:
        """Give what is to happen at a place; without a running batch, what can be said without one."""
        return self._bound[place] if place in self._bound else self._bind(place, None)

    def now(self, place: Place) -> list[Move]:
        """Give what is to happen at a place in the pass that is running."""
        moves = self.moves(place)
        return moves.prompt if self.reading else moves.later

    def _bind(self, place: Place, batch: Batch | None) -> Moves:
        made = [(phase, move) for phase, make in self._attached[place] for move in make(batch)]
        prompt = [move for phase, move in made if phase is not Phase.STEP]
        return Moves(prompt, [move for phase, move in made if phase is Phase.STEP])

    @property
    def places(self) -> tuple[Place, ...]:
        """Where something is to happen."""
        return tuple(self._attached)

    def __contains__(self, module: nn.Module) -> bool:
        """Whether something is to happen at a module."""
        return any(place.module is module for place in self._attached)


def through(value: Tensor, moves: list[Move]) -> Tensor:
    """Let moves act on a tensor one after the other."""
    for move in moves:
        new = move(value)
        value = value if new is None else new
    return value
