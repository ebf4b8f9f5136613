"""A hand of playing cards: recognise the cards, then sort them or add them up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from ._canvas import Canvas
from ._card_faces import SYMBOLS, draw_card
from ._card_words import RANKS, find_cards, read_ranks
from ._generated import GeneratedTask
from ._item import Intermediate, Wording
from ._numbers import last_number
from ._style import Profile
from ._task import Part

SUITS: Final = SYMBOLS
COURT_NAMES: Final = {"A": "ace", "J": "jack", "Q": "queen", "K": "king"}


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


class Cards(GeneratedTask[Hand]):
    """Cards in a picture, and numerical reasoning over them (task 3 of the paper)."""

    layouts = ("row", "stair", "fan")
    budget: ClassVar[Mapping[str, int]] = {"small": 20, "full": 96}
    sizes: ClassVar[Mapping[str, tuple[int, int]]] = {"small": (3, 3), "full": (3, 5)}
    asks: ClassVar[Mapping[str, str]]

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

    def paint(self, scene: Hand, canvas: Canvas) -> None:
        """Cards side by side, in a stair, or alternating high and low."""
        style, n = canvas.style, len(scene.cards)
        side, unit = style.profile.canvas, style.profile.unit
        width = min((side - 4 * unit) / n - 1.5 * unit, 24 * unit)
        height = (30 + 4 * style.size) * unit if style.profile.name == "small" else 1.45 * width
        for k, (rank, suit) in enumerate(scene.cards):
            canvas.begin()
            dx, dy = style.shake(canvas.rng)
            left = 2 * unit + (side - 4 * unit) * (k + 0.5) / n - width / 2 + dx / 4
            place = {"row": 0.5, "stair": (k + 0.5) / n, "fan": 0.3 + 0.4 * (k % 2)}[style.layout]
            top = 3 * unit + (side - 6 * unit - height) * place + dy
            draw_card(canvas, (left, top, left + width, top + height), rank=rank, suit=suit)

    def describe(self, scene: Hand, profile: Profile) -> Intermediate:
        """The cards from left to right."""
        if profile.name == "small":
            return Intermediate(parts=tuple(f"{rank} {suit}" for rank, suit in scene.cards))
        parts = tuple(f"{COURT_NAMES.get(rank, rank)} of {suit}" for rank, suit in scene.cards)
        return Intermediate(parts=parts, separator=", ")

    def question(self, scene: Hand, profile: Profile) -> str:
        """What is asked of the hand."""
        return self.asks[profile.name]

    @abstractmethod
    def solve(self, scene: Hand) -> str:
        """The answer, in canonical form."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Neither order nor sum depends on suits."""
        return ("card.*.rank", "lowest", "sum")

    def variables(self, scene: Hand) -> dict[str, tuple[str, str]]:
        """Rank and suit of the first three cards."""
        labels: dict[str, tuple[str, str]] = {}
        for k, (rank, suit) in enumerate(scene.cards[:3]):
            labels |= {f"card.{k}.rank": (rank, f"{rank} {suit}"), f"card.{k}.suit": (suit, f"{rank} {suit}")}
        return labels

    def find(self, text: str) -> tuple[Part, ...] | None:
        """Every card as "rank suit": see `find_cards` for the forms that are accepted."""
        return find_cards(text)


class CardsSort(Cards):
    """Sort the ranks of a hand."""

    name = "cards.sort"
    summary = "a hand of playing cards; recognise the cards, then sort their ranks"
    asks: ClassVar[Mapping[str, str]] = {
        "small": "sort ?",
        "full": "Sort the ranks from lowest to highest; aces are low. Reply with the ranks only, "
        "separated by spaces, using A, 2 to 10, J, Q, K.",
    }
    wording: ClassVar[Mapping[str, Wording]] = {
        "small": Wording(perceive="list cards", cot="first list cards then {question}"),
        "full": Wording(
            perceive="List the playing cards in the image from left to right, each as 'rank of suit', "
            "separated by commas. Reply with the list only.",
            reason="A hand of playing cards: {intermediate}.\n\n{question}",
            cot="First list the playing cards in the image from left to right, then answer. {question} "
            "End with 'Answer:' and the ranks.",
            answer_marker="Answer:",
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
        """The ranks of the last list of ranks: see `read_ranks`."""
        return read_ranks(text)


class CardsSum(Cards):
    """Add up the values of a hand."""

    name = "cards.sum"
    summary = "a hand of playing cards; recognise the cards, then add up their values"
    asks: ClassVar[Mapping[str, str]] = {
        "small": "sum ?",
        "full": "Add up the values of the cards (ace 1, jack 11, queen 12, king 13). Reply with the number only.",
    }
    wording: ClassVar[Mapping[str, Wording]] = {
        **CardsSort.wording,
        "full": Wording(
            perceive=CardsSort.wording["full"].perceive,
            reason=CardsSort.wording["full"].reason,
            cot=CardsSort.wording["full"].cot.replace("the ranks.", "the number."),
            answer_marker="Answer:",
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
        """The last number, in digits or as words."""
        return last_number(text)
