"""The README keeps its word: its Python runs, its commands work, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from seamscope.experiments import _cli
from seamscope.experiments._probing import object_of
from seamscope.experiments.tasks import get

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", TEXT)]
STAND_INS = {"PATH_OR_HUB_ID": "organism"}  # for what a reader puts in
FEW = 20  # items, of which a verdict can be given
TINY = ["--n", "6"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    return [[STAND_INS.get(word, word) for word in words[1:]] for words in lines if words[:1] == ["seamscope"]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_something_to_test() -> None:
    assert len(blocks("python")) >= 1
    assert len(commands()) >= 5
    assert len(LINKS) >= 3


@pytest.mark.parametrize("code", blocks("python"))
def test_the_python_runs(here: Path, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "torch.Size([8, 1, 128])" in capsys.readouterr().out


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one(words: list[str]) -> None:
    """Each line of the README is parsed by the real command, which knows every option and lacks nothing."""
    group, rest = get_command(_cli.app), words
    with group.make_context("seamscope", list(words), resilient_parsing=True) as context:
        name, command, rest = group.resolve_command(context, list(words))  # type: ignore[attr-defined]
        if hasattr(command, "resolve_command") and rest:
            _, command, rest = command.resolve_command(context, rest)
        command.make_context(name, rest, parent=context).close()


@pytest.mark.slow
@pytest.mark.parametrize("words", [each for each in commands() if "--submit" not in each], ids=" ".join)
def test_every_command_works(here: Path, words: list[str]) -> None:
    """All of them are run, on few items and on the organism in the place of the reader's own model.

    tests/experiments/test_slurm.py runs the one that needs a cluster.
    """
    write_records(here / "my_records.jsonl")
    if words[0] == "store":  # of a run that is there
        CliRunner().invoke(_cli.app, ["capture", *TINY, "--out", words[-1]])
    tiny = [] if words[0] in ("doctor", "store") or words == ["tasks"] else TINY
    if words[0] in ("locate", "demo"):
        tiny = ["--n", str(FEW)]
    if words[0] in ("probe", "erase") and "--sites" not in words:
        tiny = [*TINY, "--sites", "lm.[07].resid_post"]
    result = CliRunner().invoke(_cli.app, [*words, *tiny])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout


def test_its_records_are_read(here: Path) -> None:
    (here / "cards").mkdir()
    Image.new("RGB", (200, 100)).save(here / "cards/17.png")
    first, second = (json.loads(block) for block in blocks("json"))
    assert read(here, first) == (["7 of hearts, 2 of spades"], {})
    partner = {**second, "id": "18", "pair": "17", "intermediate": ["8 of hearts", "2 of spades"], "answer": "10"}
    assert read(here, second, partner) == (second["intermediate"], second["variables"])
    assert {object_of(name) for name in second["variables"]} == {0, 1}
    assert len(second["boxes"]) == 2


def read(here: Path, *records: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The objects and variables of the first record."""
    (here / "a.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    item = get("a.jsonl").items(1)[0]
    return list(item.intermediate.parts), dict(item.variables)


def write_records(file: Path) -> None:
    """Cards as a user's own records, each with its partner."""
    task, rows = get("cards.sort"), []
    for item in task.items(FEW):
        pair = [item, task.partner(item)]
        for mine, other in (pair, pair[::-1]):
            picture = file.parent / f"{mine.id}.png"
            mine.image.save(picture)
            rows.append(
                {
                    "id": mine.id,
                    "image": picture.name,
                    "question": mine.question,
                    "intermediate": list(mine.intermediate.parts),
                    "answer": mine.answer,
                    "pair": other.id,
                    "variables": dict(mine.variables),
                    "boxes": [[box.left, box.top, box.right, box.bottom] for box in mine.boxes],
                }
            )
    half = FEW  # the first half are asked for: let them be of different pairs
    rows = [rows[2 * k] for k in range(half)] + [rows[2 * k + 1] for k in range(half)]
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


@pytest.mark.parametrize("link", sorted(set(LINKS)))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize("target", re.findall(r"\bmake (\w+)", "\n".join([*blocks("sh"), TEXT])))
def test_every_make_target_is_one(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
