"""The page on adding a family keeps its word: its code runs, and gives what the page says and the family known here."""

from __future__ import annotations

import contextlib
import io
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from seamscope.hooks import Box, Family, Picture, Prompt, Segment, load_vlm
from seamscope.hooks.families import Layout, grid

from .checkpoints import BUILDERS

PAGE = Path(__file__).parents[1] / "docs" / "add_a_family.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
STEPS = [(code, expected) for (kind, code), (_, expected) in pairwise(BLOCKS) if kind == "python"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return BUILDERS["qwen2_vl"](tmp_path_factory.mktemp("unknown"))


@pytest.fixture(scope="module")
def walked(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The page's names after all of its code was run, and what each block printed."""
    scope: dict[str, Any] = {"__name__": "page", "checkpoint": folder}
    printed = []
    for code, _ in STEPS:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(code, str(PAGE), "exec"), scope)
        printed.append(said.getvalue())
    return scope, printed


def test_the_page_is_code_and_what_it_prints() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", "text"] * len(STEPS)
    assert len(STEPS) >= 6


@pytest.mark.parametrize("step", range(len(BLOCKS) // 2))
def test_each_step_says_what_the_page_says(step: int, walked: tuple[dict[str, Any], list[str]]) -> None:
    """Where the page breaks off, the rest may be anything: sizes are those of the checkpoint."""
    expected, said = STEPS[step][1].splitlines(), walked[1][step].splitlines()
    assert len(said) == len(expected)
    assert all(line.startswith(wanted) for line, wanted in zip(said, expected, strict=True)), (said, expected)


def test_the_table_is_small(walked: tuple[dict[str, Any], list[str]]) -> None:
    """What a family needs: its functions and its table."""
    parts = [code for code, _ in STEPS if re.search(r"^(def (views|layout|extra)|QWEN2_VL)", code, flags=re.MULTILINE)]
    kept = re.findall(
        r"^(?:def (?:views|layout|extra)\(|QWEN2_VL = ).*?(?=^\S(?!\)))",
        "\n".join(parts),
        flags=re.MULTILINE | re.DOTALL,
    )
    lines = [line for part in kept for line in part.splitlines() if line.strip()]
    assert len(kept) == 4
    assert len(lines) <= 45


def test_the_family_is_the_one_that_is_known_here(folder: Path, walked: tuple[dict[str, Any], list[str]]) -> None:
    """The same spans in every stack, and the same logits, for pictures of odd sizes."""
    ours, known = load_vlm(folder, family=walked[0]["QWEN2_VL"], check=False), load_vlm(folder, check=False)
    assert ours.family is not known.family
    prompts = [asked(90, 61), asked(40, 150)]
    mine, theirs = ours.encode(prompts), known.encode(prompts)
    assert spans(mine) == spans(theirs)
    torch.testing.assert_close(ours.forward(mine), known.forward(theirs), rtol=0, atol=0)


def test_the_order_is_seen_where_it_is_wrong(folder: Path, walked: tuple[dict[str, Any], list[str]]) -> None:
    """A tower whose patches are taken to be row by row passes every self-check, but not the page's own test."""
    scope, right = walked[0], walked[0]["layout"]

    def raster(model: Any, processor: Any, inputs: Any, n: int) -> Layout:
        made, patch = right(model, processor, inputs, n), model.config.vision_config.patch_size
        rows, columns = (int(side) for side in inputs["image_grid_thw"][0, 1:])
        return Layout(vision=grid(0, rows=rows, columns=columns, cell=patch), projector=made.projector, lm=made.lm)

    wrong = load_vlm(folder, family=scope["replace"](scope["QWEN2_VL"], layout=raster))
    before, _ = scope["entering"](wrong, scope["plain"])
    after, span = scope["entering"](wrong, scope["painted"], scope["box"])
    changed = (before != after).any(dim=1).nonzero().flatten()
    assert sorted(changed.tolist()) != sorted(span.tolist())


def test_a_family_may_be_given_for_a_known_model(folder: Path) -> None:
    """What is given wins over what is known: the plain table does not fit this model."""
    with pytest.raises(Exception, match="has no projector under any of the names"):
        load_vlm(folder, family=Family(name="plain", model_types=("qwen2_vl",)))


def asked(width: int, height: int) -> Prompt:
    box = Box(left=width // 3, top=height // 2, right=width - 3, bottom=height - 5)
    picture = Picture(image=Image.linear_gradient("L").resize((width, height)).convert("RGB"), boxes=(box,))
    return Prompt(segments=(Segment("what is the sum ?", ("question",)),), pictures=(picture,))


def spans(batch: Any) -> list[Any]:
    stacks = [batch.spans, *(batch.visual.spans[stack] for stack in ("vision", "projector"))]
    return [{name: where.tolist() for name, where in row.items()} for rows in stacks for row in rows]
