"""What most families do alike: pictures as grids of patches, tiles one after another, positions counted by the mask."""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seamscope.hooks._errors import ModelError, SpanError
from seamscope.hooks._layout import NOWHERE, Layout, chain, grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from seamscope.hooks._frame import Framed
    from seamscope.hooks._layout import Places

    Inputs = Mapping[str, Tensor]
    Views = list[np.ndarray[Any, Any]]

CLASS_TOKENS = ("class_embedding", "cls_token")


def plain_extra(model: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Number the tokens of each row from 0, whichever side is padded."""
    return {"position_ids": (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)}


def plain_render(processor: Any, text: str, n_images: int) -> str:
    """Write one turn of the user's with the checkpoint's chat template, and the beginning of the answer's."""
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"the checkpoint's {type(processor).__name__} has no chat template")
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": text}]
    turn = [{"role": "user", "content": content}]
    rendered: str = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return rendered


def plain_process(
    processor: Any, framed: Sequence[Framed], images: Sequence[Sequence[Any]], padding: str
) -> dict[str, Tensor]:
    """Let the processor do it all; it puts the first token before texts unless the template did."""
    bos = processor.tokenizer.bos_token
    made = processor(
        text=[each.text for each in framed],
        images=[list(row) for row in images] if any(images) else None,
        padding=True,
        padding_side=padding,
        add_special_tokens=bos is None or not framed[0].text.startswith(bos),
        return_tensors="pt",
    )
    return {key: value for key, value in made.items() if isinstance(value, torch.Tensor)}


def plain_layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    """Every tile is a grid of patches; equally many image tokens, or one for each square block of patches."""
    tiles = tiles_of(inputs["pixel_values"])
    patch = side_of(model.config.vision_config.patch_size)
    rows, columns = (side // patch for side in tiles.shape[-2:])
    count, prefix = len(tiles) // n, class_tokens(model)
    tokens = image_token_count(model, inputs) // (n * count)
    cells = tile_cells(tokens, rows, columns, patch, prefix)
    return Layout(
        vision=repeat(chain([*[NOWHERE] * prefix, grid(0, rows=rows, columns=columns, cell=patch)]), count),
        projector=repeat(cells, count),
        lm=repeat(cells, count),
    )


def plain_views(model: Any, processor: Any, inputs: Inputs, n: int) -> Views:
    """Tiles as they are, those of the first of `n` equal pictures."""
    tiles = tiles_of(inputs["pixel_values"])
    return [colours(tile, processor) for tile in tiles[: len(tiles) // n]]


def tile_cells(tokens: int, rows: int, columns: int, patch: float, prefix: int = 0) -> Places:
    """Places of one tile's image tokens: its patches, with or without class tokens, or blocks of them."""
    if tokens == rows * columns + prefix:
        return chain([*[NOWHERE] * prefix, grid(0, rows=rows, columns=columns, cell=patch)])
    block = isqrt(rows * columns // max(tokens, 1))
    if block == 0 or (rows // block) * (columns // block) != tokens:
        raise SpanError(f"cannot tell which part of a picture of {rows}x{columns} patches its {tokens} tokens show")
    return grid(0, rows=rows // block, columns=columns // block, cell=patch * block)


def repeat(places: Places, count: int) -> Places:
    """The same for `count` views, numbered from 0."""
    copies = [places + np.array([view, 0, 0, 0, 0]) for view in range(count)]
    return chain(copies)


def tiles_of(pixel_values: Tensor) -> Tensor:
    """Pixels as (tiles, 3, height, width), whatever dimensions come before."""
    return pixel_values.reshape(-1, *pixel_values.shape[-3:])


def colours(view: Tensor, processor: Any) -> np.ndarray[Any, Any]:
    """Undo the processor's normalisation of a view (3, height, width): colours from 0 to 255."""
    settings = processor.image_processor
    pixels = view.double().cpu().numpy()
    if getattr(settings, "do_normalize", True):
        mean, std = (np.asarray(each)[:, None, None] for each in (settings.image_mean, settings.image_std))
        pixels = pixels * std + mean
    scale = settings.rescale_factor if getattr(settings, "do_rescale", True) else 1.0
    found: np.ndarray[Any, Any] = pixels / scale
    return found


def image_token_id(config: Any) -> int:
    """The token that stands for a piece of a picture in a prompt."""
    found = getattr(config, "image_token_id", None)
    return int(config.image_token_index if found is None else found)


def image_token_count(model: Any, inputs: Inputs) -> int:
    """How many image tokens the prompts hold together."""
    return int((inputs["input_ids"] == image_token_id(model.config)).sum())


def class_tokens(model: Any) -> int:
    """How many tokens the tower puts before the patches of each tile."""
    names = [name for name, _ in model.named_parameters() if name.endswith(CLASS_TOKENS)]
    return len(names)


def side_of(size: Any) -> int:
    """One side of something square, which a configuration gives as a number or as a pair of them."""
    return int(size if isinstance(size, int) else size[0])
