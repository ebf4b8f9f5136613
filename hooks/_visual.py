"""Which tokens of the tower, of the projector and of the prompt show which picture and which object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

    from seamscope.hooks._geometry import Geometry
    from seamscope.hooks._prompt import Box, Prompt

    Spans = Mapping[str, Int[Tensor, " tokens"]]

STACKS = ("vision", "projector", "lm")


@dataclass(frozen=True, kw_only=True)
class Visual:
    """The pictures of a batch, stack by stack.

    `geometries[row]` are its pictures'. `spans[stack][row]` has `image` and `image.object.k` (k counts the boxes of
    all the row's pictures, in order), in the reading order of what they show: in `vision` and `projector` as numbers
    among the tokens of the whole batch, in `lm` among the image tokens of the row. `sizes[stack]` counts all tokens.
    In the tower and the projector, `image` leaves out tokens that show no place, such as class tokens.
    """

    geometries: tuple[tuple[Geometry, ...], ...]
    spans: Mapping[str, tuple[Spans, ...]]
    sizes: Mapping[str, int]


def visual_of(prompts: Sequence[Prompt], geometries: Sequence[Sequence[Geometry]]) -> Visual:
    """Number the tokens of every picture, one picture after the other."""
    spans: dict[str, tuple[Spans, ...]] = {}
    sizes: dict[str, int] = {}
    for stack in STACKS:
        rows, start = [], 0
        for prompt, pictures in zip(prompts, geometries, strict=True):
            boxes = [picture.boxes for picture in prompt.pictures]
            own, count = _row(stack, boxes, pictures)
            rows.append({span: index + (0 if stack == "lm" else start) for span, index in own.items()})
            start += count
        spans[stack], sizes[stack] = tuple(rows), start
    return Visual(geometries=tuple(map(tuple, geometries)), spans=spans, sizes=sizes)


def _row(stack: str, boxes: Sequence[Sequence[Box]], pictures: Sequence[Geometry]) -> tuple[dict[str, Tensor], int]:
    found: dict[str, Any] = {}
    images, start, k = [np.zeros(0, dtype=int)], 0, 0
    for geometry, own in zip(pictures, boxes, strict=True):
        count = len(getattr(geometry.layout, stack))
        images.append(start + (np.arange(count) if stack == "lm" else geometry.in_order(stack)))
        for box in own:
            found[f"image.object.{k}"] = start + geometry.holding(stack, box)
            k += 1
        start += count
    found["image"] = np.concatenate(images)
    return {span: torch.from_numpy(index) for span, index in found.items() if len(index)}, start
