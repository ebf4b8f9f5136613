"""One example of a task, and the words in which it is put to a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from PIL.Image import Image

from seamscope.hooks import Box, Picture, Prompt, Segment, TaskError

CONDITIONS: Final = ("direct", "cascaded", "oracle", "cot")


@dataclass(frozen=True, kw_only=True)
class Intermediate:
    """What the visual skill hands over: one text per object, and the text around them.

    Parts are joined by `separator`; where a model said something else between them, `around` holds what it
    said before, between and after the parts (one text more than there are parts).
    """

    parts: tuple[str, ...]
    separator: str = " "
    around: tuple[str, ...] | None = None

    @classmethod
    def cut(cls, text: str, at: Sequence[tuple[int, int]], *, separator: str) -> Intermediate:
        """Cut a text at the (start, stop) of its parts, in order; not a character of it is lost."""
        edges = [0, *(edge for piece in at for edge in piece), len(text)]
        around = tuple(text[edges[k] : edges[k + 1]] for k in range(0, len(edges), 2))
        plain = bool(at) and around == ("", *[separator] * (len(at) - 1), "")
        parts = tuple(text[start:stop] for start, stop in at)
        return cls(parts=parts, separator=separator, around=None if plain else around)

    @property
    def text(self) -> str:
        """The whole, as call 1 of a cascade says it."""
        return "".join(segment.text for segment in self.segments())

    def segments(self) -> tuple[Segment, ...]:
        """The text as prompt segments: part k is the span `intermediate.k`, the whole is `intermediate`."""
        around = self.around or ("", *[self.separator] * (len(self.parts) - 1), "")
        pieces = [Segment(around[0], ("intermediate",))]
        for k, part in enumerate(self.parts):
            pieces.append(Segment(part, ("intermediate", f"intermediate.{k}")))
            pieces.append(Segment(around[k + 1], ("intermediate",)))
        return tuple(piece for piece in pieces if piece.text)


@dataclass(frozen=True, kw_only=True)
class Wording:
    """The prompts of one task: plain strings, in which `{intermediate}` and `{question}` are filled in."""

    perceive: str
    reason: str = "{intermediate} {question}"
    direct: str = "{question}"
    cot: str = "{perceive} then {question}"
    answer_marker: str = "so"

    def fill(self, template: str, *, intermediate: tuple[Segment, ...], question: str) -> tuple[Segment, ...]:
        """Cut a template at its fields and put the segments in, so that they keep their spans."""
        fields = {"{intermediate}": intermediate, "{question}": (Segment(question, ("question",)),)}
        pieces: list[Segment] = []
        rest = template.replace("{perceive}", self.perceive)
        while rest:
            found = [(rest.find(name), name) for name in fields if name in rest]
            if not found:
                return (*pieces, Segment(rest))
            start, name = min(found)
            pieces += [Segment(rest[:start])] * (start > 0) + list(fields[name])
            rest = rest[start + len(name) :]
        return tuple(pieces)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One example.

    `variables` are what probes predict (name to label); `types` give, for each variable, the finer identity
    to which a control task assigns random labels (Hewitt & Liang, 1909.03368). An item and its counterfactual
    partner share their `group`, so that no split separates them. `said` is what call 1 of a cascade said.
    """

    id: str
    task: str
    image: Image
    question: str
    intermediate: Intermediate
    answer: str
    variables: Mapping[str, str]
    types: Mapping[str, str]
    boxes: tuple[Box, ...]
    group: str
    wording: Wording
    said: Intermediate | None = None
    source: Any = field(default=None, repr=False, compare=False)

    def prompt(self, condition: str) -> Prompt:
        """The user turn of a condition, or of `perceive`: call 1 of the cascade. `cascaded` is its call 2."""
        picture = (Picture(image=self.image, boxes=self.boxes),)
        words = self.wording
        if condition == "perceive":
            return Prompt(segments=(Segment(words.perceive, ("question",)),), pictures=picture)
        if condition in ("direct", "cot"):
            template = words.direct if condition == "direct" else words.cot
            segments = words.fill(template, intermediate=(), question=self.question)
            return Prompt(segments=segments, pictures=picture)
        if condition in ("oracle", "cascaded"):
            handed = self.intermediate if condition == "oracle" else self._handed_over()
            return Prompt(segments=words.fill(words.reason, intermediate=handed.segments(), question=self.question))
        raise TaskError(f"unknown condition {condition!r}; one of: perceive, {', '.join(CONDITIONS)}")

    def target(self, condition: str) -> str:
        """The text that a perfect model would say under a condition."""
        if condition == "perceive":
            return self.intermediate.text
        if condition == "cot":
            return f"{self.intermediate.text} {self.wording.answer_marker} {self.answer}"
        if condition in CONDITIONS:
            return self.answer
        raise TaskError(f"unknown condition {condition!r}; one of: perceive, {', '.join(CONDITIONS)}")

    def saying(self, said: Intermediate) -> Item:
        """A copy that remembers what call 1 said, so that call 2 can be put."""
        return replace(self, said=said)

    def _handed_over(self) -> Intermediate:
        if self.said is None:
            raise TaskError(
                f"item {self.id}: the cascaded prompt needs what call 1 said; use item.saying(...) "
                "or run_conditions(...)"
            )
        return self.said
