"""A hand of playing cards: recognise the cards, then sort them or add them up."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL.Image import Image

from seamscope.hooks import Box

from ._item import Intermediate, Wording
from ._style import HANDWRITTEN, Canvas, Profile, Style, font
from ._task import Task

RANKS: Final = ("A", *map(str, range(2, 11)), "J", "Q", "K")
SUITS: Final = {"spades": "♠", "hearts": "♥", "diamonds": "♦", "clubs": "♣"}
NAMES: Final = {"ace": "A", "jack": "J", "queen": "Q", "king": "K"} | dict(
    zip("two three four five six seven eight nine ten".split(), RANKS[1:10], strict=True)
)
RED: Final = (200, 25, 35)
BLACK: Final = (20, 20, 25)


@dataclass(frozen=True)
class Hand:
    """Cards (rank, suit) from left to right."""

    cards: tuple[tuple[str, str], ...]

    @property
    def ranks(self) -> tuple[str, ...]:
        """The ranks as they lie."""
        return tuple(rank for rank, _ in self.cards)


def value(rank: str) -> int:
    """What a card counts: ace 1, jack 11, queen 12, king 13."""
    return RANKS.index(rank) + 1


class Cards(Task[Hand]):
    """Cards in a picture, and numerical reasoning over them (task 3 of the paper)."""

    layouts = ("row", "stair", "fan")
    budget = {"small": 20, "full": 96}
    sizes = {"small": (3, 3), "full": (3, 5)}
    asks: dict[str, str]

    def sample(self, rng: np.random.Generator, profile: Profile) -> Hand:
        """Different cards of one deck."""
        low, high = self.sizes[profile.name]
        deck = rng.choice(52, int(rng.integers(low, high + 1)), replace=False)
        return Hand(tuple((RANKS[int(c) % 13], list(SUITS)[int(c) // 13]) for c in deck))

    def vary(self, scene: Hand, rng: np.random.Generator) -> Hand:
        """Another rank on one card."""
        k = int(rng.integers(len(scene.cards)))
        rank = str(rng.choice([r for r in RANKS if (r, scene.cards[k][1]) not in scene.cards]))
        cards = list(scene.cards)
        cards[k] = (rank, cards[k][1])
        return Hand(tuple(cards))

    def paint(self, scene: Hand, style: Style) -> tuple[Image, tuple[Box, ...]]:
        """Cards side by side, in a stair, or alternating high and low."""
        canvas, n = Canvas(style), len(scene.cards)
        side, unit = style.profile.canvas, style.profile.unit
        width = min((side - 4 * unit) / n - 1.5 * unit, 24 * unit)
        height = (30 + 4 * style.size) * unit if style.profile.name == "small" else 1.45 * width
        boxes = []
        for k, (rank, suit) in enumerate(scene.cards):
            dx, dy = style.shake(canvas.rng)
            left = 2 * unit + (side - 4 * unit) * (k + 0.5) / n - width / 2 + dx / 4
            place = {"row": 0.5, "stair": (k + 0.5) / n, "fan": 0.3 + 0.4 * (k % 2)}[style.layout]
            top = 3 * unit + (side - 6 * unit - height) * place + dy
            box = Box(left=left, top=top, right=left + width, bottom=top + height)
            _card(canvas, box, rank, suit)
            boxes.append(box)
        return canvas.image, tuple(boxes)

    def describe(self, scene: Hand, profile: Profile) -> Intermediate:
        """The cards from left to right."""
        if profile.name == "small":
            return Intermediate(parts=tuple(f"{rank} {suit}" for rank, suit in scene.cards))
        spoken = {short: name for name, short in NAMES.items() if short in "AJQK"}
        parts = tuple(f"{spoken.get(rank, rank)} of {suit}" for rank, suit in scene.cards)
        return Intermediate(parts=parts, separator=", ")

    def question(self, scene: Hand, profile: Profile) -> str:
        """What is asked of the hand."""
        return self.asks[profile.name]

    @abstractmethod
    def solve(self, scene: Hand) -> str:
        """The answer, in canonical form."""

    def variables(self, scene: Hand) -> dict[str, tuple[str, str]]:
        """Rank and suit of the first three cards."""
        labels: dict[str, tuple[str, str]] = {}
        for k, (rank, suit) in enumerate(scene.cards[:3]):
            labels |= {f"card.{k}.rank": (rank, f"{rank} {suit}"), f"card.{k}.suit": (suit, f"{rank} {suit}")}
        return labels

    def read_intermediate(self, text: str) -> tuple[str, ...] | None:
        """Every card as "rank suit"; words, "of", symbols and any separators are accepted."""
        for suit, symbol in SUITS.items():
            text = text.replace(symbol, f" {suit}")
        ranks = "|".join((*NAMES, *(r.lower() for r in RANKS[::-1])))
        suits = "|".join(name[:-1] for name in SUITS)
        found = re.findall(rf"\b({ranks})\s*(?:of)?\s*({suits})s?\b", text.lower())
        return tuple(f"{NAMES.get(rank, rank.upper())} {suit}s" for rank, suit in found) or None

    def _as_said(self, text: str, parts: tuple[str, ...], item: object) -> tuple[str, ...]:
        pieces = tuple(piece.strip(" .") for piece in text.strip().split(","))
        return pieces if len(pieces) == len(parts) else parts


class CardsSort(Cards):
    """Sort the ranks of a hand."""

    name = "cards.sort"
    summary = "a hand of playing cards; recognise the cards, then sort their ranks"
    asks = {
        "small": "sort ?",
        "full": "Sort the ranks from lowest to highest; aces are low. Reply with the ranks only, "
        "separated by spaces, using A, 2 to 10, J, Q, K.",
    }
    wording = {
        "small": Wording(perceive="list cards", cot="first list cards then {question}"),
        "full": Wording(
            perceive="List the playing cards in the image from left to right, each as 'rank of suit', "
            "separated by commas. Reply with the list only.",
            reason="A hand of playing cards: {intermediate}.\n\n{question}",
            cot="First list the playing cards in the image from left to right, then answer. {question} "
            "End with 'Answer:' and the ranks.",
            answer_marker="Answer",
        ),
    }

    def solve(self, scene: Hand) -> str:
        """The ranks, lowest first."""
        return " ".join(sorted(scene.ranks, key=value))

    def variables(self, scene: Hand) -> dict[str, tuple[str, str]]:
        """Also the lowest rank, the first word of the answer."""
        lowest = min(scene.ranks, key=value)
        return {**super().variables(scene), "lowest": (lowest, f"{lowest} {scene.ranks.index(lowest)}")}

    def read_answer(self, text: str) -> str | None:
        """All ranks in the text, in order; words and separators are accepted."""
        ranks = "|".join((*NAMES, *(r.lower() for r in RANKS[::-1])))
        found = re.findall(rf"\b({ranks})s?\b", text.lower())
        return " ".join(NAMES.get(rank, rank.upper()) for rank in found) or None


class CardsSum(Cards):
    """Add up the values of a hand."""

    name = "cards.sum"
    summary = "a hand of playing cards; recognise the cards, then add up their values"
    asks = {
        "small": "sum ?",
        "full": "Add up the values of the cards (ace 1, jack 11, queen 12, king 13). "
        "Reply with the number only.",
    }
    wording = {
        **CardsSort.wording,
        "full": Wording(
            perceive=CardsSort.wording["full"].perceive,
            reason=CardsSort.wording["full"].reason,
            cot=CardsSort.wording["full"].cot.replace("the ranks.", "the number."),
            answer_marker="Answer",
        ),
    }

    def solve(self, scene: Hand) -> str:
        """The sum of the values."""
        return str(sum(value(rank) for rank in scene.ranks))

    def variables(self, scene: Hand) -> dict[str, tuple[str, str]]:
        """Also the sum."""
        total = self.solve(scene)
        return {**super().variables(scene), "sum": (total, f"{total} {scene.ranks[0]}")}

    def read_answer(self, text: str) -> str | None:
        """The last whole number."""
        numbers = re.findall(r"\d+", text)
        return str(int(numbers[-1])) if numbers else None


def _card(canvas: Canvas, box: Box, rank: str, suit: str) -> None:
    ink = RED if suit in ("hearts", "diamonds") else BLACK
    width, unit = box.right - box.left, canvas.style.profile.unit
    canvas.draw.rounded_rectangle(
        (box.left, box.top, box.right, box.bottom), radius=2 * unit, fill=(255, 255, 255), outline=(90, 90, 90)
    )
    if canvas.style.profile.name == "small":
        _small_face(canvas, box, rank, suit, ink)
    else:
        _full_face(canvas, box, rank, suit, ink, width)


def _small_face(canvas: Canvas, box: Box, rank: str, suit: str, ink: tuple[int, int, int]) -> None:
    """Rank above suit, as large as the card allows."""
    middle, height = (box.left + box.right) / 2, box.bottom - box.top
    pixels = round((0.42 + 0.06 * canvas.style.size) * height)
    while canvas.width(rank, pixels=pixels) > box.right - box.left - 3:
        pixels -= 1
    canvas.word((middle - canvas.width(rank, pixels=pixels) / 2, box.top + 2), rank, pixels=pixels, ink=ink)
    face = font("sans", round(0.5 * height))
    canvas.draw.text((middle, box.bottom - 2), SUITS[suit], font=face, fill=ink, anchor="mb")


def _full_face(
    canvas: Canvas, box: Box, rank: str, suit: str, ink: tuple[int, int, int], width: float
) -> None:
    """Rank and suit in two corners; pips in the middle, or the letter of a court card."""
    index, small = round(0.24 * width), font("sans", round(0.2 * width))
    margin = 0.06 * width
    canvas.word((box.left + margin, box.top + margin), rank, pixels=index, ink=ink)
    canvas.draw.text((box.left + margin, box.top + margin + 1.05 * index), SUITS[suit], font=small, fill=ink, anchor="lt")
    canvas.draw.text((box.right - margin, box.bottom - margin), SUITS[suit], font=small, fill=ink, anchor="rb")
    if rank in "JQK":
        letter = font("serif" if canvas.style.font == HANDWRITTEN else canvas.style.font, round(0.6 * width))
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        canvas.draw.rectangle((x - 0.28 * width, y - 0.42 * width, x + 0.28 * width, y + 0.42 * width), outline=ink)
        canvas.draw.text((x, y), rank, font=letter, fill=ink, anchor="mm")
        return
    pip = font("sans", round((0.5 if rank == "A" else 0.2) * width))
    for across, down in PIPS[value(rank)]:
        x = box.left + (0.5 + 0.23 * across) * width
        y = (box.top + box.bottom) / 2 + 0.5 * down * width
        canvas.draw.text((x, y), SUITS[suit], font=pip, fill=ink, anchor="mm")


def _columns(*rows: float) -> list[tuple[float, float]]:
    return [(side, row) for row in rows for side in (-1.0, 1.0)]


# where the pips of a card lie: across from -1 to 1, down from -1 to 1
PIPS: Final[dict[int, list[tuple[float, float]]]] = {
    1: [(0, 0)],
    2: [(0, -1), (0, 1)],
    3: [(0, -1), (0, 0), (0, 1)],
    4: _columns(-1, 1),
    5: [*_columns(-1, 1), (0, 0)],
    6: _columns(-1, 0, 1),
    7: [*_columns(-1, 0, 1), (0, -0.5)],
    8: [*_columns(-1, 0, 1), (0, -0.5), (0, 0.5)],
    9: [*_columns(-1, -0.33, 0.33, 1), (0, 0)],
    10: [*_columns(-1, -0.33, 0.33, 1), (0, -0.66), (0, 0.66)],
}
