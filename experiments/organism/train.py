"""Train the organism from scratch: `python -m seamscope.experiments.organism.train` (or `make organism`).

Fixed seeds throughout. *sight*: the tower learns to name what lies under each patch. *skills*: transcription and text
reasoning, composition rare. From there two branches: *natural* goes on with the same, *composing* with composition
common. The loss curves go to `curves.json` beside the checkpoints.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch

from ._build import build_model
from ._data import draw_pools
from ._sight import train_sight
from ._train import SHIPPED, SIGHT, STAGES, save, train_stage

HERE = Path(__file__).parent


def main() -> None:
    """Train all stages and write both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="where `natural/` and `composing/` go")
    parser.add_argument("--pool", type=int, default=SIGHT.pool, help="drawn pictures per data set")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply all numbers of steps (to try it out)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pools = draw_pools(options.pool, seed=SIGHT.pool_seed)
    model = build_model(SIGHT.seed)
    curves = {"sight": train_sight(model, pools, steps=round(SIGHT.steps * options.scale), seed=SIGHT.seed)}
    reached = {"sight": copy.deepcopy(model.state_dict())}
    for stage in STAGES:
        model.load_state_dict(reached[stage.after])
        curves[stage.name] = train_stage(stage, model, pools, steps=round(stage.steps * options.scale))
        reached[stage.name] = copy.deepcopy(model.state_dict())
    for name in SHIPPED:
        model.load_state_dict(reached[name])
        save(model, options.out / name)
    (options.out / "curves.json").write_text(json.dumps(curves) + "\n")


if __name__ == "__main__":
    main()
