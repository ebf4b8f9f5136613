"""Where the tokens of a picture are in it, learned from the processor itself.

How a picture is resized, padded, cropped and cut into tiles is the processor's business, and every family does it
another way. Instead of repeating each we send a ramp of the picture's size through the processor, red by column and
green by row, and read off every view that comes out which part of the picture it shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from seamscope.hooks._errors import SpanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int

    from seamscope.hooks._layout import Layout
    from seamscope.hooks._prompt import Box

_DARK, _REACH = 16.0, 224.0  # the ramp's first value, and how far it may rise
_INSIDE = 250.0  # blue is at least this where a view shows the picture, and not its padding
_LOOKS = 3.0  # pixels of a picture that are mixed into one when it is enlarged
_FAR = 0.02  # of the picture's side: what a view may miss a straight line by
_FLAT = 1e-3  # picture pixels to a view's pixel: less is no picture at all
# Of a token's own width: what it must show of an object at least, on each axis, to belong to it.
SHARE = 0.05


def ramp(size: tuple[int, int]) -> Image.Image:
    """Draw a picture of `size` (width, height) whose red tells the column and whose green tells the row."""
    width, height = size
    pixels = np.full((height, width, 3), 255, dtype=np.uint8)
    pixels[..., 0] = np.round(_DARK + _step(width) * np.arange(width))
    pixels[..., 1] = np.round(_DARK + _step(height) * np.arange(height))[:, None]
    return Image.fromarray(pixels)


def _step(n: int) -> float:
    """The rise from one column to the next: a whole number where there is room for it, so that it is exact."""
    step = (_REACH - 1) / max(n - 1, 1)
    return float(int(step)) if step >= 1 else step


@dataclass(frozen=True)
class Geometry:
    """The tokens of one picture in each stack, and the map from each view's pixels to the picture's own.

    `maps[view]` is (scale x, shift x, scale y, shift y); NaN for a view that shows nothing of the picture. It is an
    error, for whoever asks where something is, if the views are no straight copies of the picture.
    """

    layout: Layout
    maps: Float[np.ndarray, "views 4"] | SpanError

    def in_order(self, stack: str) -> Int[np.ndarray, " tokens"]:
        """Number the tokens of a stack that show a place: view by view, row by row."""
        view, left, top, _, _ = getattr(self.layout, stack).T
        placed = np.flatnonzero(~np.isnan(view))
        return placed[np.lexsort((left[placed], top[placed], view[placed]))]

    def holding(self, stack: str, box: Box) -> Int[np.ndarray, " tokens"]:
        """Number the tokens of a stack that show part of `box`, or, if it has no area, its centre."""
        if isinstance(self.maps, SpanError):
            raise self.maps
        tokens = self.in_order(stack)
        view, left, top, right, bottom = getattr(self.layout, stack)[tokens].T
        scale_x, shift_x, scale_y, shift_y = self.maps[view.astype(int)].T
        meets = _meets(left * scale_x + shift_x, right * scale_x + shift_x, box.left, box.right)
        meets &= _meets(top * scale_y + shift_y, bottom * scale_y + shift_y, box.top, box.bottom)
        found: Int[np.ndarray, " tokens"] = tokens[meets]
        return found


def _meets(start: Any, stop: Any, low: float, high: float) -> Any:
    """Whether ranges share enough of [low, high]; one so short that two neighbours may not is met in its middle."""
    margin = SHARE * (stop - start)
    middle = (low + high) / 2
    shared = np.minimum(stop, high) - np.maximum(start, low)
    return np.where(high - low > 2 * margin, shared > margin, (start <= middle) & (middle < stop))


def map_views(views: Sequence[Float[np.ndarray, "3 height width"]], size: tuple[int, int]) -> Any:
    """Read off the views of a ramp of `size` where they are in it: (views, 4), see `Geometry`.

    Views are colours from 0 to 255. Raises `SpanError` where a view is not a straight copy of the picture.
    """
    across, down = np.nan, np.nan
    maps = []
    for view in views:
        x, y = _line(view, 0, size[0], like=across), _line(view, 1, size[1], like=down)
        across, down = (new if np.isfinite(new) else old for new, old in ((x[0], across), (y[0], down)))
        maps.append((*x, *y))
    return np.array(maps).reshape(-1, 4)


def _line(view: Any, channel: int, n: int, *, like: float) -> tuple[float, float]:
    """Fit picture coordinate = scale * view coordinate + shift along one axis; edges of pixels are whole numbers.

    A tile of which a single row shows the picture has no scale of its own: it is `like` that of the tile before it.
    """
    inside = view[2] >= _INSIDE
    seen = inside.any(axis=channel)
    if not seen.any():
        return np.nan, np.nan
    colour = np.where(inside, view[channel], 0).sum(axis=channel)[seen] / inside.sum(axis=channel)[seen]
    at, shown = np.flatnonzero(seen) + 0.5, (colour - _DARK) / _step(n) + 0.5
    if n == 1:  # one pixel shows no slope: all that is seen is that pixel
        return 1 / len(at), float((0.5 - at[0]) / len(at))
    if len(at) == 1:
        scale = like if np.isfinite(like) else float(n)  # nothing else shows it, so this row shows all of it
        return scale, float(shown[0] - scale * at[0])
    middle = slice(len(at) // 4, len(at) - len(at) // 4)
    rough = np.polyfit(at[middle], shown[middle], 1)[0] if len(at) > 4 else 1.0
    # At the border a picture mixes with what is beyond it, as far as resizing looks: some of the picture's own pixels.
    border = min(ceil(max(1.0, _LOOKS / max(rough, _FLAT))), (len(at) - 2) // 3)
    kept = slice(border, len(at) - border)
    at, shown = at[kept], shown[kept]
    scale, shift = np.polyfit(at, shown, 1)
    if scale < _FLAT or np.abs(scale * at + shift - shown).max() > max(_FAR * n, 2.0):
        raise SpanError("cannot follow boxes: the processor does more to a picture than scale, shift, pad and cut it")
    return float(scale), float(shift)
