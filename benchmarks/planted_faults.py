"""The locator put to models of which we know where they lose what they see; and the ways it is done today.

    python benchmarks/planted_faults.py --workers 2 --save --plot --json

Each model is one run of the locator on 200 items in a folder of its own (`--out`); interrupted, the same command goes
on. The test half, chosen by a hash of the names, was not looked at while the locator was made; `--half development` is
the other.

- `class_accuracy`: the class is right; "cannot tell" is wrong. Of two losses the locator has to name both classes and
  of one no second; of the baselines, which name one, the first is enough. `class_of_losses`: where there is one to
  locate. `by_base`: by the model that was altered, as those that share it are no independent samples. `by_seed`: by
  the seed of alterations, lessons and items.
- `layer_within_one`: of the models that lose it at a known layer, those of which the verdict names class and stack, and
  that layer or one beside it; `layer_alone`: whatever the class.
- `false_alarm_rate`: of the healthy models, those in which a loss is claimed; to these belong `shaken` ones, whose
  weights are a little off, on items of their own, which count nowhere else.
- `expected_calibration_error`: over ten bins of the stated confidence, of the verdicts that claim anything; its
  bootstrap over models is blind to errors too rare to have been seen. `claims_right`: how many of these are right.
- `loss`: of the answers that the gold intermediate gives, those that direct runs fail on; the least of the models with
  a planted loss, the most of the healthy.
- `baselines` are told by the same answers whether there is a loss of theirs to locate; each then has its own method
  alone. From which layer on it calls something late (`late_from`) serves it best on the other half's kept result.

Intervals of rates are exact binomial ones (95 %).
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from _about import about
from _planted_baselines import METHODS, baselines
from _planted_figure import draw
from _planted_scores import still, summary, told

from seamscope.experiments import Run, Settings, Study, Thresholds, Verdict, locate
from seamscope.experiments._files import replacing
from seamscope.experiments._verdict import NOT_OURS
from seamscope.experiments.locator._asking import Asking
from seamscope.experiments.locator._evidence import Findings
from seamscope.experiments.organism import faults
from seamscope.hooks import RunError
from seamscope.probes import side_by_side

RESULTS: Final = Path(__file__).parent / "results"
OTHER: Final = {"test": "development", "development": "test"}
HALVES: Final = {"test": (True,), "development": (False,), "both": (True, False)}


def examine(name: str, *, out: Path, n: int) -> dict[str, Any]:
    """One model: what is true of it, what the locator says, and what the baselines say; kept in a file."""
    file = out / f"{name}.json"
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text())
        if found["n"] != n or "seed" not in found:
            raise RunError(f"{file} is of {found['n']} items, not {n}, or of an older version; choose another --out")
        return found
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    fault, begun = faults()[name], time.perf_counter()
    settings = Settings(model=fault.model, task=fault.task, n=n, seed=fault.seed)
    study = Study(Run(out / name, settings), workers=1)
    verdict = locate(study)
    findings = Findings(Asking(study, there=Thresholds().there), seed=settings.seed)
    loss = float(findings.of("loss")[0])
    seconds = time.perf_counter() - begun
    found = {
        "name": name,
        "n": n,
        "task": fault.task,
        "base": fault.base,
        "trained": fault.trained,
        "shaken": fault.shaken,
        "seed": fault.seed,
        "loss": None if math.isnan(loss) else loss,
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
        "baselines": others(study, findings, verdict),
    }
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def others(study: Study, findings: Findings, verdict: Verdict) -> dict[str, Any]:
    """What each baseline says; where answers alone decide, all say what the answers say."""
    if verdict.locus in NOT_OURS:
        return {name: {"locus": verdict.locus, "place": None} for name in METHODS}
    return baselines(study, findings)


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
    names = [fault.name for fault in faults().values() if fault.held_back in HALVES[options.half]]
    options.out.mkdir(parents=True, exist_ok=True)
    act = partial(examine, out=options.out.absolute(), n=options.n)
    records = side_by_side(act, names, workers=options.workers, what="models", unit="model", long=True, progress=True)
    elsewhere = kept_records(OTHER[options.half]) if options.half in OTHER else []
    found = {
        **summary(records, elsewhere=elsewhere),
        "half": options.half,
        "items": options.n,
        "about": about("torch", "transformers", "scikit-learn", "numpy"),
    }
    print(told(found))
    stem = stem_of(options.half)
    if options.keep:
        kept = {**found, "records": records}
        stem.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    if options.plot:
        draw(still(records), found, stem.with_suffix(".png"))
    if options.json:
        print(json.dumps(found))


def stem_of(half: str) -> Path:
    """Where a half's result is kept, without its suffix."""
    return RESULTS / ("planted_faults" if half == "test" else f"planted_faults_{half}")


def kept_records(half: str) -> list[dict[str, Any]]:
    """What was kept of a half's models, if anything was."""
    file = stem_of(half).with_suffix(".json")
    return json.loads(file.read_text())["records"] if file.exists() else []


if __name__ == "__main__":
    main()
