"""Arithmetic and short word problems drawn as text: read it, then work it out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Final

import numpy as np

from ._canvas import Canvas
from ._generated import GeneratedTask
from ._item import Intermediate, Wording
from ._numbers import last_number
from ._style import HANDWRITTEN, Profile
from ._task import Part

NAMES: Final = ("ann", "ben", "eva", "tom")
GAINS: Final = ("gets", "finds")
LOSSES: Final = ("loses", "gives")
SIGNS: Final = {"plus": "+", "minus": "-", "−": "-", "–": "-"}
# a bullet or a number before a line of words, a word, an amount, a sign
TOKEN: Final = re.compile(
    r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+(?=[a-z])|(?P<word>[a-z]+|[+\-−–])|(?P<amount>\d+)",
    re.IGNORECASE | re.MULTILINE,
)


@dataclass(frozen=True)
class Problem:
    """A first amount and what is added to it; `teller` is `None` for bare arithmetic, else who has it."""

    start: int
    steps: tuple[tuple[str, int], ...]
    teller: str | None

    @property
    def result(self) -> int:
        """The answer."""
        return self.start + sum(-n if word in ("-", *LOSSES) else n for word, n in self.steps)

    @property
    def lines(self) -> tuple[tuple[str, int], ...]:
        """Each amount with the words before it."""
        first = "" if self.teller is None else f"{self.teller} has"
        return ((first, self.start), *self.steps)


class RenderedText(GeneratedTask[Problem]):
    """Text in a picture, and arithmetic over it (task 1 of the paper)."""

    name = "rendered_text"
    summary = "arithmetic and short word problems drawn as text; read, then calculate"
    layouts = ("lines", "centred", "stair")
    budget: ClassVar[Mapping[str, int]] = {"small": 20, "full": 96}
    wording: ClassVar[Mapping[str, Wording]] = {
        "small": Wording(perceive="read text", cot="first read text then {question}"),
        "full": Wording(
            perceive="Transcribe the text in the image, exactly as it is written. Reply with the text only.",
            reason="{intermediate}\n\n{question}",
            cot="First transcribe the text in the image, then answer. {question} End with 'Answer:' and the number.",
            answer_marker="Answer:",
        ),
    }

    def sample(self, rng: np.random.Generator, profile: Profile) -> Problem:
        """One to two steps from a start; never below zero, all amounts below ten (full: below a hundred)."""
        high = 10 if profile.name == "small" else 100
        teller = None if rng.random() < 0.5 else str(rng.choice(NAMES))
        while True:
            start, count = int(rng.integers(high)), int(rng.integers(1, 3))
            steps = tuple((self._word(rng, teller), int(rng.integers(high))) for _ in range(count))
            problem = Problem(start, steps, teller)
            if problem.result >= 0:
                return problem

    @staticmethod
    def _word(rng: np.random.Generator, teller: str | None) -> str:
        gain = rng.random() < 0.6
        if teller is None:
            return "+" if gain else "-"
        return str(rng.choice(GAINS if gain else LOSSES))

    def vary(self, scene: Problem, rng: np.random.Generator) -> Problem:
        """Another amount in one place, of as many digits, so that the words around it stay where they are."""
        amounts = [scene.start, *(n for _, n in scene.steps)]
        words = [word for word, _ in scene.steps]
        while True:
            changed = list(amounts)
            k = int(rng.integers(len(amounts)))
            changed[k] = int(rng.integers(10)) if amounts[k] < 10 else int(rng.integers(10, 100))
            varied = replace(scene, start=changed[0], steps=tuple(zip(words, changed[1:], strict=True)))
            if varied.result >= 0:
                return varied

    def paint(self, scene: Problem, canvas: Canvas) -> None:
        """A line for each amount."""
        style, unit = canvas.style, canvas.style.profile.unit
        lines = [part.split() for part in self.describe(scene, style.profile).parts]
        pixels, space = self._size(canvas, lines)
        step = (style.profile.canvas - 8 * unit) / len(lines)
        for k, words in enumerate(lines):
            long = sum(canvas.width(word, pixels=pixels) for word in words) + space * (len(words) - 1)
            free = max(style.profile.canvas - long - 6 * unit, 0)
            x = 3 * unit + free * {"lines": 0.1, "centred": 0.5, "stair": k / len(lines)}[style.layout]
            y = 4 * unit + k * step + (step - pixels) / 2
            canvas.begin()
            dx, dy = style.shake(canvas.rng)
            self._line((x + dx, y + dy), words, canvas=canvas, pixels=pixels, space=space)

    @staticmethod
    def _size(canvas: Canvas, lines: list[list[str]]) -> tuple[int, float]:
        """The largest size that was asked for and fits, and the space between words, in pixels."""
        style, unit = canvas.style, canvas.style.profile.unit
        pixels = int((12 + 6 * style.size) * unit)
        while True:
            space = 0.35 * pixels
            wide = max(sum(canvas.width(w, pixels=pixels) + space for w in words) - space for words in lines)
            if wide <= style.profile.canvas - 6 * unit or pixels <= 6:
                return pixels, space
            pixels -= 1

    @staticmethod
    def _line(at: tuple[float, float], words: list[str], *, canvas: Canvas, pixels: int, space: float) -> None:
        x, y = at
        for word in words:
            canvas.word((x, y), word, pixels=pixels)
            x += canvas.width(word, pixels=pixels) + space
        over = 1 + 0.03 * pixels  # letters such as h and d are higher than capitals, and some overhang
        above = 0.14 * pixels if canvas.style.font == HANDWRITTEN else over
        canvas.bound(at[0] - over / 2, y - above, x - space + over / 2, y + pixels)

    def describe(self, scene: Problem, profile: Profile) -> Intermediate:
        """The text, line by line; a sentence begins with a capital letter where the profile has them."""
        parts = tuple(f"{words} {n}".strip() for words, n in scene.lines)
        if profile.name == "small":
            return Intermediate(parts=parts)
        return Intermediate(parts=(parts[0].capitalize(), *parts[1:]), separator="\n")

    def question(self, scene: Problem, profile: Profile) -> str:
        """What is asked of the text."""
        if profile.name == "small":
            return "result ?"
        asked = "What is the result?" if scene.teller is None else f"How many does {scene.teller.capitalize()} have?"
        return f"{asked} Reply with the number only."

    def solve(self, scene: Problem) -> str:
        """The result."""
        return str(scene.result)

    def variables(self, scene: Problem) -> dict[str, tuple[str, str]]:
        """Each amount, and the result."""
        labels = {f"number.{k}": (str(n), f"{words} {n}") for k, (words, n) in enumerate(scene.lines)}
        return {**labels, "result": (str(scene.result), f"{scene.start} {scene.result}")}

    def find(self, text: str) -> tuple[Part, ...] | None:
        """Each amount with the words before it, lower case, single spaces.

        Line breaks, commas, bullets, "plus" and "minus", and anything up to a colon are accepted; words after
        the last amount are not.
        """
        parts: list[Part] = []
        words: list[str] = []
        start = None
        for token in TOKEN.finditer(text, text.rfind(":") + 1):
            if not token["word"] and not token["amount"]:
                continue
            start = token.start() if start is None else start
            word = token[0].lower()
            words.append(SIGNS.get(word, word))
            if token["amount"]:
                parts.append(Part(" ".join(words), start, token.end()))
                words, start = [], None
        return tuple(parts) if parts and not words else None

    def read_answer(self, text: str) -> str | None:
        """The last number, in digits or as words."""
        return last_number(text)
