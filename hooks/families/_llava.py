"""LLaVA and its successors that cut a picture into tiles: LLaVA-NeXT and LLaVA-OneVision.

Their pictures have two views: an overview, the whole picture stretched to one tile, and a canvas made of all other
tiles. The model drops the canvas' outer rows or columns of patches (those without picture), ends every row with a
token of its own, and, in OneVision, shrinks what is too much.
"""

from __future__ import annotations

from math import floor, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from transformers.image_processing_utils import select_best_resolution

from seamscope.hooks._layout import NOWHERE, Layout, chain, grid, with_row_ends
from seamscope.hooks.families._family import Family
from seamscope.hooks.families._rules import class_tokens, colours, plain_views, side_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from seamscope.hooks._layout import Places

    Inputs = Mapping[str, Tensor]
    Edges = np.ndarray[Any, Any]  # (cells, 2): where each cell starts and stops along one axis, in canvas pixels

MAX_EXCESS = 1.1  # OneVision shrinks a canvas that has more than this times the most cells, by side


def _tiled_layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    config = model.config
    patch, tile = side_of(config.vision_config.patch_size), inputs["pixel_values"].shape[-1]
    side, prefix = tile // patch, [NOWHERE] * class_tokens(model)
    overview = grid(0, rows=side, columns=side, cell=patch)
    if inputs["pixel_values"].shape[1] == 1:  # OneVision, several pictures in a prompt: one square tile each
        return Layout(vision=chain([*prefix, overview]), projector=overview, lm=chain([overview, NOWHERE]))
    high, wide = _canvas(config, inputs)
    tiles = [
        overview + np.array([1, left * tile, top * tile, left * tile, top * tile])
        for top in range(high // tile)
        for left in range(wide // tile)
    ]
    return Layout(
        vision=chain([part for each in (overview, *tiles) for part in (*prefix, each)]),
        projector=chain([overview, *tiles]),
        lm=chain([overview, _canvas_tokens(config, inputs, tile, patch)]),
    )


def _canvas(config: Any, inputs: Inputs) -> tuple[int, int]:
    """Give the canvas' (height, width) in pixels."""
    size = inputs["image_sizes"][0].tolist()
    found: tuple[int, int] = select_best_resolution(size, config.image_grid_pinpoints)
    return found


def _canvas_tokens(config: Any, inputs: Inputs, tile: int, patch: int) -> Places:
    """Places of the tokens that the canvas gives, each row with its end."""
    height, width = inputs["image_sizes"][0].tolist()
    rows, columns = (_edges(pixels // tile, tile, patch) for pixels in _canvas(config, inputs))
    if width / height > len(columns) / len(rows):
        rows = _unpadded(rows, int(round(height * (len(columns) / width), 7)))
    else:
        columns = _unpadded(columns, int(round(width * (len(rows) / height), 7)))
    rows, columns = _shrunk(config, rows, columns, tile // patch)
    top, left = (each.ravel() for each in np.mgrid[: len(rows), : len(columns)])
    edges = (np.ones(len(top)), columns[left, 0], rows[top, 0], columns[left, 1], rows[top, 1])
    return with_row_ends(np.stack(edges, axis=1), rows=len(rows))


def _edges(tiles: int, tile: int, patch: int) -> Edges:
    """Cells along one axis of the canvas; what is left of a tile after its last whole patch belongs to none."""
    starts = np.add.outer(np.arange(tiles) * tile, np.arange(tile // patch) * patch).ravel()
    return np.stack([starts, starts + patch], axis=1).astype(float)


def _unpadded(cells: Edges, kept: int) -> Edges:
    dropped = (len(cells) - kept) // 2
    return cells[dropped : len(cells) - dropped]


def _shrunk(config: Any, rows: Edges, columns: Edges, side: int) -> tuple[Edges, Edges]:
    _, _, most = getattr(config, "vision_aspect_ratio", "").rpartition("anyres_max_")
    if not most.isdigit():
        return rows, columns
    excess = sqrt(len(rows) * len(columns) / (int(most) * side**2))
    if excess <= MAX_EXCESS:
        return rows, columns
    return _mixed(rows, int(len(rows) // excess)), _mixed(columns, int(len(columns) // excess))


def _mixed(cells: Edges, n: int) -> Edges:
    """Bilinear resizing to `n` cells: each shows all of the one or two cells that it is mixed from."""
    at = np.maximum((np.arange(n) + 0.5) * len(cells) / n - 0.5, 0)
    first = np.array([floor(each + 1e-9) for each in at], dtype=int)
    last = np.minimum(first + (at - first > 1e-6), len(cells) - 1)
    return np.stack([cells[first, 0], cells[last, 1]], axis=1)


def _tiled_views(model: Any, processor: Any, inputs: Inputs, n: int) -> list[np.ndarray[Any, Any]]:
    pixels = inputs["pixel_values"]
    if pixels.shape[1] == 1:
        return plain_views(model, processor, {"pixel_values": pixels[:, 0]}, n)
    tile, (high, wide) = pixels.shape[-1], _canvas(model.config, inputs)
    rows, columns = high // tile, wide // tile
    tiles = pixels[0, 1 : 1 + rows * columns]
    canvas = rearrange(tiles, "(rows columns) colours y x -> colours (rows y) (columns x)", rows=rows)
    return [colours(view, processor) for view in (pixels[0, 0], canvas)]


LLAVA = Family(
    name="LLaVA 1.5",
    model_types=("llava", "vipllava"),
    published=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf"),
)
LLAVA_NEXT = Family(
    name="LLaVA-NeXT",
    model_types=("llava_next",),
    published=("llava-hf/llava-v1.6-mistral-7b-hf",),
    layout=_tiled_layout,
    views=_tiled_views,
)
LLAVA_ONEVISION = Family(
    name="LLaVA-OneVision",
    model_types=("llava_onevision",),
    published=("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
    layout=_tiled_layout,
    views=_tiled_views,
)
