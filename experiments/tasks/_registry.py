"""The tasks by name."""

from __future__ import annotations

from typing import Any, Final

from seamscope.hooks import TaskError, choose

from ._cards import CardsSort, CardsSum
from ._counting import Counting
from ._generated import GeneratedTask
from ._jsonl import JsonlTask
from ._rendered_text import RenderedText
from ._task import Task

_TASKS: Final[tuple[GeneratedTask[Any], ...]] = (RenderedText(), Counting(), CardsSort(), CardsSum())
DATA_SETS: Final = tuple(task.name for task in _TASKS)


def generated(name: str) -> GeneratedTask[Any]:
    """The generated task of that name, one of `DATA_SETS`; raises `TaskError` for another."""
    return dict(zip(DATA_SETS, _TASKS, strict=True))[choose("task", name, DATA_SETS, TaskError)]


def get(name: str) -> Task:
    """The generated task of that name, or that of a file: `x.jsonl` or `jsonl:FILE`."""
    if name.startswith("jsonl:") or name.endswith(".jsonl"):
        return JsonlTask(name.removeprefix("jsonl:"))
    return generated(name)
