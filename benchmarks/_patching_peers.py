"""How others patch a cell: one forward pass of the whole model for each, in the words of their own interfaces.

A way is made once for a `Case`, which is not timed, and then called with a layer and a position; it gives the logits of
the answer's tokens. Where an interface can leave logits out, those of other positions are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch

from seamscope.hooks import Batch, Vlm, capture

Way = Callable[[int, int], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What is patched: one prompt with its answer, and the other run's residual stream after each layer, (pos, d)."""

    vlm: Vlm
    batch: Batch
    values: list[torch.Tensor]

    @cached_property
    def reading(self) -> torch.Tensor:
        """The positions from which the answer's tokens are read."""
        return (self.batch.positions("answer")[0] - 1).to(self.vlm.device)

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What the model is called with."""
        return {**self.batch.inputs, **self.batch.extra, "use_cache": False}

    @cached_property
    def embedded(self) -> dict[str, Any]:
        """The same, but for the embeddings of the text and of the picture in the place of both."""
        with capture(self.vlm, "lm.0.resid_pre") as acts:
            self.vlm.forward(self.batch, logits_to_keep=1)
        inputs = {name: each for name, each in self.inputs.items() if name not in ("input_ids", "pixel_values")}
        return {"inputs_embeds": acts["lm.0.resid_pre"].to(self.vlm.device), **inputs}

    @cached_property
    def paths(self) -> list[str]:
        """The decoder layers, by their names in the model."""
        names = {id(module): name for name, module in self.vlm.model.named_modules()}
        return [names[id(layer.block)] for layer in self.vlm.anatomy.layers]

    def logprob(self, logits: torch.Tensor) -> float:
        """The log-probability of the whole answer, of its tokens' logits."""
        targets = self.batch.inputs["input_ids"][0, self.reading + 1]
        return float(logits.float().log_softmax(-1).gather(-1, targets[:, None]).sum())

    def twin(self) -> Any:
        """A model of its own with the same parameters, for what changes the modules that it is given."""
        model = self.vlm.model
        return copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})


def full_pass(case: Case) -> Way:
    """A plain torch hook."""
    model = case.vlm.model

    def run(layer: int, position: int) -> torch.Tensor:
        def write(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output = output.clone()
            output[0, position] = case.values[layer][position]
            return output

        hook = model.get_submodule(case.paths[layer]).register_forward_hook(write)
        try:
            with torch.inference_mode():
                return model(**case.inputs, logits_to_keep=case.reading).logits[0]
        finally:
            hook.remove()

    return run


def transformer_lens(case: Case) -> Way:
    """`run_with_hooks`, as `generic_activation_patch` calls it for every cell, with the picture as well."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.patching import layer_pos_patch_setter

    model = TransformerBridge.boot_transformers(
        case.vlm.name,
        hf_model=case.twin(),
        tokenizer=case.vlm.processor.tokenizer,
        device=str(case.vlm.device),
        dtype=case.vlm.dtype,
    ).eval()
    options = {name: value for name, value in case.inputs.items() if name not in ("input_ids", "use_cache")}

    def run(layer: int, position: int) -> torch.Tensor:
        def write(value: torch.Tensor, hook: Any) -> torch.Tensor:
            patched: torch.Tensor = layer_pos_patch_setter(value, (layer, position), case.values[layer][None])
            return patched

        with torch.inference_mode():
            hooks = [(f"blocks.{layer}.hook_out", write)]
            logits = model.run_with_hooks(case.inputs["input_ids"], fwd_hooks=hooks, **options)
        return logits[0, case.reading]

    return run


def nnsight(case: Case) -> Way:
    """A trace."""
    from nnsight import NNsight

    root = NNsight(case.twin())
    layers = [root.get(path) for path in case.paths]

    def run(layer: int, position: int) -> torch.Tensor:
        values, block = case.values[layer], layers[layer]
        with torch.inference_mode(), root.trace(**case.inputs, logits_to_keep=case.reading):
            output = block.output.clone()
            output[0, position] = values[position]
            block.output = output
            logits = root.output.logits.save()
        return logits[0]

    return run


def pyvene(case: Case) -> Way:
    """An `IntervenableModel` for every layer, which takes all hooks off its model, and so is given embeddings."""
    from pyvene import IntervenableModel, VanillaIntervention

    model = case.twin()
    made: dict[int, Any] = {}

    def run(layer: int, position: int) -> torch.Tensor:
        if layer not in made:
            part, _, number = case.paths[layer].rpartition(".")
            where = {"component": f"{part}[{number}].output", "unit": "pos", "max_number_of_units": 1}
            made[layer] = IntervenableModel(
                {**where, "intervention": VanillaIntervention(embed_dim=case.vlm.d_model)}, model=model
            )
        values = {made[layer].sorted_keys[0]: case.values[layer][None, position : position + 1]}
        with torch.inference_mode():
            out = made[layer](
                base={**case.embedded, "logits_to_keep": case.reading},
                unit_locations={"base": position},
                source_representations=values,
            )[1]
        return out.logits[0]

    return run


PEERS: dict[str, tuple[str, Callable[[Case], Way]]] = {
    "transformer_lens": ("transformer-lens", transformer_lens),
    "nnsight": ("nnsight", nnsight),
    "pyvene": ("pyvene", pyvene),
}


def prepare(name: str, case: Case) -> Way | str:
    """A peer's way once it has run a cell; or, in one line, why it cannot."""
    package, make = PEERS[name]
    if find_spec(name) is None:
        return f"not installed: pip install {package}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            way = make(case)
            way(0, 0)
    except Exception as error:  # whatever a peer raises is its reason
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return way
