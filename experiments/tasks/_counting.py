"""Scenes of coloured shapes: recognise the objects, then count one kind of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL.Image import Image

from seamscope.hooks import Box

from ._item import Intermediate, Wording
from ._style import Canvas, Profile, Style
from ._task import Task

COLOURS: Final = {"red": (205, 40, 45), "blue": (40, 85, 200), "green": (30, 150, 70), "yellow": (235, 185, 20)}
SHAPES: Final = ("circle", "square", "triangle")
WORDS: Final = dict(
    zip("zero one two three four five six seven eight nine ten".split(), map(str, range(11)), strict=True)
)
GRID: Final = 3


@dataclass(frozen=True)
class Scene:
    """Objects (colour, shape) in reading order with their cells on the grid, and the kind that is asked for."""

    objects: tuple[tuple[str, str], ...]
    cells: tuple[int, ...]
    kind: tuple[str, str]

    @property
    def count(self) -> int:
        """How many there are of the kind."""
        return self.objects.count(self.kind)


class Counting(Task[Scene]):
    """Objects in a picture, and counting them (task 2 of the paper)."""

    name = "counting"
    summary = "coloured shapes with distractors; recognise the objects, then count one kind"
    layouts = ("grid", "loose")
    budget = {"small": 20, "full": 128}
    wording = {
        "small": Wording(perceive="list shapes", cot="first list shapes then {question}"),
        "full": Wording(
            perceive="List every shape in the image in reading order, each as 'colour shape', "
            "separated by commas. Reply with the list only.",
            reason="An image shows these shapes: {intermediate}.\n\n{question}",
            cot="First list every shape in the image, then answer. {question} End with 'Answer:' and the number.",
            answer_marker="Answer",
        ),
    }

    def sample(self, rng: np.random.Generator, profile: Profile) -> Scene:
        """Two to six objects; the asked kind nought to four times, distractors often share its colour or shape."""
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

    def paint(self, scene: Scene, style: Style) -> tuple[Image, tuple[Box, ...]]:
        """Shapes in the cells of a three by three grid, by hand a little uneven."""
        canvas = Canvas(style)
        cell = style.profile.canvas / GRID
        radius = (7 + 2.5 * style.size) * style.profile.unit
        reach = 1.0 if style.layout == "grid" else 1.5
        boxes = []
        for (colour, shape), place in zip(scene.objects, scene.cells, strict=True):
            dx, dy = (reach * d for d in style.shake(canvas.rng))
            centre = ((place % GRID + 0.5) * cell + dx / 2, (place // GRID + 0.5) * cell + dy / 2)
            grow = radius * float(canvas.rng.uniform(0.9, 1.1))
            boxes.append(_shape(canvas, shape, centre, grow, COLOURS[colour]))
        return canvas.image, tuple(boxes)

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

    def read_intermediate(self, text: str) -> tuple[str, ...] | None:
        """Every "colour shape", in order; plurals and any separators are accepted."""
        found = re.findall(rf"({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})s?\b", text.lower())
        return tuple(f"{colour} {shape}" for colour, shape in found) or None

    def read_answer(self, text: str) -> str | None:
        """The last number, in digits or as a word."""
        found = re.findall(rf"\d+|\b(?:{'|'.join(WORDS)})\b", text.lower())
        return WORDS.get(found[-1], str(int(found[-1])) if found[-1].isdigit() else None) if found else None


def _shape(
    canvas: Canvas, shape: str, centre: tuple[float, float], radius: float, ink: tuple[int, int, int]
) -> Box:
    (x, y), r = centre, radius
    bounds = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        canvas.draw.ellipse(bounds, fill=ink)
    elif shape == "square":
        r = 0.9 * r
        bounds = (x - r, y - r, x + r, y + r)
        canvas.draw.rectangle(bounds, fill=ink)
    else:
        canvas.draw.polygon([(x, y - r), (x - r, y + 0.85 * r), (x + r, y + 0.85 * r)], fill=ink)
    return Box(left=bounds[0], top=bounds[1], right=bounds[2], bottom=bounds[3])
