"""Imports run up the table of rooms only, through what a room offers; and each room offers what it says."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "hooks": set(),
    "activations": {"hooks"},
    "probes": {"hooks", "activations"},
    "experiments": {"hooks", "activations", "probes"},
}
FILES = [file.relative_to(ROOT) for room in MAY_IMPORT for file in sorted((ROOT / room).rglob("*.py"))]
OFFERING = ["experiments", "experiments.figures", "experiments.organism", "experiments.tasks"]


def imported(source: str, package: str) -> Iterator[str]:
    """The absolute names of all modules that a file of a package imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def offences(source: str, package: str) -> list[str]:
    """Imports of a file that go down the table, or around what another room offers."""
    room = package.split(".")[1]
    wrong = []
    for name in set(imported(source, package)):
        head, *rest = name.split(".")
        if head in MAY_IMPORT:
            wrong.append(f"{name}: the rooms are imported as seamscope.{head}")
        elif head == "seamscope" and rest[:1] != [room]:
            if not rest or rest[0] not in MAY_IMPORT[room]:
                wrong.append(f"{name}: {room} may import {sorted(MAY_IMPORT[room]) or 'no other room'}")
            elif any(part.startswith("_") for part in rest):
                wrong.append(f"{name}: private to {rest[0]}")
    return wrong


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_run_up_the_table(file: Path) -> None:
    package = ".".join(["seamscope", *file.parts[:-1]])
    assert offences((ROOT / file).read_text(encoding="utf-8"), package) == []


def test_every_room_was_read() -> None:
    assert {file.parts[0] for file in FILES} == set(MAY_IMPORT)
    assert len(FILES) > 40


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from seamscope.experiments import tasks", "seamscope.hooks"),
        ("import seamscope.probes as p", "seamscope.activations"),
        ("def f():\n    from seamscope.activations import Store", "seamscope.hooks"),
        ("from ..probes import summarise", "seamscope.hooks"),
        ("from ...probes import summarise", "seamscope.hooks.deep"),
        ("from seamscope import experiments", "seamscope.probes"),
        ("from seamscope.hooks._site import Site", "seamscope.probes"),
        ("from seamscope.hooks import _site", "seamscope.experiments.tasks"),
        ("import probes", "seamscope.experiments"),
        ("import seamscope", "seamscope.hooks"),
    ],
)
def test_the_check_sees_what_is_wrong(source: str, package: str) -> None:
    assert offences(source, package)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from seamscope.hooks import Site", "seamscope.probes"),
        ("from seamscope.hooks._site import Site", "seamscope.hooks"),
        ("from ._site import Site", "seamscope.hooks"),
        ("from .._run import Run", "seamscope.experiments.tasks"),
        ("from . import tasks\nimport torch", "seamscope.experiments"),
    ],
)
def test_the_check_lets_pass_what_is_right(source: str, package: str) -> None:
    assert offences(source, package) == []


def sort_key(name: str) -> tuple[int, str]:
    """Constants, then classes, then the rest: the order that ruff gives to `__all__`."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("name", OFFERING)
def test_all_is_what_is_public(name: str) -> None:
    """`__all__` holds exactly the public names that the room's own modules gave it, in order."""
    room = importlib.import_module(f"seamscope.{name}")
    source = ast.parse(Path(str(room.__file__)).read_text(encoding="utf-8"))
    given = [
        alias.asname or alias.name
        for node in source.body
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    ]
    given += [node.name for node in source.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert set(room.__all__) == {each for each in given if not each.startswith("_")}
    assert list(room.__all__) == sorted(room.__all__, key=sort_key)
    assert all(hasattr(room, each) for each in room.__all__)
