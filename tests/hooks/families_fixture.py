"""Every family's tiny checkpoint, built once and loaded once, and prompts to try on it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch

from seamscope.hooks import Box, Prompt, Vlm, load_vlm

from ..checkpoints import BUILDERS
from .conftest import ask, picture

ALL = tuple(BUILDERS)
families = pytest.mark.parametrize("name", ALL)
SIZES = ((50, 37), (100, 41), (31, 70))  # (width, height), odd and far from any tile
BOX = Box(left=4, top=5, right=27, bottom=25)  # inside all of them
QUESTION = "what is the sum of seven + two ?"


@cache
def _room() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="seamscope-families-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def checkpoint(name: str, dtype: torch.dtype = torch.float32) -> Path:
    """The folder of a family's checkpoint."""
    return BUILDERS[name](_room() / f"{name}-{dtype}", dtype=dtype)


@cache
def load(name: str, attention: str = "eager", dtype: torch.dtype = torch.float32) -> Vlm:
    """A family's model on the CPU, its self-checks passed; sdpa attention where `attention` is auto and it has that."""
    return load_vlm(checkpoint(name, dtype), device="cpu", attn_implementation=attention, dtype=dtype)


def shown(text: str, seed: int, size: tuple[int, int] = SIZES[0], *boxes: Box) -> Prompt:
    """A prompt with one picture of noise."""
    return ask(text, picture(seed, size=size, boxes=boxes))


def rows_of(vlm: Vlm) -> list[list[Prompt]]:
    """Prompts of unequal length and pictures, in batches that the family takes."""
    one = [shown(QUESTION, 1, SIZES[0], BOX), shown("red card ?", 2, SIZES[1])]
    two = [ask("blue ?", picture(3, size=SIZES[2]), picture(4, size=SIZES[0]))]
    none = [ask("what is three + four ?"), ask("king ?")]
    mixed = [one[0], *none[:1], *two, one[1], *none[1:]]
    return [mixed] if vlm.family.mixed_rows else [one, two, none]
