"""The known pitfalls, by number: the naive way goes wrong on a real family, the library's way does not.

Each test writes the naive way out in a few lines and asserts how far it misses, so it fails where that would be right.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pandas as pd
import pytest
import torch
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn

from seamscope.activations import Schema, create_store
from seamscope.hooks import Activations, Batch, Patch, Ragged, SiteError, Vlm, capture, knockout, load_vlm, patch

from .conftest import ask, footprint, held, picture
from .families_fixture import QUESTION, SIZES, checkpoint, shown
from .families_oracle import plain_inputs, plain_logits, plain_score
from .test_devices import spread

CLOSE = 1e-4  # in logits of about 5; two ways to compute the same differ by less
ALIKE = [shown(QUESTION, 1), shown(QUESTION, 2)]  # the same text about two pictures
UNLIKE = [shown(QUESTION, 1), shown("red card ?", 2)]


def fresh(name: str, **settings: Any) -> Vlm:
    """A model of its own, for a test that leaves traces."""
    return load_vlm(checkpoint(name), **{"device": "cpu", "attn_implementation": "eager", "check": False, **settings})


load = cache(fresh)


@pytest.fixture
def llava() -> Vlm:
    return load("llava")


def far(one: Tensor, other: Tensor) -> float:
    """The largest difference."""
    return float((one.detach().float() - other.detach().float()).abs().max())


def exchanged(value: Tensor) -> Tensor:
    """What belongs to two prompts, the other way round; some towers put both into one row."""
    return torch.cat(value.chunk(2)[::-1])


@contextmanager
def on_outputs(*modules: nn.Module, hook: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Let a function see what modules give, and replace it, as a hook that is simply appended does."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(held(module.register_forward_hook(lambda m, i, output: hook(output))))
        yield


def test_pitfall_01_output_0_is_a_row_of_the_batch(llava: Vlm) -> None:
    batch = llava.encode(UNLIKE)
    plain, block = llava.forward(batch), llava.anatomy.layers[1].block
    with held(block.register_forward_hook(lambda m, i, output: output[0].zero_() and None)):
        naive = llava.forward(batch)
    assert far(naive[0], plain[0]) > 1
    assert torch.equal(naive[1], plain[1]), "the naive way should have left the second row as it was"
    with patch(llava, Patch("lm.1.resid_post", torch.zeros_like)), capture(llava, "lm.1.resid_post") as acts:
        ours = llava.forward(batch)
    assert min(far(ours[row], plain[row]) for row in (0, 1)) > 1
    assert acts["lm.1.resid_post"].shape == (2, batch.width, llava.d_model)
