"""Activation patching against peers and against arithmetic: `python benchmarks/patching.py --json`.

One process, one model of LLaVA's class with random weights, one pair of prompts with the same text and different
pictures. A cell is a layer's residual stream at a position, which gets its values from the other picture's run; what is
asked of each is the log-probability of the whole answer. Two grids: all layers × the last text positions before the
answer, and all layers × all positions (`--stride`: every so many of them).

- ours: `replay(vlm, batch).score(cells)`, timed whole, with recording the run; `..._proven` also with its own proof, a
  cell run both ways, which a sweep makes on the 1st, 2nd, 4th, 8th ... of its prompts
- full_pass: a forward pass for each cell with a plain torch hook, logits of the answer's tokens only
- transformer_lens: `run_with_hooks` for each cell, as its `generic_activation_patch` does; that one takes no pictures
- nnsight: a trace for each cell
- pyvene: an `IntervenableModel` for each layer, called for each cell; it removes every hook from the model that it is
  given, with them those by which transformers collects what the vision tower gives, and so gets the embeddings instead

The other picture's run is needed by all and timed for none. Peers run a random sample of both grids, in turn, after one
call that does not count; a cell's mean time, times the number of cells, over ours is `text_grid_speedup` (against
full_pass) and `speedup_over` (a peer, same grid), with bootstrap intervals over the sampled cells. A peer that
cannot run is told with the reason.
`max_relative_error` is the worst difference of a log-probability from full_pass's, over it; `effects` say by how much
patching changes that at all.

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
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from _patching_peers import PEERS, Case, Way, full_pass, prepare
from families import write_shape
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


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of the decoder of a shape on one prompt, whose answer is read from some positions.

    A patched run needs no token behind the last of them.
    """

    shape: Shape
    reading: tuple[int, ...]

    @cached_property
    def _needed(self) -> NDArray[np.float64]:
        """Of a layer, for all tokens from each one on, (pos + 1,)."""
        tokens = np.arange(self.reading[-1] + 1)
        each = self._projections + self._mlp + self._keys(tokens + 1)
        return np.append(each[::-1].cumsum()[::-1], 0.0)

    @property
    def _projections(self) -> float:
        """Queries, keys, values and what is made of the heads, of a token."""
        return 8.0 * self.shape.width**2

    @property
    def _mlp(self) -> float:
        return 6.0 * self.shape.width * self.shape.inner

    def _keys(self, count: Any) -> Any:
        """Attention of a token to so many keys."""
        return 4.0 * self.shape.width * count

    def cell(self, place: Place, *, tighter: bool = False) -> float:
        """Of a patched run."""
        layer, start = place
        square, left = self.shape.width**2, self.reading[-1] + 1 - start
        unembedding = 2.0 * self.shape.width * self.shape.vocab
        read = np.array([token for token in self.reading if token >= start])
        if layer == self.shape.layers - 1:
            return unembedding * (start in self.reading)
        if not len(read):
            return 0.0
        last = 4 * square * left + sum(4 * square + self._mlp + self._keys(token + 1) for token in read)
        total = (self.shape.layers - 2 - layer) * self._needed[start] + last + unembedding * len(read)
        return float(total - self._known(layer, read, start, left) if tighter else total)

    def _known(self, layer: int, read: NDArray[np.int64], start: int, left: int) -> float:
        """Of the first layer, what is as in the unpatched run: of later tokens, what the patched one has no part in."""
        square, later = self.shape.width**2, np.arange(start + 1, self.reading[-1] + 1)
        if layer == self.shape.layers - 2:
            later = read[read > start]
            return float(4 * square * (left - 1) + 2 * square * len(later) + self._keys(later).sum())
        return float(6 * square * (left - 1) + self._keys(later).sum())

    def cells(self, places: Sequence[Place], *, tighter: bool = False) -> float:
        """Of patched runs."""
        return sum(self.cell(place, tighter=tighter) for place in places)

    def forward(self, positions: int) -> float:
        """Of the whole model's run of a prompt with one picture, logits of the answer's tokens only."""
        shape, patches = self.shape, self.shape.side**2
        token = self._projections + self._mlp
        decoder = shape.layers * (positions * token + self._keys(positions * (positions + 1) / 2))
        tower = shape.tower_layers * (24 * shape.tower_width**2 * (patches + 1) + 4 * shape.tower_width * patches**2)
        embedding = 2 * 3 * PATCH**2 * shape.tower_width * patches
        projector = 2 * (shape.tower_width + shape.width) * shape.width * patches
        return float(decoder + tower + embedding + projector + 2 * shape.width * shape.vocab * len(self.reading))


@dataclass(frozen=True)
class Setting:
    """Where models run, in which type, and where their checkpoints lie."""

    device: str
    dtype: torch.dtype
    scratch: Path


def make_case(shape: Shape, setting: Setting) -> tuple[Case, Batch]:
    """The model, the prompt, and the other run; and a batch of the same prompts, again and again."""
    folder = Path(tempfile.mkdtemp(dir=setting.scratch))
    write_shape(folder, "llava", shape.settings, shape.layers)
    vlm = load_vlm(folder, untrained=True, device=setting.device, dtype=setting.dtype)
    redraw(vlm)
    rng = np.random.default_rng(SEED)
    text = " ".join(WORDS[k % len(WORDS)] for k in range(shape.words))
    pixels = (rng.integers(0, 256, (PATCH * shape.side, PATCH * shape.side, 3), dtype=np.uint8) for _ in range(2))
    pair = [
        Prompt(segments=(Segment(text, ("question",)),), pictures=(Picture(image=Image.fromarray(each)),))
        for each in pixels
    ]
    base, source = (vlm.encode([prompt], answers=[ANSWER]) for prompt in pair)
    with capture(vlm, "lm.*.resid_post") as acts:
        vlm.forward(source, logits_to_keep=1)
    values = [acts[f"lm.{layer}.resid_post"][0].to(vlm.device) for layer in range(vlm.n_layers)]
    return Case(vlm, base, values), vlm.encode(pair * 4, answers=[ANSWER] * 8)


@torch.no_grad()
def redraw(vlm: Vlm) -> None:
    """Weights of linear layers as wide as keeps what they make at the scale of what they are given."""
    rng = torch.Generator(vlm.device).manual_seed(SEED)
    for name, module in vlm.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            scale = SHARP if name.endswith(("q_proj", "k_proj")) else 1.0
            module.weight.normal_(0, scale * module.in_features**-0.5, generator=rng)


def text_grid(shape: Shape, case: Case) -> list[Place]:
    """All layers, and the last text positions before the answer."""
    end = int(case.batch.positions("answer")[0][0])
    return [(layer, position) for layer in range(shape.layers) for position in range(end - shape.text_positions, end)]


def whole_grid(shape: Shape, case: Case) -> list[Place]:
    """All layers, and all positions, or every so many of them."""
    positions = range(0, case.batch.width, shape.stride)
    return [(layer, position) for layer in range(shape.layers) for position in positions]


def timed(case: Case, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    _wait(case)
    started = time.perf_counter()
    found = work()
    _wait(case)
    return time.perf_counter() - started, found


def _wait(case: Case) -> None:
    if case.vlm.device.type == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Ours:
    """What a grid took, in seconds, and the log-probabilities of its cells.

    Attributes:
        record: of the unpatched run.
        score: of the cells, with those that are also run as whole passes.
        base: the log-probability of the unpatched run.
        exact: whether replay took its own result for equal to the whole passes'.
    """

    record: float
    score: float
    logprob: dict[Place, float]
    base: float
    exact: bool

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.record + self.score


def ours(case: Case, places: Sequence[Place], **options: Any) -> Ours:
    """Patch all cells our way."""
    cells = [
        Edit(
            site=f"lm.{layer}.resid_post",
            positions=torch.tensor([position]),
            values=case.values[layer][position : position + 1],
        )
        for layer, position in places
    ]
    record, run = timed(case, lambda: replay(case.vlm, case.batch, **options))
    score, found = timed(case, lambda: run.score(cells))
    logprob = dict(zip(places, found.logprob.tolist(), strict=True))
    return Ours(record=record, score=score, logprob=logprob, base=float(run.base.logprob), exact=run.exact)


@dataclass(frozen=True)
class Run:
    """What a way took for each sampled cell, in seconds, and by how much its log-probabilities are off, relative."""

    seconds: NDArray[np.float64]
    off: NDArray[np.float64]

    @classmethod
    def join(cls, parts: Sequence[dict[Place, tuple[float, float]]], mine: dict[Place, float]) -> Run:
        """Of seconds and log-probabilities by cell, beside ours."""
        every = [(place, *each) for part in parts for place, each in part.items()]
        off = [abs(mine[place] - theirs) / abs(theirs) for place, _, theirs in every]
        return cls(np.array([seconds for _, seconds, _ in every]), np.array(off))


def run_ways(case: Case, ways: dict[str, Way], places: Sequence[Place]) -> dict[str, dict[Place, tuple[float, float]]]:
    """Seconds and log-probabilities of some cells in every way, in turn; each way is called once before."""
    found: dict[str, dict[Place, tuple[float, float]]] = {name: {} for name in ways}
    for number, place in enumerate(places):
        for name, way in ways.items():
            if number == 0:
                way(*place)
            seconds, logits = timed(case, partial(way, *place))
            found[name][place] = seconds, case.logprob(logits)
    return found


def draw_places(grids: Sequence[Sequence[Place]], sample: int) -> list[Place]:
    """Some cells of each grid, at random."""
    rng = np.random.default_rng(SEED)
    return [
        grid[k] for grid in grids for k in rng.choice(len(grid), min(sample // len(grids), len(grid)), replace=False)
    ]


def compare(shape: Shape, setting: Setting, *, sample: int, repeats: int, swept: bool) -> dict[str, Any]:
    """Everything about one shape."""
    case, many = make_case(shape, setting)
    arithmetic = Arithmetic(shape, tuple(case.reading.tolist()))
    grids = {"text": text_grid(shape, case), "whole": whole_grid(shape, case)}
    prepared = {name: prepare(name, case) for name in PEERS}
    ways = {"full_pass": full_pass(case), **{name: way for name, way in prepared.items() if not isinstance(way, str)}}
    ours(case, grids["text"][:1])  # what is loaded at first use is not timed
    rate(case, many, arithmetic)
    places = draw_places(list(grids.values()), sample)
    rates, text, proven, parts = [], [], [], []
    for part in range(repeats):  # in turn, as other work on the machine comes and goes
        rates.append(rate(case, many, arithmetic))
        text.append(ours(case, grids["text"], proofs=0))
        case.vlm.proofs.asked.clear()
        proven.append(ours(case, grids["text"]))
        parts.append(run_ways(case, ways, places[part::repeats]))
    whole = ours(case, grids["whole"])
    rates.append(rate(case, many, arithmetic))
    runs = {name: Run.join([part[name] for part in parts], {**whole.logprob, **text[0].logprob}) for name in ways}
    attainable = statistics.median(rates)
    seconds = statistics.median(each.seconds for each in text)
    slow = statistics.median(each.seconds for each in proven)
    bounds = {name: arithmetic.cells(places) / attainable for name, places in grids.items()}
    tighter = {name: arithmetic.cells(places, tighter=True) / attainable for name, places in grids.items()}
    alone, speedups = runs["full_pass"].seconds, told(runs, len(grids["text"]) / seconds, setting.dtype)
    reasons = {name: {"reason": reason} for name, reason in prepared.items() if isinstance(reason, str)}
    return {
        "text_grid_speedup": speedups["full_pass"]["speedup"],
        "text_grid_speedup_interval": speedups["full_pass"]["interval"],
        "text_grid_speedup_proven": _round(alone.mean() * len(grids["text"]) / slow),
        "whole_grid_over_lower_bound": _round(whole.seconds / bounds["whole"]),
        "max_relative_error": float(runs["full_pass"].off.max()),
        "speedup_over": {
            name: reasons.get(name) or speedups[name].get("reason") or speedups[name]["speedup"] for name in PEERS
        },
        "speedup_over_interval": {name: each["interval"] for name, each in speedups.items()},
        "max_relative_error_of": {name: float(each.off.max()) for name, each in runs.items()},
        "whole_grid_speedup": _round(alone.mean() * len(grids["whole"]) / whole.seconds),
        "whole_grid_speedup_interval": _interval(alone * len(grids["whole"]) / whole.seconds),
        "text_grid_over_lower_bound": _round(seconds / bounds["text"]),
        "whole_grid_over_tighter_bound": _round(whole.seconds / tighter["whole"]),
        "text_grid_over_tighter_bound": _round(seconds / tighter["text"]),
        "exact": whole.exact and all(each.exact for each in proven),
        "effects": effects({**whole.logprob, **text[0].logprob}, whole.base),
        "seconds": {
            "text_grid": _round(seconds),
            "text_grid_each": [_round(each.seconds) for each in text],
            "text_grid_proven": _round(slow),
            "text_grid_lower_bound": _round(bounds["text"]),
            "record": _round(statistics.median(each.record for each in text)),
            "whole_grid": _round(whole.seconds),
            "whole_grid_lower_bound": _round(bounds["whole"]),
            "a_cell": {name: _round(each.seconds.mean()) for name, each in runs.items()},
            "a_pass_in_a_batch": _round(arithmetic.forward(case.batch.width) / attainable),
        },
        "flops": {
            "forward": arithmetic.forward(case.batch.width),
            "text_grid": arithmetic.cells(grids["text"]),
            "whole_grid": arithmetic.cells(grids["whole"]),
            "per_second": attainable,
            "per_second_each": rates,
        },
        "shape": {
            **asdict(shape),
            "positions": case.batch.width,
            "answer_tokens": len(case.reading),
            "text_cells": len(grids["text"]),
            "whole_cells": len(grids["whole"]),
            "sampled_cells": len(places),
        },
        "sweep": list(sweep(shape, case, setting)) if swept else [],
    }


def rate(case: Case, many: Batch, arithmetic: Arithmetic) -> float:
    """Operations that the model's forward pass of a batch does in a second."""
    seconds, _ = timed(case, lambda: case.vlm.answer_logits(many))
    return len(many) * arithmetic.forward(many.width) / seconds


def told(runs: dict[str, Run], scale: float, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """How many times longer each way takes; with a reason if it computes something else."""
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        found[name] = {"speedup": _round(run.seconds.mean() * scale), "interval": _interval(run.seconds * scale)}
        if not run.off.max() <= NEAR[dtype]:
            found[name]["reason"] = {
                "reason": f"gives something else: off by {run.off.max():.1e} of the log-probability"
            }
    return found


def effects(logprob: dict[Place, float], base: float) -> dict[str, float]:
    """By how much patching changes the log-probability, relative: quantiles over all cells."""
    changes = np.abs(np.array(list(logprob.values())) - base) / abs(base)
    return {name: float(np.quantile(changes, share)) for name, share in (("median", 0.5), ("q90", 0.9), ("max", 1.0))}


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _interval(values: NDArray[np.float64]) -> list[float]:
    return [_round(end) for end in bootstrap_interval(values)]


def sweep(shape: Shape, case: Case, setting: Setting) -> Iterator[dict[str, Any]]:
    """What the text grid costs ours and in full passes, along the number of layers, of tokens, and of cells."""
    varied = {
        "layers": [replace(shape, layers=-(-shape.layers * part // 4)) for part in (1, 2, 3, 4)],
        "tokens": [replace(shape, side=-(-shape.side * part // 4)) for part in (1, 2, 3, 4)],
        "cells": [replace(shape, text_positions=-(-shape.text_positions * part // 8)) for part in (1, 2, 4, 8)],
    }
    for axis, several in varied.items():
        for one in dict.fromkeys(several):
            same = replace(one, text_positions=shape.text_positions) == shape
            here = case if same else make_case(one, setting)[0]
            places = text_grid(one, here)
            run = full_pass(here)
            run(*places[0])
            passes = [timed(here, partial(run, *place))[0] for place in places[:3]]
            value = {"layers": one.layers, "tokens": here.batch.width, "cells": len(places)}[axis]
            mine, full = ours(here, places).seconds, statistics.mean(passes) * len(places)
            yield {"axis": axis, "value": value, "ours": mine, "full_pass": full, "speedup": full / mine}


@styled
def draw(points: pd.DataFrame) -> Figure:
    """Seconds along every axis, ours and a full pass for each cell."""
    figure = blank(1.9, width=6.8)
    axes = figure.subplots(1, points["axis"].nunique(), sharey=True, squeeze=False)[0]
    lines = (("full_pass", "a full pass per cell", COLOURS["direct"]), ("ours", "replay", COLOURS["cascaded"]))
    for ax, (axis, part) in zip(axes, points.groupby("axis", sort=False), strict=True):
        for column, name, colour in lines:
            ax.plot(part["value"], part[column], "o-", color=colour, label=name)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xticks(sorted(part["value"]), labels=[str(each) for each in sorted(part["value"])])
        ax.minorticks_off()
        ax.set_xlabel(axis)
    axes[0].set_ylabel("seconds")
    axes[1].legend(loc="center")
    return figure


def main() -> None:
    """Measure and print; with `--save`, write results/patching.json, with `--plot` results/patching.png."""
    options = _options()
    transformers.utils.logging.disable_progress_bar()
    given = {key: getattr(options, key) for key in Shape.__dataclass_fields__ if getattr(options, key) is not None}
    device = options.device if options.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        found = compare(
            replace(SHAPES[options.shape], **given),
            Setting(device, getattr(torch, options.dtype), Path(scratch)),
            **{"sample": options.sample, "repeats": options.repeats, "swept": options.sweep or options.plot},
        )
    found["about"] = _about(options, device)
    print(json.dumps(found, indent=1), flush=True)
    if options.plot:
        draw(pd.DataFrame(found["sweep"])).savefig(RESULTS / "patching.png", dpi=200, metadata={"Software": None})
    if options.keep:
        (RESULTS / "patching.json").write_text(json.dumps(found, indent=1) + "\n")
    if options.json:
        print(json.dumps(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="narrow")
    for name in Shape.__dataclass_fields__:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{name} of the shape")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--sample", type=int, default=24, help="cells that are run in every way, half of each grid")
    parser.add_argument("--repeats", type=int, default=3, help="of the text grid, ours")
    parser.add_argument("--sweep", action="store_true", help="along layers, tokens and cells; --plot does it, too")
    parser.add_argument("--plot", action="store_true", help="write results/patching.png")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    # nnsight gives every object a method `save`, which argparse would take for the option
    parser.add_argument("--save", dest="keep", action="store_true", help="write results/patching.json")
    return parser.parse_args()


def _about(options: argparse.Namespace, device: str) -> dict[str, Any]:
    where = torch.cuda.get_device_name() if device == "cuda" else f"cpu, {os.cpu_count()} cores"
    packages = ("torch", "transformers", *(package for package, _ in PEERS.values()))
    return {
        "device": f"{where}, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "dtype": options.dtype,
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
