"""The benchmark of probes, on a store so small that it takes seconds: what it tells, and that both sides agree."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "probes.py"
SIZE = {"d": 48, "rows": 120, "sites": 2, "folds": 2, "strengths": 3, "targets": 2}
KEYS = ("speedup", "max_accuracy_difference", "min_coefficient_cosine", "max_objective_difference")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_probes", FILE)
    assert spec is not None
    assert spec.loader is not None
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
    size = [word for name, value in SIZE.items() for word in (f"--{name}", str(value))]
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "RESULTS", folder)
        patch.setattr(benchmark, "SWEEPS", {"sites": (1, 2, 4), "folds": (2, 3)})
        patch.setattr(benchmark, "print", lambda *words, **_: printed.append(words[-1]), raising=False)
        patch.setattr(sys, "argv", ["probes.py", "--quick", *size, "--plot", "--save", "--json"])
        benchmark.main()
    return json.loads(printed[-1]), folder


def test_both_sides_agree(found):
    result, _ = found
    assert result["converged"]
    assert result["min_coefficient_cosine"] >= 0.999
    assert result["max_objective_difference"] <= 1e-4
    assert result["max_accuracy_difference_at_equal_strengths"] <= 1.5 / SIZE["rows"]
    if result["other_strength_chosen"] == 0:
        assert result["max_accuracy_difference"] <= 1.5 / SIZE["rows"]


def test_it_tells_what_it_measured(found):
    result, folder = found
    assert set(KEYS) <= set(result)
    assert result["shape"] == {**SIZE, "cells": 8, "scikit_learn_fits": 8 * (3 * 3 + 3)}
    assert result["sampled"]["cells"] == 4
    assert set(result["ways"]) == {"careful", "default", "turned"}
    assert {"device", "workers", "versions"} <= set(result["about"])
    assert [(point["axis"], point["value"]) for point in result["sweep"]] == [
        *(("sites", 1), ("sites", 2), ("folds", 2), ("folds", 3))
    ]
    for point in result["sweep"]:
        assert point["speedup"] == pytest.approx(point["scikit_learn"] / point["ours"])
    assert json.loads((folder / "probes.json").read_text()) == result
    assert (folder / "probes.png").read_bytes().startswith(b"\x89PNG")


def test_disagreement_would_be_seen(benchmark, tmp_path):
    """At another strength, or with labels of which one is wrong, the fits do not agree."""
    shape = benchmark.Shape(**SIZE)
    benchmark.write_store(tmp_path / "store.h5", shape)
    with benchmark.open_store(tmp_path / "store.h5") as store:
        cell = benchmark.Cell.of(store, shape, (shape.site_names[1], "card.0.suit"), 0)
    y, C = cell.labels["real"], shape.C[1]
    swapped = y.copy()
    swapped[0] = (y[0] + 1) % 4
    same, weaker, wrong = (
        cell.agreement("real", C, benchmark.Linear.of(benchmark.fit(cell.X, codes, strength, 1e-8)))
        for codes, strength in ((y, C), (y, 3 * C), (swapped, C))
    )
    assert same.cosine > 0.9999
    assert same.objective < 1e-4
    assert weaker.objective > 1e-2
    assert wrong.objective > 1e-3
    assert wrong.cosine < 0.999


def test_what_is_planted_can_be_read(benchmark, tmp_path):
    shape = benchmark.Shape(**{**SIZE, "rows": 400})
    benchmark.write_store(tmp_path / "store.h5", shape)
    table = benchmark.ours(tmp_path / "store.h5", shape, 1)[0]
    accuracy = table.groupby(["site", "target"])["accuracy"].mean()
    assert accuracy["lm.1.resid_post", "card.0.suit"] > 0.8
    assert accuracy["lm.0.resid_post", "card.0.rank"] < 0.3 < accuracy["lm.1.resid_post", "card.0.rank"]
    with benchmark.open_store(tmp_path / "store.h5") as store:
        spread = np.sort(store.read("lm.0.resid_post", "last", "direct").values.float().std(0).numpy())
    assert spread[-1] > 10 * spread[-2]
