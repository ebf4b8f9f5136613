"""Where the parts of a model are: one small table for each family, and everything else read off the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from seamscope.hooks._errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, kw_only=True)
class Visual:
    """How the images of one batch became tokens.

    `grid` is (height, width) of one image in patches of `patch` pixels, `tokens` its number of image
    tokens, `dropped` how many of the tower's first tokens the model leaves out, `prefix` how many tower
    tokens precede the patches (CLS).
    """

    grid: tuple[int, int]
    patch: int
    tokens: int
    dropped: int
    prefix: int

    def in_tower(self, ordinals: Tensor) -> Tensor:
        """Number image tokens, counted through the batch, among the tower's tokens, counted likewise."""
        image, token = ordinals // self.tokens, ordinals % self.tokens
        return image * (self.tokens + self.dropped) + token + self.dropped


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family's differences; paths start at the model, those called `layer_` at one decoder layer."""

    name: str
    model_types: tuple[str, ...]
    tower: str
    projector: str
    decoder: str
    norm: str = "norm"
    layer_attn: str = "self_attn"
    layer_attn_out: str = "self_attn"
    layer_o_proj: str = "self_attn.o_proj"
    layer_mid_norm: str = "post_attention_layernorm"
    layer_mlp_out: str = "mlp"
    visual: Callable[[Any, Mapping[str, Tensor], int], Visual] = field(repr=False)
    read_layers: Callable[[Any], tuple[int, ...]] = field(repr=False)


def _llava_visual(config: Any, inputs: Mapping[str, Tensor], n_tokens: int) -> Visual:
    """`n_tokens` is the number of placeholders of one image; the rest follows from the pixels' shape."""
    patch = config.vision_config.patch_size
    height, width = (side // patch for side in inputs["pixel_values"].shape[-2:])
    dropped = int(config.vision_feature_select_strategy == "default")
    prefix = n_tokens + dropped - height * width
    return Visual(grid=(height, width), patch=patch, tokens=n_tokens, dropped=dropped, prefix=prefix)


def _llava_read_layers(config: Any) -> tuple[int, ...]:
    """`vision_feature_layer` counts hidden states, of which number 0 is the input of layer 0."""
    chosen, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    chosen = [chosen] if isinstance(chosen, int) else chosen
    return tuple(number % (depth + 1) - 1 for number in chosen)


LLAVA = Family(
    name="llava",
    model_types=("llava",),
    tower="model.vision_tower",
    projector="model.multi_modal_projector",
    decoder="model.language_model",
    visual=_llava_visual,
    read_layers=_llava_read_layers,
)
FAMILIES = (LLAVA,)


def family_of(config: Any) -> Family:
    """Find the family of a model by its configuration; raise `ModelError` for a family not known here."""
    for family in FAMILIES:
        if config.model_type in family.model_types:
            return family
    known = ", ".join(kind for family in FAMILIES for kind in family.model_types)
    raise ModelError(f"models of type {config.model_type!r} are not supported; supported types: {known}")


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The modules of one model, found by its family's table."""

    family: Family
    tower: nn.Module
    tower_layers: tuple[nn.Module, ...]
    projector: nn.Module
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    norm: nn.Module
    head: nn.Module

    def part(self, layer: int, name: str) -> nn.Module:
        """Give the module of decoder layer `layer` that the family's `layer_<name>` points to."""
        path: str = getattr(self.family, f"layer_{name}")
        return _find(self.layers[layer], path)

    def head_width(self, n_heads: int) -> int:
        """How wide one attention head's output is."""
        projection: Any = self.part(0, "o_proj")
        return int(projection.in_features) // n_heads


def anatomy_of(model: nn.Module, family: Family) -> Anatomy:
    """Find the parts of `model`; raise `ModelError` where the family's table does not fit it."""
    tower, decoder = _find(model, family.tower), _find(model, family.decoder)
    return Anatomy(
        family=family,
        tower=tower,
        tower_layers=_stack(tower),
        projector=_find(model, family.projector),
        decoder=decoder,
        layers=_stack(decoder),
        norm=_find(decoder, family.norm),
        head=model.get_output_embeddings(),  # type: ignore[operator]
    )


def _find(root: nn.Module, path: str) -> nn.Module:
    try:
        found = attrgetter(path)(root)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Module):
        raise ModelError(f"{type(root).__name__} has no module {path!r}, where its family keeps it")
    return found


def _stack(root: nn.Module) -> tuple[nn.Module, ...]:
    """Give the layers of a transformer: the first list of modules in it, whatever it is called."""
    for module in root.modules():
        if isinstance(module, nn.ModuleList):
            return tuple(module)
    raise ModelError(f"{type(root).__name__} has no list of layers")
