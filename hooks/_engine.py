"""Engines: what makes the moves of taps happen while a model runs. The one here uses plain torch hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from seamscope.hooks._errors import ModelError
from seamscope.hooks._taps import Place, Taps, through

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

ENGINES: Final = ("torch", "nnsight")
# What cannot be done with a model that is on another machine, and why.
NEEDS_MODULES: Final = {
    "knockout": "changes the configuration of attention modules",
    "patch of lm.L.pattern": "changes the configuration of an attention module",
    "patch of lm.L.resid_mid in this family": "needs the number by which a layer multiplies its output",
    "unembed": "needs the weights of the head",
    "attribution": "takes gradients inside the model",
    "replay": "runs the decoder's layers one by one",
}


class Engine(Protocol):
    """Runs a model and lets the moves of taps act on what passes."""

    @property
    def remote(self) -> bool:
        """Whether the model is on another machine, so that nothing but moves can reach it."""

    def open(self, place: Place, taps: Taps) -> None:
        """Prepare for moves at a place."""

    def close(self, place: Place) -> None:
        """Undo `open`."""

    def run(self, method: str, inputs: Mapping[str, Any], taps: Taps, pick: str | None = None) -> Any:
        """Call a method of the model; give its result, or the element `pick` of it."""


class TorchEngine:
    """A hook for each tap, which exists only while something is attached to it.

    A hook stands before the hooks that transformers installs lazily to record hidden states (LLaVA's projector
    reads from those), so they see the edited value too. Calls of the model itself are seen like those of `run`.
    """

    remote = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._handles: dict[Place, RemovableHandle] = {}

    def open(self, place: Place, taps: Taps) -> None:
        """Put a hook on the module."""
        if place.side == "out":
            self._handles[place] = place.module.register_forward_hook(_output_hook(place, taps), prepend=True)
        else:
            self._handles[place] = place.module.register_forward_pre_hook(_input_hook(place, taps), with_kwargs=True)

    def close(self, place: Place) -> None:
        """Remove the hook."""
        self._handles.pop(place).remove()

    def run(self, method: str, inputs: Mapping[str, Any], taps: Taps, pick: str | None = None) -> Any:
        """Call a method of the model."""
        result = getattr(self._model, method)(**inputs)
        return result[pick] if pick else result


def _output_hook(place: Place, taps: Taps) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        moves = taps.now(place)
        if not isinstance(output, tuple):  # a decoder layer gives a tensor: output[0] would be a batch row
            return through(output, moves)
        return (*output[: place.item], through(output[place.item], moves), *output[place.item + 1 :])

    return hook


def _input_hook(place: Place, taps: Taps) -> Callable[[nn.Module, Any, Any], Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        moves = taps.now(place)
        if place.argument in kwargs:
            return args, {**kwargs, place.argument: through(kwargs[place.argument], moves)}
        return (through(args[0], moves), *args[1:]), kwargs

    return hook


def require_here(engine: Engine, what: str) -> None:
    """Raise `ModelError` for one of `NEEDS_MODULES` where the modules are on another machine."""
    if engine.remote:
        raise ModelError(f"no {what} with remote=True: it {NEEDS_MODULES[what]}")
