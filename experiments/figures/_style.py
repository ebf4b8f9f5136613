"""One look for every figure: sizes, colours, and a context that leaves matplotlib's settings as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar, cast

import matplotlib
from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

WIDTH: Final = 3.4  # inches: one column
SMALL: Final = 6.0  # points: the smallest text that is drawn
INK: Final = "#222222"
TITLE: Final = 12.0  # points that a title of one line takes
FAINT: Final = "#8a8a8a"

# Okabe & Ito's colour-blind-safe palette; conditions have its saturated colours, controls are grey.
COLOURS: Final = {
    "direct": "#D55E00",
    "cascaded": "#0072B2",
    "oracle": "#009E73",
    "cot": "#CC79A7",
    "gap": "#000000",
    "chance": "#222222",
    "control": "#555555",
    "shuffled": "#9a9a9a",
    "untrained": "#777777",
    "pixels": "#222222",
}
DASHES: Final = {
    "chance": ":",
    "control": "-",
    "shuffled": (0, (4, 1.5)),
    "untrained": (0, (6, 1.5, 1, 1.5)),
    "pixels": (0, (9, 3)),
}
# The line of what stands beside another, in its colour: a partner's, or the same without an allowance.
BESIDE: Final[dict[str, Any]] = {"linestyle": (0, (3, 1.2)), "lw": 0.8}
# Places: the orange family is the image's side, the blue family and grey the reading side, black both, dark grey all.
SPANS: Final = {
    "objects": ("#E69F00", "o"),
    "image": ("#8C5A00", "s"),
    "question": ("#56B4E9", "^"),
    "last": ("#1B6FA3", "v"),
    "answer": ("#9A9A9A", "x"),
    "reading": ("#0B3C5D", "D"),
    "objects+reading": ("#000000", "P"),
    "prompt": ("#5C5C5C", "*"),
}
NAMES: Final = {
    "direct": "direct",
    "cascaded": "cascaded",
    "oracle": "oracle",
    "cot": "chain of thought",
    "chance": "chance",
    "control": "control task",
    "shuffled": "shuffled labels",
    "untrained": "untrained model",
    "pixels": "raw pixels",
    "objects": "object patches",
    "image": "all image tokens",
    "question": "question tokens",
    "last": "last position",
    "answer": "answer tokens",
    "reading": "reading positions",
    "objects+reading": "objects + reading",
    "prompt": "every token",
}
WORDS: Final = ("cascaded", "oracle")  # conditions without a picture, in which objects are words
RC: Final = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=list(COLOURS.values())),
    "text.color": INK,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.2,
    "ytick.major.size": 2.2,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.0,
    "legend.borderaxespad": 0.2,
    "legend.labelspacing": 0.3,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.0,
    "hatch.linewidth": 0.5,
    "hatch.color": FAINT,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.bbox": None,
    "pdf.fonttype": 42,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.03,
}

P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let a function draw in this style and give matplotlib its own settings back, whatever happens."""

    @wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return inside


def blank(height: float, *, width: float = WIDTH) -> Figure:
    """An empty figure (inches) that belongs to no pyplot session."""
    return Figure(figsize=(width, height), layout="constrained")


def axes_for(ax: Axes | None, *, height: float) -> Axes:
    """The given axes, or fresh ones in a figure one column wide and `height` inches high."""
    ax = blank(height).add_subplot() if ax is None else ax
    ax.tick_params(labelsize=RC["xtick.labelsize"], length=2.2, width=0.6)  # ticks are made later, at drawing
    return ax


def root(ax: Axes) -> Figure:
    """The figure that the axes stand in."""
    return cast(Figure, ax.get_figure(root=True))


def width_in_points(ax: Axes) -> float:
    """Width of the axes in points, before the layout has settled."""
    return float(ax.get_position().width * root(ax).get_figwidth() * 72)


def height_in_points(ax: Axes) -> float:
    """Height of the axes in points, before the layout has settled."""
    return float(ax.get_position().height * root(ax).get_figheight() * 72)


def text_width(text: str, *, size: float = SMALL) -> float:
    """Width of a text in points, near enough to decide whether it fits."""
    return 0.62 * size * max(map(len, text.splitlines() or [""]))


def place_name(place: str, condition: str) -> str:
    """What a place is called in runs of a condition."""
    words = {"objects": "object words", "image": "all their words"} if condition in WORDS else {}
    return words.get(place, NAMES.get(place, place))


def marker_size(points: int) -> float:
    """Size of the markers of a line with so many points."""
    return 3.0 if points <= 16 else 1.8


def tint(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white: 1 is the colour, 0 is white."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def ramp(colour: str) -> LinearSegmentedColormap:
    """A sequential colour map from white to the colour."""
    return LinearSegmentedColormap.from_list(f"to {colour}", ["#ffffff", colour])


def legend_above(ax: Axes, handles: Sequence[Artist], *, columns: int, lift: float = 0.0) -> None:
    """A legend over the axes, `lift` points above their upper edge."""
    above = 1 + lift / height_in_points(ax)
    ax.legend(handles=list(handles), loc="lower center", bbox_to_anchor=(0.5, above), ncol=columns).set_in_layout(True)
