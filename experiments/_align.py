"""Which span of one run answers to which span of another."""

from __future__ import annotations

from typing import Final

# what an experiment writes to, by name: each expands to spans of the run that is patched
READING: Final = ("question", "last", "answer")
SPAN_SETS: Final = ("objects", "image", "question", "last", "answer", "reading", "objects+reading", "prompt")
TEXT: Final = {"oracle", "cascaded"}


def expand(name: str, condition: str, *, objects: int) -> list[str]:
    """The spans of a span set under a condition; objects stand in the image, or in the intermediate's words."""
    if name == "objects":
        stem = "intermediate" if condition in TEXT else "image.object"
        return [f"{stem}.{k}" for k in range(objects)]
    if name == "image":
        return ["intermediate" if condition in TEXT else "image"]
    if name == "reading":
        return list(READING)
    if "+" in name:
        return [span for part in name.split("+") for span in expand(part, condition, objects=objects)]
    return [name]


def aligned(name: str, source: str, target: str, *, objects: int) -> list[tuple[str, str]]:
    """Pairs (source span, target span) of a span set across two conditions.

    `image.object.k ↔ intermediate.k`, `image ↔ intermediate`, every other span ↔ itself.
    """
    return list(
        zip(
            expand(name, source, objects=objects),
            expand(name, target, objects=objects),
            strict=True,
        )
    )
