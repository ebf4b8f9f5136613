"""How a picture is drawn: profiles, fonts, handwritten digits, and the style that one item is drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seamscope.hooks import Box, TaskError

# All of these ship with matplotlib, so no picture depends on the fonts of a machine.
FONTS: Final = {
    "sans": "DejaVuSans.ttf",
    "serif": "DejaVuSerif.ttf",
    "mono": "DejaVuSansMono.ttf",
    "times": "STIXGeneral.ttf",
    "bold": "DejaVuSans-Bold.ttf",
}
HANDWRITTEN: Final = "handwritten"
RENDERINGS: Final = (*FONTS, HANDWRITTEN)
CAPITALS: Final = 0.74  # height of a capital letter in these fonts, of the font size
PAPERS: Final = ((255, 255, 255), (245, 240, 225), (232, 240, 250))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a task is drawn for: `small` is the organism's canvas and vocabulary, `full` a real model's."""

    name: str
    canvas: int
    jitter: float

    @property
    def unit(self) -> float:
        """Pixels in one seventy-second of the canvas: sizes are given in these."""
        return self.canvas / 72


PROFILES: Final = {
    "small": Profile(name="small", canvas=72, jitter=2.0),
    "full": Profile(name="full", canvas=448, jitter=2.0),
}


def profile(name: str) -> Profile:
    """The profile of that name."""
    if name not in PROFILES:
        raise TaskError(f"unknown profile {name!r}; one of: {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which renderings, sizes, layouts and jitter a task may draw from; `None` means all that it has."""

    fonts: tuple[str, ...] = RENDERINGS
    size: tuple[float, float] = (0.0, 1.0)
    layouts: tuple[str, ...] | None = None
    jitter: float | None = None

    def __post_init__(self) -> None:
        for name in self.fonts:
            if name not in RENDERINGS:
                raise TaskError(f"unknown font {name!r}; one of: {', '.join(RENDERINGS)}")
        if not self.fonts:
            raise TaskError("fonts is empty; name at least one of: " + ", ".join(RENDERINGS))


@dataclass(frozen=True, kw_only=True)
class Style:
    """Everything about a picture but its content; an item and its counterfactual partner share it."""

    profile: Profile
    font: str
    size: float
    layout: str
    paper: tuple[int, int, int]
    jitter: float
    seed: int
    held_out_ink: bool

    @classmethod
    def sample(
        cls, rng: np.random.Generator, *, look: Look, profile: Profile, layouts: tuple[str, ...], held_out: bool
    ) -> Style:
        """Draw a style; `size` is a place between the task's smallest (0) and largest (1) size."""
        allowed = look.layouts if look.layouts is not None else layouts
        for name in allowed:
            if name not in layouts:
                raise TaskError(f"unknown layout {name!r}; one of: {', '.join(layouts)}")
        return cls(
            profile=profile,
            font=str(rng.choice(look.fonts)),
            size=float(rng.uniform(*look.size)),
            layout=str(rng.choice(allowed)),
            paper=PAPERS[int(rng.integers(len(PAPERS)))],
            jitter=profile.jitter if look.jitter is None else look.jitter,
            seed=int(rng.integers(2**31)),
            held_out_ink=held_out,
        )

    def rng(self) -> np.random.Generator:
        """A fresh generator: the same numbers for both partners of a pair."""
        return np.random.default_rng(self.seed)

    def shake(self, rng: np.random.Generator) -> tuple[float, float]:
        """A displacement in pixels, at most the jitter in each direction."""
        x, y = rng.uniform(-1, 1, 2) * self.jitter * self.profile.unit
        return float(x), float(y)


@lru_cache(maxsize=256)
def font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    """A font at a height in pixels; handwriting has letters of the sans font."""
    file = FONTS.get(name, FONTS["sans"])
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", file)), pixels)


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images / 16.0, data.target


def handwritten(digit: int, rng: np.random.Generator, *, pixels: int, held_out: bool) -> Image.Image:
    """A real handwritten digit as an ink mask (mode L) of the given height.

    The 1,797 digits of scikit-learn; every fifth is kept for held-out pictures and never trained on.
    """
    images, labels = _digits()
    indices = np.flatnonzero((labels == digit) & ((np.arange(len(labels)) % 5 == 0) == held_out))
    ink = images[indices[int(rng.integers(len(indices)))]]
    mask = Image.fromarray(np.uint8(255 * np.clip(1.4 * ink, 0, 1)))
    return mask.resize((pixels, pixels), Image.Resampling.BICUBIC)


class Canvas:
    """A picture being drawn, with the boxes of what was put on it."""

    def __init__(self, style: Style) -> None:
        side = style.profile.canvas
        self.style = style
        self.rng = style.rng()
        self.image = Image.new("RGB", (side, side), style.paper)
        self.draw = ImageDraw.Draw(self.image)

    def word(
        self, at: tuple[float, float], text: str, *, pixels: int, ink: tuple[int, int, int] = (20, 20, 20)
    ) -> Box:
        """Write a word in a line whose left top corner is given; digits by hand where the style asks for it."""
        if self.style.font == HANDWRITTEN and text.isdigit():
            return self._by_hand(at, text, pixels=pixels, ink=ink)
        face, baseline = font(self.style.font, pixels), (at[0], at[1] + CAPITALS * pixels)
        self.draw.text(baseline, text, font=face, fill=ink, anchor="ls")
        left, top, right, bottom = self.draw.textbbox(baseline, text, font=face, anchor="ls")
        return Box(left=left, top=top, right=right, bottom=bottom)

    def width(self, text: str, *, pixels: int) -> float:
        """How wide a word will be, in pixels."""
        if self.style.font == HANDWRITTEN and text.isdigit():
            return pixels * (1 + 0.7 * (len(text) - 1))
        return float(font(self.style.font, pixels).getlength(text))

    def _by_hand(self, at: tuple[float, float], text: str, *, pixels: int, ink: tuple[int, int, int]) -> Box:
        x, y = at[0], at[1] - (1 - CAPITALS) / 2 * pixels
        for digit in text:
            mask = handwritten(int(digit), self.rng, pixels=pixels, held_out=self.style.held_out_ink)
            self.image.paste(ink, (round(x), round(y)), mask)
            x += 0.7 * pixels
        return Box(left=at[0], top=y, right=x + 0.3 * pixels, bottom=y + pixels)
