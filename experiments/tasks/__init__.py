"""Tasks: items with an image, an intermediate, an answer, and a counterfactual partner."""

from ._card_words import RANKS
from ._cards import SUITS, CardsSort, CardsSum
from ._counting import COLOURS, SHAPES, Counting
from ._generated import GeneratedTask, held_out
from ._item import CONDITIONS, Intermediate, Item, Wording
from ._jsonl import JsonlTask
from ._registry import DATA_SETS, generated, get
from ._rendered_text import GAINS, LOSSES, NAMES, RenderedText
from ._sheet import contact_sheet
from ._style import FONTS, HANDWRITTEN, PROFILES, RENDERINGS, Look
from ._task import Part, Task

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
    "GeneratedTask",
    "Intermediate",
    "Item",
    "JsonlTask",
    "Look",
    "Part",
    "RenderedText",
    "Task",
    "Wording",
    "contact_sheet",
    "generated",
    "get",
    "held_out",
]
