"""What nnsight costs beside plain torch hooks, one forward pass under capture: `python benchmarks/engines.py --json`.

Both engines run in one process on the same batch of the shipped organism, in turn. `ms` are median and quartiles of a
pass with no site, the residual stream, and every site captured; `ratio` is nnsight's median over torch's.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from seamscope.experiments.tasks import get
from seamscope.hooks import Vlm, capture, load_vlm

ENGINES = ("torch", "nnsight")
SITES = {"no site": [], "residual stream": ["lm.*.resid_post"], "every site": ["*"]}


def once(vlm: Vlm, sites: list[str], batch: Any) -> float:
    """Milliseconds of one forward pass under capture."""
    started = time.perf_counter()
    if sites:
        with capture(vlm, sites):
            vlm.forward(batch)
    else:
        vlm.forward(batch)
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    """Measure and print; with `--save`, write results/engines.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--save", dest="keep", action="store_true", help="write results/engines.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: load_vlm("organism", engine=name, device="cpu", attn_implementation="eager") for name in ENGINES}
    items = get("cards.sum").items(options.items)
    batches = {name: vlm.encode(items, condition="direct") for name, vlm in models.items()}
    found: dict[str, Any] = {}
    for what, sites in SITES.items():
        times: dict[str, list[float]] = {name: [] for name in ENGINES}
        for _ in range(options.repeats + 1):
            for name, vlm in models.items():
                times[name].append(once(vlm, sites, batches[name]))
        quartiles = {name: np.quantile(each[1:], [0.5, 0.25, 0.75]).round(2).tolist() for name, each in times.items()}
        found[what] = {"ms": quartiles, "ratio": round(quartiles["nnsight"][0] / quartiles["torch"][0], 3)}
        print(f"{what:16} {found[what]}")
    found["about"] = {
        "items": options.items,
        "repeats": options.repeats,
        "device": f"cpu, 1 thread, {platform.machine()}",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if options.keep:
        (Path(__file__).parent / "results" / "engines.json").write_text(json.dumps(found, indent=1) + "\n")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
