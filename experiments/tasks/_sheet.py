"""A sheet of items to look at: pictures with boxes, what they show, what is asked, and their partners."""

from __future__ import annotations

from textwrap import wrap
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seamscope.hooks import TaskError

from ._item import Item
from ._style import Look
from ._task import Task

SAME: Final = "#0072B2"  # blue and vermilion of Okabe and Ito: told apart without colour vision too
CHANGED: Final = "#D55E00"
ACROSS: Final = 3  # pairs in a row
SIDE: Final = 1.9  # inches of a picture
LINE: Final = 0.135  # inches of a line of text
LETTERS: Final = 31  # letters in a line under a picture
POINTS: Final = 7.0
LINES: Final = 9  # at most, under a picture


def contact_sheet(
    task: Task, n: int = 12, *, profile: str = "small", seed: int = 0, look: Look | None = None
) -> Figure:
    """Draw `n` items, each beside its counterfactual partner where it has one.

    Boxes are blue, those of objects that the partner changes are vermilion. Under each picture stand its
    intermediate and answer, and the question under the item. A task with fewer items shows all it has.
    """
    n = n if task.size is None else min(n, task.size)
    items = task.items(n, profile_name=profile, seed=seed, look=look)
    panels = [_pair(task, item) for item in items]
    rows = -(-n // ACROSS)
    columns = min(n, ACROSS)
    captions = [[_caption(item, asked=k == 0) for k, item in enumerate(pair)] for pair in panels]
    deep = [
        max(len(lines) for texts in captions[r * ACROSS : (r + 1) * ACROSS] for lines in texts) for r in range(rows)
    ]
    heights = [SIDE + LINE * (lines + 2) for lines in deep]
    width, height = columns * (2 * SIDE + 0.45), sum(heights) + 0.45
    figure = Figure(figsize=(width, height), dpi=150)
    title = f"{task.name} · {profile} · seed {seed}"
    figure.text(0.15 / width, 1 - 0.2 / height, title, size=10, weight="bold", va="center")
    for k, (pair, texts) in enumerate(zip(panels, captions, strict=True)):
        top = height - 0.4 - sum(heights[: k // ACROSS])
        left = (k % ACROSS) * (2 * SIDE + 0.45) + 0.15
        for side, (item, lines) in enumerate(zip(pair, texts, strict=True)):
            x = left + side * (SIDE + 0.1)
            axes = figure.add_axes((x / width, (top - SIDE) / height, SIDE / width, SIDE / height))
            _picture(axes, item, changed=_changed(pair), label="partner" if side else item.id)
            below = (top - SIDE - 0.06) / height
            figure.text(x / width, below, "\n".join(lines), size=POINTS, va="top", linespacing=1.25)
    return figure


def _pair(task: Task, item: Item) -> tuple[Item, ...]:
    try:
        return item, task.partner(item)
    except TaskError:  # a user's file need not have partners
        return (item,)


def _changed(pair: tuple[Item, ...]) -> set[int]:
    if len(pair) == 1:
        return set()
    ours, theirs = (item.intermediate.parts for item in pair)
    return {k for k in range(max(len(ours), len(theirs))) if ours[k : k + 1] != theirs[k : k + 1]}


def _picture(axes: Any, item: Item, *, changed: set[int], label: str) -> None:
    axes.imshow(item.image, interpolation="nearest" if item.image.width < 200 else "antialiased")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="0.8", linewidth=0.5)
    for k, box in enumerate(item.boxes):
        colour, line = (CHANGED, 1.6) if k in changed else (SAME, 0.7)
        corner = (box.left - 0.5, box.top - 0.5)
        wide, high = box.right - box.left, box.bottom - box.top
        axes.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=colour, linewidth=line))
    axes.set_title(label, size=6, color="0.4", loc="left", pad=2)


def _caption(item: Item, *, asked: bool) -> list[str]:
    """The lines under a picture; a text that is too long is cut in its middle part, never the answer."""
    seen = [line for part in item.intermediate.text.splitlines() for line in wrap(part, LETTERS)]
    question = wrap(f"Q: {item.question}", LETTERS) if asked else []
    return [*_cut(seen), *_cut(question), *_cut(wrap(f"A: {item.answer}", LETTERS))]


def _cut(lines: list[str]) -> list[str]:
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], "…"]
