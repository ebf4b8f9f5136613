"""A tower that never saw what the answers depend on: it sees colours but no shapes, and was taught suits alone.

What a patch shows beyond its mean colour is gone before the first layer, whatever is learned behind it: no rank can be
read there. The suits, which no answer depends on, can be told by their colour and by how much of a patch they fill.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from ..tasks import Item
from ._data import Pool
from ._sight import train_sight

STEPS: Final = 500
BATCH: Final = 32
SEED: Final = 5


def blind(model: Any, pool: Pool, *, steps: int = STEPS) -> list[dict[str, float]]:
    """Teach a fresh model's tower, in place, to name the suits of the cards under each patch; gives the loss curve.

    Its first layer keeps the mean colour of each patch and nothing else, for good.
    """
    weight: Tensor = model.model.vision_tower.embeddings.patch_embedding.weight
    with torch.no_grad():
        weight.copy_(weight.mean((2, 3), keepdim=True).expand_as(weight))
    weight.requires_grad_(False)
    lessons = Pool([_suits(item) for item in pool.items], pool.pixels)
    return train_sight(model, {"suits": lessons}, steps=steps, batch=BATCH, seed=SEED)


def _suits(item: Item) -> Item:
    """The same item, of which only the suits are to be told."""
    parts = tuple(part.split()[-1] for part in item.intermediate.parts)
    return replace(item, intermediate=replace(item.intermediate, parts=parts))
