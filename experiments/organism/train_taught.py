"""Teach the small decoders of the planted faults: `python -m seamscope.experiments.organism.train_taught`.

The tower is that of the organism that composes; for the schools that are blind it is one that sees no shapes, which is
taught first. Every school is taught with the seed that it names, which says from which weights and in which order, and
kept in `taught/`; about a quarter of an hour on one slow CPU core for 2,000 steps. What ships of the first seed was
taught in bfloat16, which only some CPUs do quickly.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from . import composing
from ._blind import SEED, blind
from ._build import build_model
from ._data import Pool
from ._school import POOL, POOL_SEED, build_small, teach
from ._schools import BLIND, SCHOOLS, TAUGHT, TOWER, keep, kept


def main() -> None:
    """Teach all schools, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schools", nargs="*", help=f"some of: {', '.join(SCHOOLS)}; all by default")
    parser.add_argument("--out", type=Path, default=TAUGHT, help="where the weights go")
    options = parser.parse_args()
    unknown = [name for name in options.schools if name not in SCHOOLS]
    if unknown:
        parser.error(f"unknown school {unknown[0]!r}; some of: {', '.join(SCHOOLS)}")
    torch.set_num_threads(1)
    names = options.schools or list(SCHOOLS)
    composes = LlavaForConditionalGeneration.from_pretrained(composing(), dtype=torch.float32)
    sighted = composes.model.vision_tower.state_dict(prefix=TOWER)
    blinded = _blinded(options.out) if any(SCHOOLS[name].blind for name in names) else sighted
    for name in names:
        school = SCHOOLS[name]
        model = build_small(school)
        model.load_state_dict(blinded if school.blind else sighted, strict=False)
        if school.after:
            model.load_state_dict(kept(TAUGHT / f"{school.after}.safetensors"), strict=False)
        teach(model, school, Pool.draw(school.task, POOL, seed=POOL_SEED))
        keep(model, options.out / f"{name}.safetensors")


def _blinded(folder: Path) -> dict[str, torch.Tensor]:
    """The tower that sees no shapes, taught and kept: as it ships."""
    model = build_model(SEED)
    blind(model, Pool.draw("cards.sum", POOL, seed=POOL_SEED))
    file = folder / f"{BLIND}.safetensors"
    keep(model, file, tower=True)
    return kept(file)


if __name__ == "__main__":
    main()
