"""From a box in an image's own pixels to the patches that show it."""

from __future__ import annotations

from math import ceil, floor
from typing import TYPE_CHECKING, Any

from seamscope.hooks._errors import SpanError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from seamscope.hooks._families import Visual
    from seamscope.hooks._prompt import Box

# Sides of boxes that miss a patch's border by less than this many patches count as lying on it.
_SLACK = 1e-6


def box_cells(processor: Any, box: Box, *, size: tuple[int, int], pixels: tuple[int, int], visual: Visual) -> list[int]:
    """Number the patches, row by row from the top left, that share area with `box`.

    `size` is (width, height) of the original image, `pixels` (height, width) of the processed one, which
    may end in a strip too narrow for a patch. A box without area has the one patch that its centre is in; a
    box outside all patches (cropped away) has none. Raises `SpanError` for a processor whose geometry is
    not known.
    """
    across, down = _axes(processor, size, pixels)
    height, width = visual.grid
    columns = _cells(across(box.left), across(box.right), visual.patch, width)
    rows = _cells(down(box.top), down(box.bottom), visual.patch, height)
    return [row * width + column for row in rows for column in columns]


def _cells(low: float, high: float, patch: int, n: int) -> range:
    if high - low > _SLACK * patch:
        first, last = floor(low / patch + _SLACK), ceil(high / patch - _SLACK)
    else:
        first = floor((low + high) / 2 / patch)
        last = first + 1
    return range(max(first, 0), min(last, n))


def _axes(
    processor: Any, size: tuple[int, int], pixels: tuple[int, int]
) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Give the maps from original to processed x and y; the steps are those of the image processor."""
    (width, left), (height, top) = (float(size[0]), 0.0), (float(size[1]), 0.0)
    if getattr(processor, "do_pad", None) and hasattr(processor, "pad_to_square"):
        side = max(size)
        left, top, width, height = (side - size[0]) // 2, (side - size[1]) // 2, side, side
    padded = width, height
    if processor.do_resize:
        width, height = _resized(processor.size, width, height)
    scale_x, scale_y = width / padded[0], height / padded[1]
    shift_x, shift_y = left * scale_x, top * scale_y
    if getattr(processor, "do_center_crop", None):
        crop_width, crop_height = _side(processor.crop_size, "width"), _side(processor.crop_size, "height")
        shift_x, shift_y = shift_x + _cropped(width, crop_width), shift_y + _cropped(height, crop_height)
        width, height = crop_width, crop_height
    if (height, width) != pixels:
        raise SpanError(
            f"cannot follow boxes through {type(processor).__name__}: "
            f"an image of {size[0]}x{size[1]} became {pixels[1]}x{pixels[0]}, expected {width:g}x{height:g}"
        )
    return (lambda x: x * scale_x + shift_x), (lambda y: y * scale_y + shift_y)


def _resized(size: Any, width: float, height: float) -> tuple[float, float]:
    edge = _side(size, "shortest_edge")
    if edge and not _side(size, "longest_edge"):
        short, long = sorted((width, height))
        longer = int(edge * long / short)
        return (edge, longer) if width <= height else (longer, edge)
    return _side(size, "width"), _side(size, "height")


def _cropped(side: float, crop: float) -> float:
    """Give the shift of a centred crop of one side, or of the margin added where the side is too short."""
    return (crop - side) // 2 if crop > side else -int((side - crop) / 2)


def _side(size: Mapping[str, Any] | Any, name: str) -> float:
    found = size.get(name) if hasattr(size, "get") else getattr(size, name, None)
    return float(found or 0)
