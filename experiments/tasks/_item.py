"""One example of a task, and the words in which it is put to a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from PIL.Image import Image

from seamscope.hooks import Box, Picture, Prompt, Segment, TaskError

CONDITIONS: Final = ("direct", "cascaded", "oracle", "cot")


@dataclass(frozen=True, kw_only=True)
class Intermediate:
    """What the visual skill must hand over: one text per object, and the text that joins them."""

    parts: tuple[str, ...]
    separator: str = " "

    @property
    def text(self) -> str:
        """The parts joined, as call 1 of a cascade should say them."""
        return self.separator.join(self.parts)

    def segments(self) -> tuple[Segment, ...]:
        """The text as prompt segments: part k is the span `intermediate.k`, the whole is `intermediate`."""
        pieces: list[Segment] = []
        for k, part in enumerate(self.parts):
            if k:
                pieces.append(Segment(self.separator, ("intermediate",)))
            pieces.append(Segment(part, ("intermediate", f"intermediate.{k}")))
        return tuple(pieces)


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

    `variables` are what probes predict (name to label); `types` give, for each variable, the finer identity to
    which a control task assigns random labels (Hewitt & Liang, 1909.03368). An item and its counterfactual
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
        """The user turn of a condition, or of `perceive` (call 1 of the cascade); `cascaded` is its call 2."""
        picture = (Picture(image=self.image, boxes=self.boxes),)
        words = self.wording
        if condition == "perceive":
            return Prompt(segments=(Segment(words.perceive, ("question",)),), pictures=picture)
        if condition in ("direct", "cot"):
            template = words.direct if condition == "direct" else words.cot
            return Prompt(segments=words.fill(template, intermediate=(), question=self.question), pictures=picture)
        if condition in ("oracle", "cascaded"):
            handed = self.intermediate if condition == "oracle" else self._handed_over()
            return Prompt(
                segments=words.fill(words.reason, intermediate=handed.segments(), question=self.question)
            )
        raise TaskError(f"unknown condition {condition!r}; one of: perceive, {', '.join(CONDITIONS)}")

    def target(self, condition: str) -> str:
        """The text that a perfect model would say under a condition."""
        if condition == "perceive":
            return self.intermediate.text
        if condition == "cot":
            return f"{self.intermediate.text} {self.wording.answer_marker} {self.answer}"
        return self.answer

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
