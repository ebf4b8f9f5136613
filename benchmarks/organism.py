"""Measure the skills of the two shipped organisms on held-out items: `python benchmarks/organism.py --json`.

For each checkpoint and data set: `perceive` (names every object), `reason` (answers from gold text), `cascaded`,
`direct`, `cot`, each with a 95 % interval; the keys of the JSON are checkpoint → data set → skill.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import transformers

from seamscope.experiments import composition_gap, run_conditions
from seamscope.experiments.organism._card import write_card
from seamscope.experiments.tasks import DATA_SETS, get
from seamscope.hooks import load_vlm
from seamscope.probes import bootstrap_interval

CHECKPOINTS = {"natural": "organism", "composing": "organism-composing"}
SKILLS = {"reason": "oracle", "cascaded": "cascaded", "direct": "direct", "cot": "cot"}


def measure(checkpoint: str, data_set: str, *, n: int, seed: int) -> dict[str, dict[str, float]]:
    """Skills of one checkpoint on one data set, as estimate, low, high."""
    task = get(data_set)
    items = task.items(n, seed=seed, split="held_out")
    answers = run_conditions(load_vlm(CHECKPOINTS[checkpoint]), task, items, batch_size=125)
    saw = answers[answers.condition == "cascaded"].saw.to_numpy(dtype=float)
    low, high = bootstrap_interval(saw, range(n), seed=seed)
    gap = composition_gap(answers, seed=seed)
    rows = gap[gap.subset == "all"].set_index("condition")
    skills = {name: rows.loc[condition, ["estimate", "low", "high"]] for name, condition in SKILLS.items()}
    return {
        "perceive": {"estimate": float(saw.mean()), "low": low, "high": high},
        **{name: {key: float(row[key]) for key in row.index} for name, row in skills.items()},
    }


def main() -> None:
    """Measure and print; with `--save`, write the result and the model card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="held-out items per data set")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--save", dest="keep", action="store_true", help="write the result and the model card")
    options = parser.parse_args()
    started = time.time()
    found = {
        checkpoint: {name: measure(checkpoint, name, n=options.n, seed=options.seed) for name in DATA_SETS}
        for checkpoint in CHECKPOINTS
    }
    for checkpoint, sets in found.items():
        for name, skills in sets.items():
            shown = "  ".join(
                f"{skill} {100 * v['estimate']:.1f} [{100 * v['low']:.1f}, {100 * v['high']:.1f}]"
                for skill, v in skills.items()
            )
            print(f"{checkpoint:10} {name:14} {shown}")
    about = {
        "n": options.n,
        "seed": options.seed,
        "seconds": round(time.time() - started, 1),
        "device": f"cpu, {torch.get_num_threads()} threads, {platform.machine()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if options.keep:
        target = Path(__file__).parent / "results" / "organism.json"
        target.write_text(json.dumps({"about": about, **found}, indent=1) + "\n")
        write_card(found, about)
    if options.json:
        flat = {
            c: {d: {k: v["estimate"] for k, v in skills.items()} for d, skills in sets.items()}
            for c, sets in found.items()
        }
        print(json.dumps({**flat, "intervals": found, "about": about}))


if __name__ == "__main__":
    main()
