"""Pixtral's tower, in Mistral 3 and in LLaVA's frame: pictures of any size, all patches of a batch in one sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seamscope.hooks._layout import Layout, grid
from seamscope.hooks.families._family import Family
from seamscope.hooks.families._rules import colours, side_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor

    Inputs = Mapping[str, Tensor]


def _layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    patch, block = side_of(model.config.vision_config.patch_size), getattr(model.config, "spatial_merge_size", 1)
    rows, columns = (int(side) // patch for side in inputs["image_sizes"][0])
    tokens = grid(0, rows=rows // block, columns=columns // block, cell=patch * block)
    return Layout(vision=grid(0, rows=rows, columns=columns, cell=patch), projector=tokens, lm=tokens)


def _views(model: Any, processor: Any, inputs: Inputs, n: int) -> list[np.ndarray[Any, Any]]:
    height, width = (int(side) for side in inputs["image_sizes"][0])
    return [colours(inputs["pixel_values"][0, :, :height, :width], processor)]


MISTRAL3 = Family(
    name="Mistral 3",
    model_types=("mistral3",),
    published=("mistralai/Mistral-Small-3.1-24B-Instruct-2503",),
    layout=_layout,
    views=_views,
)
PIXTRAL = Family(
    name="Pixtral",
    model_types=("llava",),
    tower_type="pixtral",
    published=("mistral-community/pixtral-12b",),
    layout=_layout,
    views=_views,
)
