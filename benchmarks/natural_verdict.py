"""Whether the locator says the same of the natural organism whatever items, seeds and pictures it is given.

    python benchmarks/natural_verdict.py --workers 2 --save --plot --json

For each of the organism's four data sets, the locator is run with one thing changed at a time: the sample of items
(`--samples` of them; other items and another seed), how many items there are (half and twice `--n`, of samples 0 and
1), the seed of the locator alone (sample 0), and how the pictures are drawn (the contents of sample 0 in one font or by
hand, in one layout, at the smallest and the largest size, without jitter). Each run has a folder of its own (`--out`);
interrupted, the same command goes on.

`by_task`: `classes` counts the runs that tell each class; `agreement` is the share of the `commonest`, of all runs and
`by` what was changed; `cannot_tell` and `contradicts` are the shares that tell nothing, and another class. `layer` says
from where to where the runs of the commonest class find the loss, and which share within one of their median; `places`
counts sites, `also` further losses. `stable`: at least 0.9 agree on the class, of all and by each change, and on the
layer; null below ten runs. `confidence` is the mean of what the locator states. `shared_content`: how many items of a
sample have words and question that another sample has, too; their pictures differ. Intervals of shares are exact
binomial ones (95 %), which take runs for independent; only those on samples nearly are.

`by_rendering`: for each way of drawing, what is told of each data set, whether that is the class that is told of the
same contents as they are usually drawn, and the model's accuracy then; `names`: call 1 names every object.

`repairs`: over the samples. `restored`: of the answers that direct runs fail on and the gold text gives, the share that
comes right; `control`: the same with the partner's states; `net`: the one less the other; pooled over samples, with
95 % intervals by resampling samples. `named`: the best repair of the class that the *other* samples tell; `best_other`:
the best of all others; which is best is told by the other samples, too. All items are held out from training, and
linear maps are fitted on others.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from _about import about
from _natural_figure import draw
from _natural_repairs import repaired
from _renderings import drawn, looks
from scipy.stats import binomtest

from seamscope.experiments import Run, Settings, Study, locate
from seamscope.experiments._files import replacing
from seamscope.experiments.tasks import DATA_SETS, Look, generated
from seamscope.hooks import RunError
from seamscope.probes import side_by_side

RESULTS: Final = Path(__file__).parent / "results"
KINDS: Final = ("sample", "number", "seed", "rendering")
KEPT: Final = ("locus", "place", "layer", "interval", "confidence", "also", "summary", "gap", "repairs", "spent")
ENOUGH: Final = 0.9  # of the runs
FEWEST: Final = 10  # runs by which a verdict is called stable, or not
USUAL: Final = Look()

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One run: what was changed (`kind`), and what is asked; `seed` is the locator's, `sample` that of the items."""

    kind: str
    task: str
    name: str
    n: int
    sample: int = 0
    seed: int = 0
    look: Look = USUAL

    @property
    def stem(self) -> str:
        """The name of its folder."""
        return f"{self.task}.{self.name.replace(' ', '_')}.n{self.n}"


def variants(task: str, *, n: int, samples: int) -> Iterator[Variant]:
    """All runs on one data set."""
    for k in range(samples):
        yield Variant(kind="sample", task=task, name=f"sample {k}", n=n, sample=k, seed=k)
    for count, k in product((n // 2, 2 * n), range(2)):
        yield Variant(kind="number", task=task, name=f"{count} items of {k}", n=count, sample=k, seed=k)
    for k in range(1, 4):
        yield Variant(kind="seed", task=task, name=f"seed {k}", n=n, seed=k)
    for name, look in looks(task).items():
        yield Variant(kind="rendering", task=task, name=name, n=n, look=look)


def examine(variant: Variant, *, out: Path) -> Record:
    """What the locator says of one variant; kept in a file."""
    file = out / f"{variant.stem}.json"
    asked = json.loads(json.dumps(asdict(variant)))
    if file.exists():
        found: Record = json.loads(file.read_text())
        if found["asked"] != asked:
            raise RunError(f"{file} is of another run; choose another --out")
        return found
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun = time.perf_counter()
    settings = Settings(model="organism", task=variant.task, n=variant.n, seed=variant.seed)
    with drawn(variant.task, sample=variant.sample, look=variant.look):
        study = Study(Run(out / variant.stem, settings), workers=1)
        told = locate(study).to_json()
    found = {
        "kind": variant.kind,
        "task": variant.task,
        "name": variant.name,
        **{name: told[name] for name in KEPT},
        "skills": skills(study.answers),
        "way": list(study.sites),
        "seconds": time.perf_counter() - begun,
        "asked": asked,
    }
    with replacing(file) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def skills(answers: pd.DataFrame) -> dict[str, float]:
    """Accuracy under each condition, and how often call 1 names every object."""
    found = {str(name): float(share) for name, share in answers.groupby("condition").correct.mean().items()}
    return {**found, "names": float(answers[answers.condition == "cascaded"].saw.mean())}


def agreed(records: Sequence[Record]) -> dict[str, Any]:
    """What runs on one data set tell, and how far they agree on class and layer."""
    counts = Counter(each["locus"] for each in records)
    common = counts.most_common(1)[0][0]
    same = [each for each in records if each["locus"] == common]
    layers = [each["layer"] for each in same if each["layer"] is not None]
    by = {kind: [each["locus"] == common for each in records if each["kind"] == kind] for kind in KINDS}
    shares = {kind: rate(hits) for kind, hits in by.items() if hits}
    agreement, layer = rate([each["locus"] == common for each in records]), spread(layers)
    rates = [agreement, *shares.values()]
    steady = layer is None or layer["within_one"] >= ENOUGH
    return {
        "runs": len(records),
        "commonest": common,
        "classes": dict(counts),
        "agreement": {**agreement, "by": shares},
        "cannot_tell": rate([each["locus"] == "cannot_tell" for each in records]),
        "contradicts": rate([each["locus"] not in (common, "cannot_tell") for each in records]),
        "layer": layer,
        "places": dict(Counter(each["place"] for each in same if each["place"] is not None)),
        "also": dict(Counter(loss["locus"] for each in records for loss in each["also"])),
        "confidence": float(np.mean([each["confidence"] for each in records])),
        "stable": None if len(records) < FEWEST else steady and all(each["estimate"] >= ENOUGH for each in rates),
    }


def spread(layers: Sequence[int]) -> dict[str, float] | None:
    """From where to where layers lie, and how many within one of their median; None where there are none."""
    if not layers:
        return None
    middle = float(np.median(layers))
    near = float(np.mean([abs(each - middle) <= 1 for each in layers]))
    return {"low": min(layers), "high": max(layers), "median": middle, "within_one": near}


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """A share with its exact interval."""
    ends = binomtest(sum(hits), len(hits)).proportion_ci(method="exact")
    return {"estimate": sum(hits) / len(hits), "low": float(ends.low), "high": float(ends.high), "n": len(hits)}


def shared_content(task: str, *, n: int, samples: int) -> float | None:
    """How many items of a sample say and ask what an item of another sample does; None where there is no other."""
    drawings = [
        [generated(task).exercise(k, seed=seed, split="held_out")[0].text for k in range(n)] for seed in range(samples)
    ]
    if samples < 2:
        return None
    others = [set(chain.from_iterable(drawings[:k] + drawings[k + 1 :])) for k in range(samples)]
    return float(np.mean([text in other for own, other in zip(drawings, others, strict=True) for text in own]))


def redrawn(records: Sequence[Record]) -> dict[str, Any]:
    """What is told of the same contents in each way of drawing."""
    usual = {each["task"]: each["locus"] for each in records if each["name"] == "sample 0"}
    found: dict[str, Any] = {}
    for each in records:
        if each["kind"] == "rendering":
            found.setdefault(each["name"], {})[each["task"]] = {
                **{name: each[name] for name in ("locus", "place", "interval", "confidence")},
                "same_class": each["locus"] == usual[each["task"]] if each["task"] in usual else None,
                **each["skills"],
            }
    return found


def summary(records: Sequence[Record], *, n: int, samples: int) -> dict[str, Any]:
    """Everything that is reported."""
    by_task: dict[str, list[Record]] = {}
    for each in records:
        by_task.setdefault(each["task"], []).append(each)
    sampled = {name: [each for each in own if each["kind"] == "sample"] for name, own in by_task.items()}
    return {
        "runs": len(records),
        "by_task": {
            name: {**agreed(own), "shared_content": shared_content(name, n=n, samples=samples)}
            for name, own in by_task.items()
        },
        "by_rendering": redrawn(records),
        "repairs": {name: repaired(own) for name, own in sampled.items()},
        "seconds_per_run": float(np.mean([each["seconds"] for each in records])),
        "items": n,
        "samples": samples,
        "about": about("torch", "transformers", "scikit-learn", "numpy"),
    }


def told(found: Mapping[str, Any]) -> str:
    """What is told of each data set, and what the repairs do."""
    rows, mended = {}, {}
    for name, each in found["by_task"].items():
        layer = each["layer"]
        rows[name] = {
            "runs": each["runs"],
            "class": each["commonest"],
            "agree": _share(each["agreement"]),
            "cannot tell": _share(each["cannot_tell"]),
            "layer": "" if layer is None else f"{layer['low']} to {layer['high']}",
            "stated": f"{each['confidence']:.2f}",
            "": {True: "stable", False: "not stable", None: "too few runs"}[each["stable"]],
        }
        for who in ("named", "best_other"):
            if who in found["repairs"][name]:
                repair = found["repairs"][name][who]
                mended[name, who] = {
                    "repair": ", ".join(repair["chosen"]),
                    **{key: _share(repair[key]) for key in ("restored", "control", "net")},
                }
    tables = [pd.DataFrame.from_dict(each, orient="index") for each in (rows, mended) if each]
    return "\n\n".join(table.to_string() for table in tables)


def _share(each: Mapping[str, float | None]) -> str:
    if each["low"] is None:
        return f"{each['estimate']:.2f}"
    return f"{each['estimate']:.2f} [{each['low']:.2f}, {each['high']:.2f}]"


def main() -> None:
    """Run what is missing, and print, draw and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/natural"), help="folder of the runs")
    parser.add_argument("--n", type=int, default=200, help="items of a run")
    parser.add_argument("--samples", type=int, default=8, help="samples of items")
    parser.add_argument("--tasks", nargs="+", choices=DATA_SETS, default=DATA_SETS, metavar="TASK", help="data sets")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants of these names, such as 'sample 0', only")
    parser.add_argument("--workers", type=int, default=1, help="runs side by side")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--save", dest="keep", action="store_true", help="write the result")
    parser.add_argument("--plot", action="store_true", help="draw what is told of each variant")
    options = parser.parse_args()
    wanted = [each for task in options.tasks for each in variants(task, n=options.n, samples=options.samples)]
    if options.only:
        wanted = [each for each in wanted if each.name in options.only]
    if not wanted:
        parser.error("no variant has such a name")
    options.out.mkdir(parents=True, exist_ok=True)
    act = partial(examine, out=options.out.absolute())
    records = side_by_side(act, wanted, workers=options.workers, what="runs", unit="run", long=True, progress=True)
    found = summary(records, n=options.n, samples=options.samples)
    print(told(found))
    stem = RESULTS / "natural_verdict"
    if options.keep:
        stem.with_suffix(".json").write_text(json.dumps({**found, "records": records}, indent=1) + "\n")
    if options.plot:
        draw(records, stem.with_suffix(".png"))
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
