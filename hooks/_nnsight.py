"""The engine that runs a model through nnsight: here, or on a machine of the NDIF.

Every tap becomes a block of its own in one trace (an invoke without input). So no order has to be kept between taps,
and one that the model never reaches does no harm. A remote trace is sent as the source of this module and of `_moves`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from nnsight.intervention.interleaver import OutOfOrderError
from nnsight.modeling.transformers import TransformersModel

from seamscope.hooks._errors import ModelError, RunError

if TYPE_CHECKING:
    from seamscope.hooks._taps import Place, Taps

SENT = ("_moves", "_nnsight", "_errors")  # modules of ours whose source goes with a remote trace


class NnsightEngine:
    """Runs a model in a trace of nnsight's; `remote` as `load_vlm` has it."""

    def __init__(self, root: Any, remote: bool | str = False) -> None:
        self._root, self._how = root, {"remote": remote} if remote else {}
        self._paths = {id(module): name for name, module in self.model.named_modules()}
        for name in SENT if remote else ():
            nnsight.register(f"seamscope.hooks.{name}")

    @property
    def model(self) -> Any:
        """The model, or its skeleton where it is elsewhere."""
        return self._root._module

    @property
    def remote(self) -> bool:
        """Whether the model is elsewhere."""
        return bool(self._how)

    def open(self, place: Place, taps: Taps) -> None:
        """Nothing is installed before the model runs."""

    def close(self, place: Place) -> None:
        """Nothing is left behind."""

    def run(self, method: str, inputs: Mapping[str, Any], taps: Taps, pick: str | None = None) -> Any:
        """Trace one call of the model."""
        if not self.remote:
            return self._trace(method, inputs, taps, pick)
        try:  # what comes back are ordinary tensors, as captured ones are
            with torch.inference_mode(False), torch.no_grad():
                return self._trace(method, inputs, taps, pick)
        except Exception as error:
            raise RunError(f"the model was not run remotely: {' '.join(str(error).split())}") from error

    def _trace(self, method: str, inputs: Mapping[str, Any], taps: Taps, pick: str | None) -> Any:
        """A remote trace sends the names in these blocks; a block's text must have neither gaps nor broken lines."""
        root, call, fn = self._root, {**inputs}, None
        if method == "generate":
            call, fn = {**inputs, "streamer": None}, root.generate
        plan = [(self._paths[each.key], each.side, each.item, each.argument, *taps.moves(each)) for each in taps.places]
        sinks = list({id(sink): sink for step in plan for sink in _sinks(*step[-2:])}.values())
        with root.trace(fn=fn, **self._how) as tracer:
            kept = nnsight.save(list(sinks))
            with tracer.invoke(**call):
                result = nnsight.save(tracer.result[pick] if pick else tracer.result)
            for step in plan:
                with tracer.invoke():
                    serve(root, tracer.iter, *step)
        for mine, theirs in zip(sinks, kept, strict=True):
            if theirs is not mine:
                mine.update(theirs)
        return result


def serve(
    root: Any, passes: Any, path: str, side: str, item: int, argument: str, prompt: list[Any], later: list[Any]
) -> None:
    """Let moves act on what passes at one place: in the first pass, and in those after it if there are any for them."""
    envoy = root.get(path)
    for number in passes[: None if later else 1]:
        try:
            whole = envoy.output if side == "out" else envoy.inputs
        except OutOfOrderError:  # the model does not come here, or not again
            return
        if side == "out":
            given = whole[item] if isinstance(whole, tuple) else whole
        else:
            given = whole[1][argument] if argument in whole[1] else whole[0][0]
        value = given
        for move in later if number else prompt:
            new = move(value)
            value = value if new is None else new
        if value is given:
            continue
        if side == "out":
            envoy.output = (*whole[:item], value, *whole[item + 1 :]) if isinstance(whole, tuple) else value
        elif argument in whole[1]:
            envoy.inputs = (whole[0], {**whole[1], argument: value})
        else:
            envoy.inputs = ((value, *whole[0][1:]), whole[1])


def _sinks(*moves: list[Any]) -> list[dict[Any, Any]]:
    """The dictionaries that moves read into."""
    return [move.keywords["into"] for each in moves for move in each if "into" in move.keywords]


def here(model: Any) -> NnsightEngine:
    """Trace a loaded model; nnsight's pipeline would move it to another device and change its tokenizer."""
    return NnsightEngine(nnsight.NNsight(model))


def elsewhere(source: str, remote: bool | str, **settings: Any) -> NnsightEngine:
    """Trace a model that the NDIF holds; here there is only its skeleton, without weights."""
    root = TransformersModel(source, task="image-text-to-text", **settings)
    if remote != "local":
        try:
            root.to_model_key()  # asks the hub for the name as the NDIF spells it
        except Exception as error:
            raise ModelError(f"{source!r} cannot be run remotely, its name is not known: {error}") from error
    return NnsightEngine(root, remote)
