"""Activation patching against peers and against arithmetic: `python benchmarks/patching.py --json`.

One process, one model of LLaVA's class with random weights, one pair of prompts with the same text and different
pictures. A cell is a layer's residual stream at a position, which gets its values from the other picture's run; what is
asked of each is the log-probability of the whole answer. Two grids: all layers × the last text positions before the
answer, and all layers × all positions (`--stride`: every so many of them).

- ours: `replay(vlm, batch).score(cells)`, timed whole: with recording the run, and with the cells of its own proof
- full_pass: a forward pass for each cell with a plain torch hook, logits of the answer's tokens only
- transformer_lens: `run_with_hooks` for each cell, as its `generic_activation_patch` does; that one takes no pictures
- nnsight: a trace for each cell
- pyvene: an `IntervenableModel` for each layer, called for each cell; it removes every hook from the model that it is
  given, with them those by which transformers collects what the vision tower gives, and so gets the embeddings instead

The other picture's run is needed by all and timed for none. Peers run a random sample of both grids, in turn, after one
call that does not count; a cell's mean time, times the number of cells, over ours is `text_grid_speedup` (against
full_pass) and `speedup_over` (a peer, same grid), with bootstrap intervals over the sampled cells. A peer that cannot
run is told with the reason. `max_relative_error` is the worst difference of a log-probability from full_pass's, over
it; `effects` say by how much patching changes that at all.

The lower bound counts what any method computes that runs a cell's tokens from the patched one on through the layers
above, all sites being as they are: linear layers, attention to every earlier key, in the last layer keys and values and
the rest where the answer is read, the unembedding there. `whole_grid_over_lower_bound` is our time over these
operations at the rate of the model's own forward pass over a batch. The `tighter` bound leaves out what is known in the
first of these layers: queries, keys and values of later tokens, and their attention to all keys but the patched one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from _patching_peers import PEERS, Case, Way, prepare
from families import LLAVA, write_shape
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from seamscope.experiments.figures._style import COLOURS, blank, styled
from seamscope.hooks import Batch, Edit, Picture, Prompt, Segment, Vlm, capture, load_vlm, replay
from seamscope.probes import bootstrap_interval

RESULTS = Path(__file__).parent / "results"
WORDS = ("what", "is", "the", "sum", "of", "red", "card", "+", "blue", "card", "?")  # each is one token
ANSWER = "4"
SHARP = 2.0  # times as large as others: weights of queries and keys, so that single tokens matter
NEAR = {torch.float32: 1e-4, torch.bfloat16: 0.1}  # a peer further off than that does something else
SEED = 0
PATCH = 14  # pixels of a patch of the picture

Place = tuple[int, int]  # layer, position


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its grids.

    Attributes:
        width, inner, heads, layers: of the decoder.
        tower_width, tower_layers: of the vision tower.
        side: image tokens of a row of the picture.
        words: of the question, a token each.
        vocab: rows of the unembedding.
        text_positions: of the text grid, the last ones before the answer.
        stride: of the positions of the whole grid, from the first on.
    """

    width: int
    inner: int
    heads: int
    layers: int
    tower_width: int
    tower_layers: int
    side: int = 24
    words: int = 36
    vocab: int = 32064
    text_positions: int = 24
    stride: int = 1

    @property
    def settings(self) -> dict[str, Any]:
        """For `write_shape`."""
        pixels = PATCH * self.side
        heads = {"num_attention_heads": self.heads, "num_key_value_heads": self.heads}
        return {
            "config": {
                "vision_config": {
                    **{"hidden_size": self.tower_width, "intermediate_size": 4 * self.tower_width},
                    **{"num_hidden_layers": self.tower_layers, "num_attention_heads": max(self.tower_width // 64, 1)},
                    **{"image_size": pixels, "patch_size": PATCH},
                },
                "text_config": {
                    **{"hidden_size": self.width, "intermediate_size": self.inner, "vocab_size": self.vocab, **heads},
                    "head_dim": self.width // self.heads,
                },
                "image_seq_length": self.side**2,
            },
            "pictures": {"size": {"shortest_edge": pixels}, "crop_size": {"height": pixels, "width": pixels}},
            "processor": {"patch_size": PATCH},
        }


SHAPES = {
    "7b": Shape(width=4096, inner=11008, heads=32, layers=32, tower_width=1024, tower_layers=24),
    "narrow": Shape(width=512, inner=1408, heads=8, layers=12, tower_width=256, tower_layers=4, stride=4),
    "tiny": Shape(
        **{"width": 64, "inner": 160, "heads": 4, "layers": 3, "tower_width": 32, "tower_layers": 2},
        **{"side": 4, "words": 12, "vocab": 512, "text_positions": 4},
    ),
}
assert SHAPES["7b"].settings["config"]["text_config"].items() <= LLAVA["config"]["text_config"].items() | {0: 0}.items()
