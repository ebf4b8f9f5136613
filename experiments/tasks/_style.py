"""How a picture is drawn: profiles, fonts, handwritten digits, and the style that one item is drawn in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np
from PIL import Image, ImageFont

from seamscope.hooks import TaskError, choose

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
JITTER: Final = 2.0  # the most that leaves every object on the canvas, in units
CRISP: Final = 32  # handwriting from this height in pixels on is drawn with sharp edges


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
    "small": Profile(name="small", canvas=72, jitter=JITTER),
    "full": Profile(name="full", canvas=448, jitter=JITTER),
}


def profile(name: str) -> Profile:
    """The profile of that name; `TaskError` where there is none."""
    return PROFILES[choose("profile", name, PROFILES, TaskError)]


@dataclass(frozen=True, kw_only=True)
class Look:
    """Which renderings, sizes, layouts and jitter a task may draw from; `None` means all that it has.

    `size` is a range between a task's smallest (0) and largest (1) size, `jitter` the largest displacement in
    seventy-seconds of the canvas (0 to 2).
    """

    fonts: tuple[str, ...] = RENDERINGS
    size: tuple[float, float] = (0.0, 1.0)
    layouts: tuple[str, ...] | None = None
    jitter: float | None = None

    def __post_init__(self) -> None:
        for name in self.fonts:
            choose("font", name, RENDERINGS, TaskError)
        if not self.fonts:
            raise TaskError("fonts is empty; name at least one of: " + ", ".join(RENDERINGS))
        if self.layouts is not None and not self.layouts:
            raise TaskError("layouts is empty; name at least one, or None for all that the task has")
        if not 0 <= self.size[0] <= self.size[1] <= 1:
            raise TaskError(f"size is {self.size}; expected (smallest, largest), both from 0 to 1")
        if self.jitter is not None and not 0 <= self.jitter <= JITTER:
            raise TaskError(f"jitter is {self.jitter}; expected 0 to {JITTER:g}")


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
        cls,
        rng: np.random.Generator,
        *,
        look: Look,
        profile: Profile,
        layouts: tuple[str, ...],
        held_out: bool,
    ) -> Style:
        """Draw a style; `size` is a place between the task's smallest (0) and largest (1) size."""
        allowed = look.layouts if look.layouts is not None else layouts
        for name in allowed:
            choose("layout", name, layouts, TaskError)
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
        """A fresh generator, the same for both partners of a pair."""
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
def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images / 16.0, data.target


def handwritten_from(digit: int, *, held_out: bool) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Which of scikit-learn's 1,797 digits may be drawn: every fifth is held out and never trained on."""
    labels = _digits()[1]
    return np.flatnonzero((labels == digit) & ((np.arange(len(labels)) % 5 == 0) == held_out))


def handwritten(digit: int, rng: np.random.Generator, *, pixels: int, held_out: bool) -> Image.Image:
    """A real handwritten digit as an ink mask (mode L) of the given height."""
    indices = handwritten_from(digit, held_out=held_out)
    ink = _digits()[0][indices[int(rng.integers(len(indices)))]]
    mask = Image.fromarray(np.uint8(255 * np.clip(1.4 * ink, 0, 1)))
    mask = mask.resize((pixels, pixels), Image.Resampling.BICUBIC)
    if pixels < CRISP:
        return mask
    return mask.point([round(255 * min(max((v / 255 - 0.62) * pixels / 16 + 0.5, 0), 1)) for v in range(256)])
