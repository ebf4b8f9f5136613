"""Hooks on modules, in a fixed order: what completes a value, what edits it, what reads it.

All that seamscope does at one place of a model goes through one tap, so the order does not depend on which
context manager was entered first: a capture always sees the patched value. A tap stands before the hooks that
transformers installs lazily to record hidden states (LLaVA's projector reads from those), so they see it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Edit = Callable[[Tensor], Tensor]
Read = Callable[[Tensor], None]


class Phase(IntEnum):
    """When something happens to a value, within one tap."""

    COMPLETE = 0
    EDIT = 1
    READ = 2


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


class Taps:
    """The taps of one model. A tap's hook exists only while something is attached to it."""

    def __init__(self) -> None:
        self._attached: dict[Place, list[tuple[Phase, Callable[[Tensor], Tensor | None]]]] = {}
        self._handles: dict[Place, RemovableHandle] = {}

    @contextmanager
    def attach(self, place: Place, phase: Phase, action: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Let `action` see the value at `place`, and replace it where the action gives a tensor."""
        entry = (phase, action)
        self._attached.setdefault(place, []).append(entry)
        self._attached[place].sort(key=lambda each: each[0])
        if place not in self._handles:
            self._handles[place] = self._install(place)
        try:
            yield
        finally:
            self._attached[place].remove(entry)
            if not self._attached[place]:
                self._handles.pop(place).remove()
                del self._attached[place]

    def _install(self, place: Place) -> RemovableHandle:
        if place.side == "out":
            hook = self._output_hook(place)
            return place.module.register_forward_hook(hook, prepend=True)
        return place.module.register_forward_pre_hook(self._input_hook(place), with_kwargs=True)

    def _pass(self, place: Place, value: Tensor) -> Tensor:
        for _, action in self._attached[place]:
            new = action(value)
            value = value if new is None else new
        return value

    def _output_hook(self, place: Place) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not isinstance(output, tuple):  # a decoder layer gives a tensor: output[0] would be a batch row
                return self._pass(place, output)
            value = self._pass(place, output[place.item])
            return (*output[: place.item], value, *output[place.item + 1 :])

        return hook

    def _input_hook(self, place: Place) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if place.argument in kwargs:
                return args, {**kwargs, place.argument: self._pass(place, kwargs[place.argument])}
            return (self._pass(place, args[0]), *args[1:]), kwargs

        return hook
