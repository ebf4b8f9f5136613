"""Where the parts of a model are: read off its modules by the names in use, or by its family's own paths."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from accelerate.utils import align_module_device
from torch import Tensor, nn

from seamscope.hooks._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seamscope.hooks.families import Family

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")
PROJECTORS = ("multi_modal_projector", "connector", "mm_projector", "projector")
DECODERS = ("language_model", "text_model", "decoder")
NORMS = ("norm", "final_layernorm", "ln_f")
# In a decoder layer: what is nearer to the front wins. A layer with norms on both sides of its parts adds what the
# later norms give, and its pre-MLP norm has a name of its own.
PARTS = {
    "attn": ("self_attn", "cross_attn", "attn", "attention", "self_attention"),
    "o_proj": ("o_proj", "dense", "out_proj", "wo", "proj"),
    "mlp": ("mlp", "feed_forward", "ffn"),
    "mid_in": ("pre_feedforward_layernorm", "post_attention_layernorm"),
}
SANDWICHED = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
GATES = {"attn_out": "cross_attn_attn_gate", "mlp_out": "cross_attn_mlp_gate"}  # read through tanh
SCALE = "layer_scalar"  # what the whole stream is multiplied by at the end of a layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """The modules of one decoder layer.

    `attn_out` and `mlp_out` are those whose outputs are added to the residual stream, times their gate where a layer
    has one; `mid_in` is the one that reads the stream between the two. `crossed` tells a layer that attends to the
    image from outside the sequence.
    """

    block: nn.Module
    attn: nn.Module
    o_proj: nn.Module
    attn_out: nn.Module
    mid_in: nn.Module
    mlp_out: nn.Module
    crossed: bool

    def head_width(self, n_heads: int) -> int:
        """How wide one attention head's output is."""
        projection: Any = self.o_proj
        return int(projection.in_features) // n_heads

    def added(self, part: str, output: Tensor) -> Tensor:
        """What a layer adds to the stream, given what its `attn_out` or `mlp_out` module gives."""
        gate = self._own(GATES[part])
        return output if gate is None else gate.tanh() * output

    def close(self, mid: Tensor, mlp_out: Tensor) -> Tensor:
        """The layer's output, from the stream between its parts and what its MLP gives."""
        closed = mid + self.added("mlp_out", mlp_out)
        return closed if self.scale is None else closed * self.scale

    @property
    def scale(self) -> Tensor | None:
        """What the layer multiplies its output by, where it does."""
        return self._own(SCALE)

    @property
    def plain(self) -> bool:
        """Whether a layer's output is nothing but that sum."""
        return self.scale is None and self._own(GATES["mlp_out"]) is None

    def _own(self, name: str) -> Tensor | None:
        """A parameter or buffer of the layer itself, fetched where a device map keeps it elsewhere."""
        if not hasattr(self.block, name):
            return None
        with align_module_device(self.block):
            return getattr(self.block, name).detach().clone()  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """The modules of one model.

    `tower` is None for a model without one, `embed` where the decoder is given its input, and `deepstack` may be empty.
    """

    tower: nn.Module | None
    tower_layers: tuple[nn.Module, ...]
    projector: nn.Module
    deepstack: tuple[nn.Module, ...]
    decoder: nn.Module
    embed: nn.Module | None
    layers: tuple[Layer, ...]
    norm: nn.Module
    head: nn.Module

    @property
    def tower_width(self) -> int:
        """How wide the tower's residual stream is, by the first norm of its first layer."""
        named = self.tower_layers[0].named_parameters()
        return next(weights.numel() for name, weights in named if "norm" in name or "ln" in name)


def anatomy_of(model: Any, family: Family) -> Anatomy:
    """Find the parts of `model`; raise `ModelError`, naming it, for a part that is not found."""
    roots = (model, getattr(model, "model", model))
    decoder = _at(model, family.decoder) or _among(roots, DECODERS, "decoder")
    tower = None if family.tower == "" else _at(model, family.tower) or _among(roots, TOWERS, "vision tower")
    stacks = [_at(model, path) for path in family.tower_layers or ()] or [tower]
    deepstack = _at(model, family.deepstack)
    return Anatomy(
        tower=tower,
        tower_layers=tuple(layer for stack in stacks if stack is not None for layer in _stack(stack)),
        projector=_at(model, family.projector) or _among(roots, PROJECTORS, "projector"),
        deepstack=() if deepstack is None else _stack(deepstack),
        decoder=decoder,
        embed=_at(model, family.embed),
        layers=tuple(_layer(block, family) for block in _stack(decoder)),
        norm=_among((decoder,), NORMS, "final norm"),
        head=model.get_output_embeddings(),
    )


def _layer(block: nn.Module, family: Family) -> Layer:
    found = {name: _at(block, path) for name, path in family.parts.items()}
    attn = found.get("attn") or _among((block,), PARTS["attn"], "attention")
    sandwiched = all(hasattr(block, name) for name in SANDWICHED.values())
    added = {name: _at(block, path) for name, path in SANDWICHED.items()} if sandwiched else {}
    mlp = found.get("mlp_out") or added.get("mlp_out") or _among((block,), PARTS["mlp"], "MLP")
    return Layer(
        block=block,
        attn=attn,
        o_proj=found.get("o_proj") or _among((attn,), PARTS["o_proj"], "output projection"),
        attn_out=found.get("attn_out") or added.get("attn_out") or attn,
        mid_in=found.get("mid_in") or _among((block,), PARTS["mid_in"], "norm before the MLP"),
        mlp_out=mlp,
        crossed=hasattr(block, "cross_attn") and not hasattr(block, "self_attn"),
    )


def _at(root: nn.Module, path: str | None) -> nn.Module | None:
    """Give the module at a family's path, None without one; `ModelError` if it is not there."""
    if not path:
        return None
    try:
        found = attrgetter(path)(root)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module):
        raise ModelError(f"{type(root).__name__} has no module {path!r}, where its family keeps it")
    return found


def _among(roots: Sequence[nn.Module], names: Sequence[str], what: str) -> nn.Module:
    for root in roots:
        for name in names:
            found = getattr(root, name, None)
            if isinstance(found, nn.Module):
                return found
    raise ModelError(f"{type(roots[0]).__name__} has no {what} under any of the names {', '.join(names)}")


def _stack(root: nn.Module) -> tuple[nn.Module, ...]:
    """Give the layers of a transformer: the first list of modules in it, whatever it is called."""
    for module in root.modules():
        if isinstance(module, nn.ModuleList):
            return tuple(module)
    raise ModelError(f"{type(root).__name__} has no list of layers")
