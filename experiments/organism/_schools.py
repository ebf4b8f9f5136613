"""The small decoders that ship, and how they are kept: as whole numbers of eight bits, the tower apart."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from seamscope.hooks import load_vlm

from ._build import build_processor
from ._school import RARELY, School, build_small

if TYPE_CHECKING:
    from seamscope.hooks import Vlm

TAUGHT: Final = Path(__file__).parent / "taught"
TOWER: Final = "model.vision_tower."
SCALE: Final = ".scale"
BLIND: Final = "blind-tower"
LEVELS: Final = 127

FIRST: Final[dict[str, School]] = {
    "small-cards.sum": School(task="cards.sum", steps=3_000),
    "small-counting": School(task="counting", steps=4_000),
    "late-cards.sum": School(task="cards.sum", late=5, steps=2_000, shares=RARELY),
    "late-rendered_text": School(task="rendered_text", late=5, steps=2_500, shares=RARELY),
    "late-counting": School(task="counting", late=5, steps=2_500, shares=RARELY),
    "adapted-cards.sum": School(task="cards.sum", late=5, composes=True, steps=3_000),
    "adapted-counting": School(task="counting", late=5, composes=True, steps=4_000),
    "adapted-cards.sort": School(task="cards.sort", late=5, composes=True, steps=1_500, shares=RARELY),
    "last-cards.sum": School(task="cards.sum", late=7, composes=True, steps=2_500),
    "narrow-cards.sum": School(task="cards.sum", rank=1, steps=2_000),
    "narrow-counting": School(task="counting", rank=1, steps=1_500),
    "narrow-cards.sort": School(task="cards.sort", rank=1, steps=1_000),
    "coarse-cards.sum": School(task="cards.sum", blind=True, steps=700, shares=RARELY),
    "coarse-cards.sort": School(task="cards.sort", blind=True, steps=700, shares=RARELY),
    "unlearned-cards.sort": School(task="cards.sort", reasons=False, steps=1_000),
    "unlearned-cards.sum": School(task="cards.sum", reasons=False, steps=800, shares=RARELY),
    "unlearned-counting": School(task="counting", reasons=False, steps=600, shares=RARELY),
    "unlearned-rendered_text": School(task="rendered_text", reasons=False, steps=1_000, shares=RARELY),
    "wordy-cards.sum": School(task="cards.sum", filler=24, steps=1_500),
    "wordy-cards.sort": School(task="cards.sort", filler=24, steps=1_200),
    "wordy-counting": School(task="counting", filler=24, after="small-counting", steps=500),
}
AGAIN: Final = (  # from other weights, in another order
    "late-counting",
    "narrow-cards.sort",
    "coarse-cards.sum",
    "coarse-cards.sort",
)
SCHOOLS: Final = {**FIRST, **{f"{name}-seed-2": replace(FIRST[name], seed=2) for name in AGAIN}}


def keep(model: Any, file: Path, *, tower: bool = False) -> None:
    """Write projector and decoder, or the tower alone, with a scale for each row of a matrix."""
    held: dict[str, Tensor] = {}
    for name, weight in model.state_dict().items():
        if name.startswith(TOWER) != tower:
            continue
        scale = weight.abs().amax(-1, keepdim=True).clamp(min=1e-8) / LEVELS
        held[name] = (weight / scale).round().to(torch.int8)
        held[name + SCALE] = scale.to(torch.float32)
    file.parent.mkdir(exist_ok=True)
    save_file(held, file)


def kept(file: Path) -> dict[str, Tensor]:
    """The weights of a file that `keep` wrote."""
    held = load_file(file)
    return {name: held[name].float() * held[name + SCALE] for name in held if not name.endswith(SCALE)}


@cache
def _tower() -> dict[str, Tensor]:
    shipped = load_file(Path(__file__).parent / "composing" / "model.safetensors")
    found = {name: weight.float() for name, weight in shipped.items() if "vision_tower" in name}
    return {name if name.startswith("model.") else f"model.{name}": weight for name, weight in found.items()}


def graduate(name: str, **options: Any) -> Vlm:
    """Load a small decoder behind its tower; options are those of `load_vlm`."""
    school = SCHOOLS[name]
    model = build_small(school, constrained=False)
    tower = kept(TAUGHT / f"{BLIND}.safetensors") if school.blind else _tower()
    model.load_state_dict({**tower, **kept(TAUGHT / f"{name}.safetensors")})
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        save_file(model.state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        build_processor().save_pretrained(folder)
        return load_vlm(folder, **options)
