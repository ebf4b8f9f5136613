"""The benchmark of patching, on a model so small that it takes seconds: what it tells, and whether it is so."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FILE = Path(__file__).parents[1] / "benchmarks" / "patching.py"
KEYS = {"text_grid_speedup", "whole_grid_over_lower_bound", "max_relative_error", "speedup_over", "seconds", "flops"}


def absent(name):
    """As if nothing but nnsight were installed."""
    return importlib.util.find_spec(name) if name == "nnsight" else None


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_of_patching", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FILE.parent))  # as where a script is run
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(benchmark, tmp_path_factory):
    """What `--json` prints last, and the folder of the files."""
    folder = tmp_path_factory.mktemp("results")
    printed = []
    words = ["--shape", "tiny", "--device", "cpu", "--sample", "10", "--repeats", "2", "--plot", "--save", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "RESULTS", folder)
        patch.setattr(sys.modules["_patching_peers"], "find_spec", absent)
        patch.setattr(benchmark, "print", lambda *words, **_: printed.append(words[-1]), raising=False)
        patch.setattr(sys, "argv", ["patching.py", *words])
        benchmark.main()
    return json.loads(printed[-1]), folder


@pytest.fixture(scope="module")
def case(benchmark, tmp_path_factory):
    setting = benchmark.Setting("cpu", torch.float32, tmp_path_factory.mktemp("checkpoint"))
    return benchmark.make_case(benchmark.SHAPES["tiny"], setting)[0]


def test_ours_gives_what_a_full_pass_gives(found):
    result, _ = found
    assert result["exact"]
    assert result["max_relative_error"] <= 1e-5
    assert result["max_relative_error_of"]["nnsight"] <= 1e-5
    assert result["effects"]["median"] > 10 * result["max_relative_error"]  # there is something to get wrong


def test_it_tells_what_it_measured(found):
    result, folder = found
    assert set(result) >= KEYS
    layers, text, positions = (result["shape"][name] for name in ("layers", "text_positions", "positions"))
    assert result["shape"]["text_cells"] == layers * text
    assert result["shape"]["whole_cells"] == layers * positions
    assert result["shape"]["sampled_cells"] == 10
    low, high = result["text_grid_speedup_interval"]
    assert low <= result["text_grid_speedup"] <= high
    assert {"device", "dtype", "threads", "versions"} <= set(result["about"])
    assert {point["axis"] for point in result["sweep"]} == {"layers", "tokens", "cells"}
    assert json.loads((folder / "patching.json").read_text()) == result
    assert (folder / "patching.png").read_bytes().startswith(b"\x89PNG")


def test_a_peer_that_cannot_run_is_told_with_the_reason(benchmark, found, case, monkeypatch):
    over = found[0]["speedup_over"]
    assert over["nnsight"] > 0
    assert over["transformer_lens"] == {"reason": "not installed: pip install transformer-lens"}
    assert over["pyvene"] == {"reason": "not installed: pip install pyvene"}

    def refuse(case):
        raise ValueError("no such\n model")

    monkeypatch.setitem(benchmark.PEERS, "json", ("json", refuse))
    assert benchmark.prepare("json", case) == "ValueError: no such model"


def test_a_way_that_does_something_else_is_seen(benchmark, case):
    """Without the patch, or at the position beside, the log-probability is another."""
    right = benchmark.full_pass(case)
    places = benchmark.text_grid(benchmark.SHAPES["tiny"], case)
    mine = benchmark.ours(case, places).logprob
    ways = {"right": right, "beside": lambda layer, position: right(layer, position - 1)}
    parts = benchmark.run_ways(case, ways, places)
    runs = {name: benchmark.Run.join([parts[name]], mine) for name in ways}
    told = benchmark.told(runs, 1.0, torch.float32)
    assert "reason" not in told["right"]
    assert told["beside"]["reason"]["reason"].startswith("gives something else")


def test_arithmetic_is_what_the_layers_do(benchmark, case):
    """Operations of a cell and of a pass, counted as linear layers do them, beside those of attention."""
    shape = benchmark.SHAPES["tiny"]
    arithmetic = benchmark.Arithmetic(shape, tuple(case.reading.tolist()))
    counted = []

    def count(module, args, output):
        counted.append(2 * args[0].numel() * module.out_features)

    linear = [module for module in case.vlm.model.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [module.register_forward_hook(count) for module in linear]
    case.vlm.answer_logits(case.batch)
    for hook in hooks:
        hook.remove()
    n, patches = case.batch.width, shape.side**2
    attention = shape.layers * 2 * shape.width * n * (n + 1) + shape.tower_layers * 4 * shape.tower_width * patches**2
    embedding = 6 * benchmark.PATCH**2 * shape.tower_width * patches
    assert arithmetic.forward(n) == pytest.approx(sum(counted) + attention + embedding, rel=0.02)


def test_the_bound_falls_where_less_is_left_to_compute(benchmark, case):
    shape = benchmark.SHAPES["tiny"]
    reading = tuple(case.reading.tolist())
    arithmetic = benchmark.Arithmetic(shape, reading)
    cells = np.array([[arithmetic.cell((layer, p)) for p in range(case.batch.width)] for layer in range(shape.layers)])
    tighter = np.array(
        [[arithmetic.cell((layer, p), tighter=True) for p in range(case.batch.width)] for layer in range(shape.layers)]
    )
    assert (np.diff(cells[:-1], axis=1) <= 0).all()
    assert (np.diff(cells[:, : reading[0]], axis=0) < 0).all()
    assert (tighter <= cells).all()
    assert (cells[:, reading[-1] + 1 :] == 0).all()
    # in the last layer but one: all keys and values of what follows, and the whole of what is read
    width, inner, vocab = shape.width, shape.inner, shape.vocab
    start, (first, second) = reading[0], reading
    each = 4 * width**2 + 6 * width * inner + 2 * width * vocab
    attended = 4 * width * (first + 1 + second + 1)
    assert cells[-2, start] == 4 * width**2 * (second + 1 - start) + 2 * each + attended
    # of which one token's queries, keys and values, and its attention to what was there, are known
    assert tighter[-2, start] == cells[-2, start] - 6 * width**2 - 4 * width * second
