"""Scenes of coloured shapes: recognise the objects, then count one kind of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from ._canvas import FINE, Canvas, Ink
from ._generated import GeneratedTask
from ._item import Intermediate, Wording
from ._numbers import last_number
from ._style import Profile
from ._task import Part

COLOURS: Final = {
    "red": (205, 40, 45),
    "blue": (40, 85, 200),
    "green": (30, 150, 70),
    "yellow": (235, 185, 20),
}
SHAPES: Final = ("circle", "square", "triangle")
GRID: Final = 3
KIND: Final = re.compile(rf"\b({'|'.join(COLOURS)})[\s*_-]+({'|'.join(SHAPES)})(?P<plural>e?s)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Scene:
    """Objects (colour, shape) in reading order, their cells on the grid, and the kind that is asked for."""

    objects: tuple[tuple[str, str], ...]
    cells: tuple[int, ...]
    kind: tuple[str, str]

    @property
    def count(self) -> int:
        """How many there are of the kind."""
        return self.objects.count(self.kind)


class Counting(GeneratedTask[Scene]):
    """Objects in a picture, and counting them (task 2 of the paper)."""

    name = "counting"
    summary = "coloured shapes with distractors; recognise the objects, then count one kind"
    layouts = ("grid", "loose")
    budget: ClassVar[Mapping[str, int]] = {"small": 20, "full": 128}
    wording: ClassVar[Mapping[str, Wording]] = {
        "small": Wording(perceive="list shapes", cot="first list shapes then {question}"),
        "full": Wording(
            perceive="List every shape in the image in reading order, each as 'colour shape', "
            "separated by commas. Reply with the list only.",
            reason="An image shows these shapes: {intermediate}.\n\n{question}",
            cot="First list every shape in the image, then answer. {question} End with 'Answer:' and the number.",
            answer_marker="Answer:",
        ),
    }

    def sample(self, rng: np.random.Generator, profile: Profile) -> Scene:
        """Two to six objects: the asked kind nought to four times, and others, often like it in one way."""
        total = int(rng.integers(2, 7))
        kind = self._kind(rng)
        count = int(rng.integers(0, min(total, 4) + 1))
        objects = [kind] * count + [self._distractor(kind, rng) for _ in range(total - count)]
        order = rng.permutation(total)
        cells = np.sort(rng.choice(GRID * GRID, total, replace=False))
        return Scene(tuple(objects[k] for k in order), tuple(int(c) for c in cells), kind)

    @staticmethod
    def _kind(rng: np.random.Generator) -> tuple[str, str]:
        return str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))

    def _distractor(self, kind: tuple[str, str], rng: np.random.Generator) -> tuple[str, str]:
        while True:
            colour, shape = self._kind(rng)
            near = rng.random()
            other = (kind[0], shape) if near < 0.3 else (colour, kind[1]) if near < 0.6 else (colour, shape)
            if other != kind:
                return other

    def vary(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Turn one object into the asked kind, or out of it."""
        k = int(rng.integers(len(scene.objects)))
        was_kind = scene.objects[k] == scene.kind
        objects = list(scene.objects)
        objects[k] = self._distractor(scene.kind, rng) if was_kind else scene.kind
        return Scene(tuple(objects), scene.cells, scene.kind)

    def paint(self, scene: Scene, canvas: Canvas) -> None:
        """Shapes in the cells of a three by three grid, a little uneven."""
        style = canvas.style
        cell = style.profile.canvas / GRID
        radius = (7 + 2.5 * style.size) * style.profile.unit
        reach = 1.0 if style.layout == "grid" else 1.5
        draw = _shape if style.profile.name == "small" else _fine_shape
        for (colour, shape), place in zip(scene.objects, scene.cells, strict=True):
            canvas.begin()
            dx, dy = (reach * d for d in style.shake(canvas.rng))
            x, y = (place % GRID + 0.5) * cell + dx / 2, (place // GRID + 0.5) * cell + dy / 2
            grow = radius * float(canvas.rng.uniform(0.9, 1.1))
            draw(canvas, shape, (x, y), grow, COLOURS[colour])
            canvas.bound(x - grow, y - grow, x + grow, y + grow)

    def describe(self, scene: Scene, profile: Profile) -> Intermediate:
        """The objects in reading order."""
        parts = tuple(f"{colour} {shape}" for colour, shape in scene.objects)
        return Intermediate(parts=parts, separator=" " if profile.name == "small" else ", ")

    def question(self, scene: Scene, profile: Profile) -> str:
        """How many of the kind."""
        colour, shape = scene.kind
        if profile.name == "small":
            return f"how many {colour} {shape} ?"
        return f"How many {colour} {shape}s are there? Reply with the number only."

    def solve(self, scene: Scene) -> str:
        """The count."""
        return str(scene.count)

    def variables(self, scene: Scene) -> dict[str, tuple[str, str]]:
        """Colour and shape of the first two objects, and the count."""
        labels: dict[str, tuple[str, str]] = {}
        for k, (colour, shape) in enumerate(scene.objects[:2]):
            kind = f"{colour} {shape}"
            labels |= {f"object.{k}.colour": (colour, kind), f"object.{k}.shape": (shape, kind)}
        return {**labels, "count": (str(scene.count), f"{scene.count} of {len(scene.objects)}")}

    def find(self, text: str) -> tuple[Part, ...] | None:
        """Every "colour shape", in order, with anything between them; a plural cannot be read as a list."""
        found = list(KIND.finditer(text))
        if any(match["plural"] for match in found):
            return None
        return tuple(Part(f"{m[1]} {m[2]}".lower(), m.start(), m.end()) for m in found) or None

    def read_answer(self, text: str) -> str | None:
        """The last number, in digits or as words; "none" and "no" where there is no other."""
        return last_number(text, nought=True)


def _shape(canvas: Canvas, shape: str, centre: tuple[float, float], radius: float, ink: Ink) -> None:
    (x, y), r = centre, radius
    if shape == "circle":
        canvas.draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif shape == "square":
        r = 0.9 * r
        canvas.draw.rectangle((x - r, y - r, x + r, y + r), fill=ink)
    else:
        canvas.draw.polygon([(x, y - r), (x - r, y + 0.85 * r), (x + r, y + 0.85 * r)], fill=ink)


def _fine_shape(canvas: Canvas, shape: str, centre: tuple[float, float], radius: float, ink: Ink) -> None:
    """The same shapes with smooth edges, rounded corners and a darker rim."""
    left, top = (int(c - radius) for c in centre)
    side = int(2 * radius)
    tile = canvas.tile(side, side)
    rim: Ink = (ink[0] * 3 // 4, ink[1] * 3 // 4, ink[2] * 3 // 4)
    middle, r, edge = FINE * side / 2, FINE * side / 2 - 1, 0.05 * FINE * side
    for colour, inset in ((rim, 0.0), (ink, edge)):
        _soft(tile, shape, middle, r, inset, colour)
    canvas.put(tile, (left, top))


def _soft(tile: Canvas, shape: str, middle: float, r: float, inset: float, ink: Ink) -> None:
    """A shape around (middle, middle), drawn `inset` pixels inside its outline."""
    low, high = middle - r + inset, middle + r - inset
    if shape == "circle":
        tile.draw.ellipse((low, low, high, high), fill=ink)
    elif shape == "square":
        less = 0.1 * r
        tile.draw.rounded_rectangle((low + less, low + less, high - less, high - less), radius=0.08 * r, fill=ink)
    else:
        corners = (
            (middle, low + 1.2 * inset),
            (low + 0.7 * inset, high - 0.15 * r),
            (high - 0.7 * inset, high - 0.15 * r),
        )
        tile.draw.polygon(corners, fill=ink)
