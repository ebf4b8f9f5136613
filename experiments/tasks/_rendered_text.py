"""Arithmetic and short word problems drawn as text: read it, then work it out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL.Image import Image

from seamscope.hooks import Box

from ._item import Intermediate, Wording
from ._style import Canvas, Profile, Style
from ._task import Task

NAMES: Final = ("ann", "ben", "eva", "tom")
GAINS: Final = ("gets", "finds")
LOSSES: Final = ("loses", "gives")


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


class RenderedText(Task[Problem]):
    """Text in a picture, and arithmetic over it (task 1 of the paper)."""

    name = "rendered_text"
    summary = "arithmetic and short word problems drawn as text; read, then calculate"
    layouts = ("lines", "centred", "stair")
    budget = {"small": 20, "full": 96}
    wording = {
        "small": Wording(perceive="read text", cot="first read text then {question}"),
        "full": Wording(
            perceive="Transcribe the text in the image, exactly as it is written. Reply with the text only.",
            reason="{intermediate}\n\n{question}",
            cot="First transcribe the text in the image, then answer. {question} "
            "End with 'Answer:' and the number.",
            answer_marker="Answer",
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
        """Another amount in one place."""
        amounts = [scene.start, *(n for _, n in scene.steps)]
        high = 10 if max(amounts) < 10 else 100
        while True:
            changed = list(amounts)
            changed[int(rng.integers(len(amounts)))] = int(rng.integers(high))
            words = [word for word, _ in scene.steps]
            varied = replace(scene, start=changed[0], steps=tuple(zip(words, changed[1:], strict=True)))
            if varied.result >= 0:
                return varied

    def paint(self, scene: Problem, style: Style) -> tuple[Image, tuple[Box, ...]]:
        """A line for each amount."""
        canvas, unit = Canvas(style), style.profile.unit
        lines = [f"{words} {n}".strip().split() for words, n in scene.lines]
        pixels, space = self._size(canvas, lines)
        step = (style.profile.canvas - 8 * unit) / len(lines)
        boxes = []
        for k, words in enumerate(lines):
            long = sum(canvas.width(word, pixels=pixels) for word in words) + space * (len(words) - 1)
            free = max(style.profile.canvas - long - 6 * unit, 0)
            x = 3 * unit + free * {"lines": 0.1, "centred": 0.5, "stair": k / len(lines)}[style.layout]
            y = 4 * unit + k * step + (step - pixels) / 2
            dx, dy = style.shake(canvas.rng)
            boxes.append(self._line((x + dx, y + dy), words, canvas=canvas, pixels=pixels, space=space))
        return canvas.image, tuple(boxes)

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
    def _line(
        at: tuple[float, float], words: list[str], *, canvas: Canvas, pixels: int, space: float
    ) -> Box:
        x, y = at
        for word in words:
            box = canvas.word((x, y), word, pixels=pixels)
            x += canvas.width(word, pixels=pixels) + space
        return Box(left=at[0], top=y, right=box.right, bottom=y + pixels)

    def describe(self, scene: Problem, profile: Profile) -> Intermediate:
        """The text, line by line."""
        separator = " " if profile.name == "small" else "\n"
        return Intermediate(
            parts=tuple(f"{words} {n}".strip() for words, n in scene.lines), separator=separator
        )

    def question(self, scene: Problem, profile: Profile) -> str:
        """What is asked of the text."""
        return "result ?" if profile.name == "small" else "What is the result? Reply with the number only."

    def solve(self, scene: Problem) -> str:
        """The result."""
        return str(scene.result)

    def variables(self, scene: Problem) -> dict[str, tuple[str, str]]:
        """Each amount, and the result."""
        labels = {f"number.{k}": (str(n), f"{words} {n}") for k, (words, n) in enumerate(scene.lines)}
        return {**labels, "result": (str(scene.result), f"{scene.start} {scene.result}")}

    def read_intermediate(self, text: str) -> tuple[str, ...] | None:
        """Each amount with the words before it, lower case, single spaces."""
        words = re.findall(r"[a-z]+|\d+|[+\-−]", text.lower().replace("−", "-"))
        parts: list[str] = []
        current: list[str] = []
        for word in words:
            current.append(word)
            if word.isdigit():
                parts.append(" ".join(current))
                current = []
        return tuple(parts) if parts and not current else None

    def read_answer(self, text: str) -> str | None:
        """The last whole number."""
        numbers = re.findall(r"-?\d+", text.replace(",", ""))
        return str(int(numbers[-1])) if numbers else None
