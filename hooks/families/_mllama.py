"""Llama 3.2 Vision: the image stays outside the sequence, and some decoder layers attend to it there.

No image token enters the decoder, so `image.object.k` exists in the tower and behind the projector only. A layer of
cross-attention has `cross_attn_out` for `attn_out`; it and the layer's `mlp_out` are what the modules give, which the
layer multiplies by a gate of its own before adding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seamscope.hooks._layout import NOWHERE, Layout, chain, grid
from seamscope.hooks.families._family import Family
from seamscope.hooks.families._rules import colours, plain_extra, repeat, side_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from seamscope.hooks._layout import Places

    Inputs = Mapping[str, Tensor]

MULTIPLE = 8  # the tower pads the tokens of a tile to a multiple of this


def _layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    """All tiles that a picture may have are there, the ones it does not use as well."""
    most, tile = inputs["pixel_values"].shape[2], inputs["pixel_values"].shape[-1]
    patch = side_of(model.config.vision_config.patch_size)
    cells = chain([NOWHERE, grid(0, rows=tile // patch, columns=tile // patch, cell=patch)])
    used = _n_tiles(inputs)
    padding = -len(cells) % MULTIPLE
    return Layout(
        vision=_tiles(chain([cells, *[NOWHERE] * padding]), used, most),
        projector=_tiles(cells, used, most),
        lm=NOWHERE,
    )


def _tiles(cells: Places, used: int, most: int) -> Places:
    return chain([repeat(cells, used), *[np.full_like(cells, np.nan)] * (most - used)])


def _n_tiles(inputs: Inputs) -> int:
    return int(inputs["aspect_ratio_mask"][0, 0].sum())


def _views(model: Any, processor: Any, inputs: Inputs, n: int) -> list[np.ndarray[Any, Any]]:
    return [colours(tile, processor) for tile in inputs["pixel_values"][0, 0, : _n_tiles(inputs)]]


def _extra(model: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Without pictures the model would skip its layers of cross-attention, and their sites would be missing.

    With states of zeros that no token may see, these layers run, and add exactly nothing.
    """
    added = plain_extra(model, inputs)
    if "pixel_values" in inputs:
        return added
    rows, width = inputs["input_ids"].shape
    n_tokens, size = model.model.vision_model.num_patches, model.config.get_text_config().hidden_size
    nothing = torch.zeros(rows, n_tokens, size, dtype=model.get_input_embeddings().weight.dtype)
    blind = torch.zeros(rows, width, 1, 1, dtype=torch.long)
    return added | {"cross_attention_states": nothing, "cross_attention_mask": blind}


MLLAMA = Family(
    name="Llama 3.2 Vision",
    model_types=("mllama",),
    published=("meta-llama/Llama-3.2-11B-Vision-Instruct",),
    tower_layers=("model.vision_model.transformer.layers", "model.vision_model.global_transformer.layers"),
    embed="model.language_model.embed_tokens",
    mixed_rows=False,
    layout=_layout,
    views=_views,
    extra=_extra,
    lacks=(
        "prompts with different numbers of pictures in one batch: the model lets them see blank pictures",
        "`image.object.k` in the decoder, where no image token is",
    ),
)
