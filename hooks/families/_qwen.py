"""Qwen-VL: pictures of any size, patches in blocks of two by two, positions in three dimensions.

The tower has no dimension for the batch: the patches of all pictures stand in one row, block after block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from transformers.vision_utils import get_vision_window_index

from seamscope.hooks._layout import Layout, grid
from seamscope.hooks.families._family import Family
from seamscope.hooks.families._rules import colours

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Inputs = Mapping[str, Tensor]


def _block_layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    """Patches come block by block; each block becomes one token."""
    vision = model.config.vision_config
    patch, block = vision.patch_size, vision.spatial_merge_size
    rows, columns = (int(side) for side in inputs["image_grid_thw"][0, 1:])
    patches = grid(0, rows=rows, columns=columns, cell=patch).reshape(rows // block, block, columns // block, block, 5)
    blocks = patches.transpose(0, 2, 1, 3, 4).reshape(-1, block * block, 5)
    tokens = grid(0, rows=rows // block, columns=columns // block, cell=patch * block)
    return Layout(vision=blocks.reshape(-1, 5), projector=tokens, lm=tokens)


def _window_layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    """Qwen2.5 orders the blocks by window before the first layer, and puts them back behind the projector."""
    layout, tower = _block_layout(model, processor, inputs, n), model.model.visual
    sizes = {name: getattr(tower, name) for name in ("spatial_merge_size", "window_size", "patch_size")}
    order = np.asarray(get_vision_window_index(inputs["image_grid_thw"][:1], **sizes)[0])
    blocks = layout.vision.reshape(len(order), -1, 5)
    return Layout(vision=blocks[order].reshape(-1, 5), projector=layout.projector[order], lm=layout.lm)


def _views(model: Any, processor: Any, inputs: Inputs, n: int) -> list[np.ndarray[Any, Any]]:
    """Put the flattened patches of the first picture back together."""
    vision = model.config.vision_config
    patch, block, frames = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    rows, columns = (int(side) for side in inputs["image_grid_thw"][0, 1:])
    pictures = rearrange(
        inputs["pixel_values"][: rows * columns],
        "(rows columns down across) (rgb frames high wide) -> frames rgb (rows down high) (columns across wide)",
        **{"rows": rows // block, "down": block, "across": block, "frames": frames, "rgb": 3, "high": patch},
    )
    return [colours(pictures[0], processor)]


def _extra(model: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Time, row and column of every token; given outright, they leave no state on the model (`rope_deltas`)."""
    positions: Tensor = model.model.get_rope_index(
        inputs["input_ids"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
        image_grid_thw=inputs.get("image_grid_thw"),
        attention_mask=inputs["attention_mask"],
    )[0]
    return {"position_ids": positions}


QWEN2_VL = Family(
    name="Qwen2-VL",
    model_types=("qwen2_vl",),
    published=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
    projector="model.visual.merger",
    layout=_block_layout,
    views=_views,
    extra=_extra,
)
QWEN2_5_VL = replace(
    QWEN2_VL,
    name="Qwen2.5-VL",
    model_types=("qwen2_5_vl",),
    published=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    layout=_window_layout,
)
QWEN3_VL = replace(
    QWEN2_VL,
    name="Qwen3-VL",
    model_types=("qwen3_vl",),
    published=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    deepstack="model.visual.deepstack_merger_list",
)
