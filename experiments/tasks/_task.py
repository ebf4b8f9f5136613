"""What every task shares: prompts, reading what a model said, scoring it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ._item import Intermediate, Item, Wording
from ._style import Look


class Part(NamedTuple):
    """One object in what a model said: its canonical name, and the characters that say it."""

    name: str
    start: int
    stop: int


class Task(ABC):
    """Items with pictures, and how to read and score what a model says about them.

    Two kinds: generated tasks (`GeneratedTask`), and a task from the user's own data (`JsonlTask`).
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """A short name, written into every table."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """One line for lists of tasks."""

    @property
    @abstractmethod
    def wording(self) -> Mapping[str, Wording]:
        """The prompts, by profile."""

    @property
    @abstractmethod
    def budget(self) -> Mapping[str, int]:
        """The most new tokens an answer may take, by profile; the same under every condition."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The variables that the answer depends on, as globs: the rest may be dropped on the way without a loss."""
        return ("*",)

    @property
    def files(self) -> list[Path]:
        """The files that its items are made of, if it is made of any."""
        return []

    @property
    def size(self) -> int | None:
        """How many items there are; `None` where they never run out."""
        return None

    @abstractmethod
    def items(
        self,
        n: int,
        *,
        profile_name: str = "small",
        seed: int = 0,
        split: str | None = "held_out",
        look: Look | None = None,
    ) -> list[Item]:
        """Give `n` items; the k-th does not depend on `n`.

        `split`: `held_out` (content and handwriting that no shipped model was trained on), `train`, `None`.
        """

    @abstractmethod
    def item(
        self,
        k: int,
        *,
        profile_name: str = "small",
        seed: int = 0,
        split: str | None = "held_out",
        look: Look | None = None,
    ) -> Item:
        """The k-th item alone, as `items` gives it."""

    def pairing(self, n: int, *, seed: int = 0) -> list[tuple[int, bool]]:
        """Every one of `n` items and of their partners once: the item's number, and whether its partner is meant."""
        return [(k, partner) for k in range(n) for partner in (False, True)]

    @abstractmethod
    def partner(self, item: Item) -> Item:
        """The counterfactual partner: same layout, question and group; another intermediate and answer."""

    @abstractmethod
    def find(self, text: str) -> tuple[Part, ...] | None:
        """Find the objects in what call 1 said, in order; `None` where it cannot be read."""

    @abstractmethod
    def read_answer(self, text: str) -> str | None:
        """The answer in what a model said, in canonical form, `None` where there is none."""

    def read_intermediate(self, text: str) -> tuple[str, ...] | None:
        """The canonical names of the objects in what call 1 said, `None` where it cannot be read."""
        found = self.find(text)
        return tuple(part.name for part in found) if found else None

    def score(self, item: Item, text: str, *, condition: str | None = None) -> bool:
        """Exact match of what a model answered under a condition, after parsing.

        The answer is read after the last answer marker behind which there is one. Where there is none, the
        whole text is read, except under `cot` after a marker: there, what precedes it is never the answer.
        """
        answer = self._final_answer(text, item.wording, condition=condition)
        return answer is not None and answer == self.read_answer(item.answer)

    def _final_answer(self, text: str, wording: Wording, *, condition: str | None) -> str | None:
        ends = [match.end() for match in _marker(wording).finditer(text)]
        behind = (self.read_answer(text[end:]) for end in reversed(ends))
        answer = next((found for found in behind if found is not None), None)
        return answer if answer is not None or (ends and condition == "cot") else self.read_answer(text)

    def saw(self, item: Item, text: str) -> bool:
        """Whether call 1 named every object, in order, and nothing else."""
        named = self.read_intermediate(text)
        return named is not None and named == self.read_intermediate(item.intermediate.text)

    def hand_over(self, item: Item, text: str) -> Intermediate:
        """What call 1 said, word for word, without the white space around it.

        It is cut into parts where it names as many objects as there are; otherwise no part of it is aligned
        with an object.
        """
        text = text.strip()
        found = self.find(text) or ()
        aligned = found if len(found) == len(item.intermediate.parts) else ()
        at = [(part.start, part.stop) for part in aligned]
        return Intermediate.cut(text, at, separator=item.intermediate.separator)


def _marker(wording: Wording) -> re.Pattern[str]:
    word = re.escape(wording.answer_marker.rstrip(":"))
    return re.compile(rf"(?<!\w){word}(?!\w):?", re.IGNORECASE)
