"""Gemma 4 without an encoder: pixels of a patch go through one linear map straight into the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from seamscope.hooks._layout import NOWHERE, Layout, chain, grid
from seamscope.hooks.families._family import Family
from seamscope.hooks.families._rules import colours

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Inputs = Mapping[str, Tensor]


def _grid(inputs: Inputs) -> tuple[int, int, int]:
    """Give the first picture's rows and columns of patches, and a patch's side in pixels."""
    columns, rows = (int(most) + 1 for most in inputs["image_position_ids"][0].amax(dim=0))
    return rows, columns, round((inputs["pixel_values"].shape[-1] // 3) ** 0.5)


def _layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    """Pictures are padded to the same number of patches, which only the decoder leaves out."""
    rows, columns, patch = _grid(inputs)
    tokens = grid(0, rows=rows, columns=columns, cell=patch)
    padding = inputs["pixel_values"].shape[1] - len(tokens)
    return Layout(vision=tokens[:0], projector=chain([tokens, *[NOWHERE] * padding]), lm=tokens)


def _views(model: Any, processor: Any, inputs: Inputs, n: int) -> list[np.ndarray[Any, Any]]:
    rows, columns, patch = _grid(inputs)
    pixels = inputs["pixel_values"][0, : rows * columns]
    form = "(rows columns) (high wide colours) -> colours (rows high) (columns wide)"
    return [colours(rearrange(pixels, form, rows=rows, high=patch, wide=patch), processor)]


GEMMA4_UNIFIED = Family(
    name="Gemma 4 (encoder-free)",
    model_types=("gemma4_unified",),
    published=("google/gemma-4-12b-it",),
    tower="",
    projector="model.embed_vision.multimodal_embedder",
    layout=_layout,
    views=_views,
    lacks=("sites of a vision tower, which it does not have",),
)
