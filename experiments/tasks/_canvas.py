"""A picture while it is being drawn."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from math import floor
from typing import Any, Final

from PIL import Image, ImageDraw

from seamscope.hooks import Box

from ._style import CAPITALS, HANDWRITTEN, Style, font, handwritten

INK: Final = (20, 20, 20)
FINE: Final = 4  # tiles are drawn this much larger and scaled down, for smooth edges

Ink = tuple[int, int, int]


class Canvas:
    """A picture being drawn, with the boxes of what was put on it.

    Each object draws its random numbers from where it `begin()`s. `starts` are those places on another canvas
    of the same style: with them, an object that is the same on both is drawn with the same pixels, whatever
    the objects before it are.
    """

    def __init__(self, style: Style, *, starts: Sequence[Any] = ()) -> None:
        side = style.profile.canvas
        self.style = style
        self.rng = style.rng()
        self.boxes: list[Box] = []
        self.starts: list[Any] = []
        self._given = starts
        self.image = Image.new("RGB", (side, side), style.paper)
        self.draw = ImageDraw.Draw(self.image)

    def begin(self) -> None:
        """Begin the next object."""
        k = len(self.starts)
        if k < len(self._given):
            self.rng.bit_generator.state = self._given[k]
        self.starts.append(self.rng.bit_generator.state)

    def bound(self, left: float, top: float, right: float, bottom: float) -> Box:
        """Note the box of an object that covers these pixels, corners included; gives whole pixels."""
        side = self.style.profile.canvas
        edges = (floor(left), floor(top), floor(right) + 1, floor(bottom) + 1)
        left, top, right, bottom = (min(max(edge, 0), side) for edge in edges)
        self.boxes.append(Box(left=left, top=top, right=right, bottom=bottom))
        return self.boxes[-1]

    def tile(self, width: int, height: int) -> Canvas:
        """A transparent canvas for one object, `FINE` times as large, with the same style and numbers."""
        tile = copy(self)
        tile.image = Image.new("RGBA", (FINE * width, FINE * height), (255, 255, 255, 0))
        tile.draw = ImageDraw.Draw(tile.image)
        return tile

    def put(self, tile: Canvas, at: tuple[int, int]) -> None:
        """Scale a tile down and lay it on the picture, its left top corner at a pixel."""
        small = tile.image.resize((tile.image.width // FINE, tile.image.height // FINE), Image.Resampling.BOX)
        self.image.paste(small, at, small)

    def word(self, at: tuple[float, float], text: str, *, pixels: int, ink: Ink = INK) -> None:
        """Write a word in a line whose left top corner is given; digits by hand where the style says so."""
        if self.style.font == HANDWRITTEN and text.isdigit():
            self._by_hand(at, text, pixels=pixels, ink=ink)
            return
        face, baseline = font(self.style.font, pixels), (at[0], at[1] + CAPITALS * pixels)
        self.draw.text(baseline, text, font=face, fill=ink, anchor="ls")

    def width(self, text: str, *, pixels: int) -> float:
        """How wide a word will be, in pixels."""
        if self.style.font == HANDWRITTEN and text.isdigit():
            return pixels * (1 + 0.7 * (len(text) - 1))
        return float(font(self.style.font, pixels).getlength(text))

    def _by_hand(self, at: tuple[float, float], text: str, *, pixels: int, ink: Ink) -> None:
        x, y = at[0], at[1] - (1 - CAPITALS) / 2 * pixels
        for digit in text:
            mask = handwritten(int(digit), self.rng, pixels=pixels, held_out=self.style.held_out_ink)
            self.image.paste(ink, (round(x), round(y)), mask)
            x += 0.7 * pixels
