"""The locator put to models of which we know where they lose what they see; and the ways it is done today.

    python benchmarks/planted_faults.py --workers 2 --save --plot --json

Each model is one run of the locator on 200 items in a folder of its own (`--out`); interrupted, the same command goes
on. The test half, chosen by a hash of the names, was not looked at while the locator was made; `--half development` is
the other. `class_accuracy`: the class is right; "cannot tell" is wrong. Of two losses the locator has to name both
classes and of one no second; of the baselines, which name one, the first is enough. `layer_within_one`: of the models
that lose it at a known layer, those of which the verdict names that layer or one beside it, in the same stack; a wrong
class is wrong; `by_base` is the class by the model that was altered, as those that share it are no independent samples.
`false_alarm_rate`: of the healthy models, those in which a loss is claimed; to these belong `shaken` ones, whose
weights are a little off, on items of their own, which count nowhere else.
`expected_calibration_error`: over ten bins of the stated confidence, of the verdicts that claim anything. Intervals are
exact binomial ones (95 %), that of the calibration error is a bootstrap over models. `baselines` are told by the same
answers whether there is a loss of theirs to locate; each then has its own method alone.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from _about import about
from _planted_baselines import METHODS, baselines
from _planted_figure import draw
from scipy.stats import binomtest

from seamscope.experiments import Run, Settings, Study, Thresholds, Verdict, locate
from seamscope.experiments._run import replacing
from seamscope.experiments.organism import Fault, faults
from seamscope.hooks import RunError, Site
from seamscope.probes import side_by_side

RESULTS: Final = Path(__file__).parent / "results"
NOT_OURS: Final = ("none", "text_skill", "format")
BINS: Final = 10
HALVES: Final = {"test": (True,), "development": (False,), "both": (True, False)}


def examine(name: str, *, out: Path, n: int) -> dict[str, Any]:
    """One model: what is true of it, what the locator says, and what the baselines say; kept in a file."""
    file = out / f"{name}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        if found["n"] != n:
            raise RunError(f"{file} is of {found['n']} items, not {n}; choose another --out")
        return found
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    fault, begun = faults()[name], time.perf_counter()
    settings = Settings(model=fault.model, task=fault.task, n=n, seed=fault.shaken or 0)
    study = Study(Run(out / name, settings), workers=1)
    verdict = locate(study)
    seconds = time.perf_counter() - begun
    found = {
        "name": name,
        "n": n,
        "task": fault.task,
        "base": fault.base,
        "trained": fault.trained,
        "shaken": fault.shaken is not None,
        "truth": {"locus": fault.locus, "place": fault.place, "also": fault.also},
        "locator": {
            "locus": verdict.locus,
            "place": verdict.place,
            "also": list(dict.fromkeys(each.locus for each in verdict.also)),
            "confidence": verdict.confidence,
        },
        "repairs": [
            {"name": each.name, "named": each.named, "restored": each.restored, "control": each.control, "n": each.n}
            for each in verdict.repairs
        ],
        "spent": dict(verdict.spent),
        "seconds": seconds,
        "baselines": others(study, verdict),
    }
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def others(study: Study, verdict: Verdict) -> dict[str, Any]:
    """What each baseline says; where answers alone decide, all say what the answers say."""
    if verdict.locus in NOT_OURS:
        return {name: {"locus": verdict.locus, "place": None} for name in METHODS}
    said = baselines(study, limits=Thresholds())
    return {name: {"locus": each.locus, "place": each.place} for name, each in said.items()}


def right_class(truth: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether the class is right, and those of further losses if the method can name any."""
    further = tuple(said.get("also", truth["also"]))
    return bool(truth["locus"] == said["locus"]) and further == tuple(truth["also"])


def right_layer(truth: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether class and stack are right, and the layer within one."""
    if not right_class(truth, said) or said["place"] is None:
        return False
    planted, named = Site.parse(truth["place"]), Site.parse(said["place"])
    return planted.stack == named.stack and abs(planted.number - named.number) <= 1


def still(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not shaken."""
    return [record for record in records if not record["shaken"]]


def scores(records: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All rates of one method, with their intervals."""
    every = list(zip(records, said, strict=True))
    healthy = [each for record, each in every if record["truth"]["locus"] == "none"]
    pairs = [(record["truth"], each) for record, each in every if not record["shaken"]]
    layered = [pair for pair in pairs if pair[0]["place"] and Site.parse(pair[0]["place"]).layer is not None]
    return {
        "class_accuracy": rate([right_class(*pair) for pair in pairs]),
        "layer_within_one": rate([right_layer(*pair) for pair in layered]),
        "false_alarm_rate": rate([each["locus"] not in ("none", "cannot_tell") for each in healthy]),
    }


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """A share with its exact interval."""
    if not hits:
        return {"estimate": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    ends = binomtest(sum(hits), len(hits)).proportion_ci(method="exact")
    return {"estimate": sum(hits) / len(hits), "low": float(ends.low), "high": float(ends.high), "n": len(hits)}


def calibration(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Expected calibration error of what the locator claims."""
    claims = [
        (record["locator"]["confidence"], right_class(record["truth"], record["locator"]))
        for record in records
        if record["locator"]["locus"] != "cannot_tell"
    ]
    stated, hits = (np.array(column, dtype=float) for column in zip(*claims, strict=True))
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(hits), size=len(hits)) for _ in range(1000)]
    resampled = [_error(stated[rows], hits[rows]) for rows in draws]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"estimate": _error(stated, hits), "low": float(low), "high": float(high), "n": len(hits)}


def _error(stated: Any, hits: Any) -> float:
    bins = np.minimum((stated * BINS).astype(int), BINS - 1)
    parts = [abs(stated[bins == k].mean() - hits[bins == k].mean()) * (bins == k).mean() for k in np.unique(bins)]
    return float(sum(parts))


def by_base(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often the locator names the right class, by the model that was altered and its data set."""
    hits: dict[str, list[bool]] = {}
    for record in records:
        base = "taught" if record["trained"] else record["base"].split("-")[0]
        hits.setdefault(f"{base} {record['task']}", []).append(right_class(record["truth"], record["locator"]))
    return {name: rate(own) for name, own in sorted(hits.items())}


def repaired(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the models in which a loss is told: what the repair that the verdict names restores, and the best other.

    Beyond their controls; means over models, with 95 % intervals by resampling models. `handed`: of all repairs, among
    them handing over in words; `in_place`: of those in the direct run itself, one for each class. `n` models have a
    named repair of the kind and another one, `without` have none. Which is best is told by the same items.
    """
    told = [record for record in records if record["repairs"]]
    found: dict[str, Any] = {}
    for locus in sorted({record["truth"]["locus"] for record in told}):
        own = [record["repairs"] for record in told if record["truth"]["locus"] == locus]
        found[locus] = {"handed": _compared(own), "in_place": _compared([_in_place(each) for each in own])}
    return found


def _in_place(repairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in repairs if not each["name"].startswith("hand over")]


def _compared(models: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    pairs = []
    for repairs in models:
        net = [(each["named"], each["restored"] - (each["control"] or 0)) for each in repairs]
        if len({named for named, _ in net}) == 2:
            pairs.append([max(gain for named, gain in net if named == wanted) for wanted in (True, False)])
    found: dict[str, Any] = {"n": len(pairs), "without": len(models) - len(pairs)}
    if pairs:
        named, other = np.array(pairs).T
        found |= {"named": _mean(named), "best_other": _mean(other), "named_ahead": int((named > other).sum())}
    return found


def _mean(values: Any) -> dict[str, float]:
    draws = np.random.default_rng(0).choice(values, size=(1000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"estimate": float(values.mean()), "low": float(low), "high": float(high)}


def main() -> None:
    """Run what is missing, and print, draw and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, default="test")
    parser.add_argument("--out", type=Path, default=Path("runs/planted"), help="folder of the runs")
    parser.add_argument("--n", type=int, default=200, help="items of a model")
    parser.add_argument("--workers", type=int, default=1, help="models side by side")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--save", dest="keep", action="store_true", help="write the result")
    parser.add_argument("--plot", action="store_true", help="draw the confusion matrix and the baselines")
    options = parser.parse_args()
    chosen = [each for each in faults().values() if each.held_back in HALVES[options.half]]
    options.out.mkdir(parents=True, exist_ok=True)
    names = [fault.name for fault in chosen]
    act = partial(examine, out=options.out.absolute(), n=options.n)
    records = side_by_side(act, names, workers=options.workers, what="models", unit="model", progress=True)
    found = summary(records, chosen, half=options.half, n=options.n)
    print(told(found))
    stem = RESULTS / ("planted_faults" if options.half == "test" else f"planted_faults_{options.half}")
    if options.keep:
        kept = {**found, "records": records}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    if options.plot:
        draw(still(records), found, stem.with_suffix(".png"))
    if options.json:
        print(json.dumps(found))


def summary(records: Sequence[dict[str, Any]], chosen: Sequence[Fault], *, half: str, n: int) -> dict[str, Any]:
    """Everything that is reported."""
    counted, planted = still(records), [each for each in chosen if each.shaken is None]
    return {
        "models": len(counted),
        "trained": sum(fault.trained for fault in planted),
        "healthy": sum(fault.locus == "none" for fault in planted),
        "shaken": len(records) - len(counted),
        "twice": sum(bool(fault.also) for fault in planted),
        **scores(records, [record["locator"] for record in records]),
        "by_base": by_base(counted),
        "expected_calibration_error": calibration(counted),
        "cannot_tell": sum(record["locator"]["locus"] == "cannot_tell" for record in counted),
        "baselines": {name: scores(records, [record["baselines"][name] for record in records]) for name in METHODS},
        "repairs": repaired(counted),
        "seconds_per_model": float(np.mean([record["seconds"] for record in counted])),
        "half": half,
        "items": n,
        "about": about("torch", "transformers", "scikit-learn", "numpy"),
    }


def told(found: dict[str, Any]) -> str:
    """The rates as a table."""
    rows = {"locator": found, **found["baselines"]}
    columns = ("class_accuracy", "layer_within_one", "false_alarm_rate")
    table = pd.DataFrame(
        {
            column: {
                name: f"{row[column]['estimate']:.3f} [{row[column]['low']:.3f}, {row[column]['high']:.3f}]"
                for name, row in rows.items()
            }
            for column in columns
        }
    )
    error = found["expected_calibration_error"]
    off = f"{error['estimate']:.3f} [{error['low']:.3f}, {error['high']:.3f}]"
    return (
        f"{table.to_string()}\n{found['models']} models, of which {found['cannot_tell']} cannot tell, and "
        f"{found['shaken']} shaken ones; calibration error {off}"
    )


if __name__ == "__main__":
    main()
