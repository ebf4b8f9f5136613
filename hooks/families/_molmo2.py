"""Molmo2: an overview and crops that overlap, pooled two by two; features are added to the image tokens.

A picture has two views: the overview, and the canvas that its crops are cut from, one every `step` patches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seamscope.hooks._layout import Layout, chain, grid
from seamscope.hooks.families._family import Family
from seamscope.hooks.families._rules import colours, side_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Crops:
    """Crops of one picture: how many patches are along a crop's side, a patch's side in pixels, rows and columns."""

    side: int
    patch: int
    step: int
    rows: int
    columns: int

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Where each crop begins on the canvas, in patches from the top and from the left."""
        return [(row * self.step, column * self.step) for row in range(self.rows) for column in range(self.columns)]

    def place(self, top: int, left: int) -> np.ndarray[Any, Any]:
        """Places of a crop's patches on the canvas."""
        shift = np.array([0, left, top, left, top]) * self.patch
        placed: np.ndarray[Any, Any] = grid(1, rows=self.side, columns=self.side, cell=self.patch) + shift
        return placed


def _crops(model: Any, processor: Any, inputs: Inputs) -> _Crops:
    """Crops overlap by their margins; `image_grids` counts the tokens of the canvas, its last patches alone or not."""
    side, settings = round(inputs["pixel_values"].shape[1] ** 0.5), processor.image_processor
    margins, pool = sum(settings.overlap_margins), settings.pooling_size
    tokens = inputs["image_grids"][0, 2:].tolist()
    rows, columns = ((count * by - margins) // (side - margins) for count, by in zip(tokens, pool, strict=True))
    return _Crops(side, side_of(model.config.vision_config.patch_size), side - margins, rows, columns)


def _layout(model: Any, processor: Any, inputs: Inputs, n: int) -> Layout:
    """Patches that overlap are in the tower twice; a token is where the patches are that it pools."""
    crops = _crops(model, processor, inputs)
    overview = grid(0, rows=crops.side, columns=crops.side, cell=crops.patch)
    patches = chain([overview, *[crops.place(top, left) for top, left in crops.corners]])
    pooled = inputs["image_token_pooling"].numpy()
    tokens = np.array([_union(patches[row[row >= 0]]) for row in pooled[: len(pooled) // n]])
    return Layout(vision=patches, projector=tokens, lm=tokens)


def _union(patches: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The rectangle around patches of one view."""
    return np.concatenate([patches[:1, 0], patches[:, 1:3].min(axis=0), patches[:, 3:].max(axis=0)])


def _views(model: Any, processor: Any, inputs: Inputs, n: int) -> list[np.ndarray[Any, Any]]:
    crops = _crops(model, processor, inputs)
    side, patch, pixels = crops.side, crops.patch, inputs["pixel_values"]
    size = side * patch
    pictures = pixels.reshape(-1, side, side, patch, patch, 3).permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, size, size)
    reach = crops.step * patch
    canvas = pictures.new_zeros(3, (crops.rows - 1) * reach + size, (crops.columns - 1) * reach + size)
    for (top, left), crop in zip(crops.corners, pictures[1:], strict=False):  # those of other pictures come after
        canvas[:, top * patch : top * patch + size, left * patch : left * patch + size] = crop
    return [colours(view, processor) for view in (pictures[0], canvas)]


MOLMO2 = Family(
    name="Molmo2",
    model_types=("molmo2",),
    published=("allenai/Molmo2-4B", "allenai/Molmo2-8B"),
    projector="model.multi_modal_projector.image_projector",
    layout=_layout,
    views=_views,
    lacks=("the first Molmo, whose code is not part of transformers", "checkpoints with norms after the parts (7B-O)"),
)
