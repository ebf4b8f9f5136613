"""Tasks: items with an image, an intermediate, an answer, and a counterfactual partner."""

from ._cards import RANKS, SUITS, CardsSort, CardsSum
from ._counting import COLOURS, SHAPES, Counting
from ._item import CONDITIONS, Intermediate, Item, Wording
from ._registry import DATA_SETS, get
from ._rendered_text import GAINS, LOSSES, NAMES, RenderedText
from ._style import FONTS, HANDWRITTEN, PROFILES, RENDERINGS, Look
from ._task import Task, held_out

__all__ = [
    "COLOURS",
    "CONDITIONS",
    "DATA_SETS",
    "FONTS",
    "GAINS",
    "HANDWRITTEN",
    "LOSSES",
    "NAMES",
    "PROFILES",
    "RANKS",
    "RENDERINGS",
    "SHAPES",
    "SUITS",
    "CardsSort",
    "CardsSum",
    "Counting",
    "Intermediate",
    "Item",
    "Look",
    "RenderedText",
    "Task",
    "Wording",
    "get",
    "held_out",
]
