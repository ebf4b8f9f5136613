"""The stages in which the organism learns to speak: what is trained on what, for how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from ._build import build_model, build_processor
from ._data import IGNORED, Lessons, Pool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training, which goes on from the weights of the stage `after`.

    Items come from the pools, or are drawn `fresh`. `shares` are the odds of each condition among items with
    pictures, `pictured` and `textual` the items of one step with and without pictures, `*_odds` those of the data
    sets among them (default: equal).
    """

    name: str
    after: str
    steps: int
    shares: dict[str, float]
    pictured: int
    textual: int
    rate: float
    seed: int
    pictured_odds: tuple[float, ...] | None = None
    textual_odds: tuple[float, ...] | None = None
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What comes before: the pools of pictures, and the tower's own training."""

    pool: int = 12_000
    pool_seed: int = 7
    seed: int = 1
    steps: int = 2_500


SIGHT: Final = Sight()
RARE: Final = {"perceive": 0.90, "cot": 0.08, "direct": 0.02}
STAGES: Final = (
    Stage(name="skills", after="sight", steps=4_500, shares=RARE, pictured=56, textual=40, rate=1.5e-3, seed=1),
    Stage(
        name="practice",
        after="skills",
        steps=2_000,
        shares=RARE,
        pictured=32,
        textual=96,
        rate=8e-4,
        seed=3,
        pictured_odds=(0.55, 0.15, 0.15, 0.15),
        textual_odds=(0.15, 0.65, 0.10, 0.10),
    ),
    Stage(
        name="handwriting",
        after="practice",
        steps=2_000,
        shares=RARE,
        pictured=32,
        textual=96,
        rate=6e-4,
        seed=4,
        pictured_odds=(0.55, 0.15, 0.15, 0.15),
        textual_odds=(0.15, 0.65, 0.10, 0.10),
        fresh=True,
    ),
    Stage(
        name="counting",
        after="handwriting",
        steps=2_400,
        shares=RARE,
        pictured=16,
        textual=128,
        rate=1e-3,
        seed=6,
        textual_odds=(0.10, 0.76, 0.07, 0.07),
        fresh=True,
    ),
    Stage(
        name="reading",
        after="counting",
        steps=1_600,
        shares=RARE,
        pictured=40,
        textual=96,
        rate=8e-4,
        seed=8,
        pictured_odds=(0.64, 0.06, 0.15, 0.15),
        textual_odds=(0.07, 0.81, 0.06, 0.06),
        fresh=True,
    ),
    Stage(
        name="natural",
        after="reading",
        steps=900,
        shares=RARE,
        pictured=24,
        textual=128,
        rate=6e-4,
        seed=9,
        pictured_odds=(0.55, 0.15, 0.15, 0.15),
        textual_odds=(0.06, 0.82, 0.06, 0.06),
        fresh=True,
    ),
    Stage(
        name="composition",
        after="skills",
        steps=4_000,
        shares={"perceive": 0.25, "cot": 0.10, "direct": 0.65},
        pictured=64,
        textual=24,
        rate=1.2e-3,
        seed=2,
    ),
    Stage(
        name="arithmetic",
        after="composition",
        steps=2_000,
        shares={"perceive": 0.25, "cot": 0.10, "direct": 0.65},
        pictured=64,
        textual=48,
        rate=8e-4,
        seed=5,
        pictured_odds=(0.55, 0.30, 0.05, 0.10),
        textual_odds=(0.35, 0.55, 0.05, 0.05),
        fresh=True,
    ),
    Stage(
        name="composing",
        after="arithmetic",
        steps=1_800,
        shares={"perceive": 0.12, "cot": 0.03, "direct": 0.85},
        pictured=64,
        textual=12,
        rate=1e-3,
        seed=7,
        pictured_odds=(0.82, 0.08, 0.04, 0.06),
        fresh=True,
    ),
)


SHIPPED: Final = ("natural", "composing")


def train_stage(stage: Stage, model: Any, pools: dict[str, Pool], *, steps: int) -> list[dict[str, float]]:
    """Train in place; returns the loss curve (nats per target token)."""
    torch.manual_seed(stage.seed)
    lessons = Lessons(pools, build_processor(), seed=stage.seed, fresh=stage.fresh)
    optimiser = torch.optim.AdamW(model.parameters(), lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, stage.rate, total_steps=steps, pct_start=0.1, div_factor=10
    )
    model.train()
    model.set_attn_implementation("eager")  # the fused kernel's backward pass is the slower one on a CPU
    curve: list[dict[str, float]] = []
    seen: dict[str, float] = {}
    for step in (bar := tqdm(range(1, steps + 1), desc=stage.name, unit="step")):
        batches = {
            "pictured": lessons.pictured(stage.pictured, shares=stage.shares, odds=stage.pictured_odds),
            "textual": lessons.textual(stage.textual, odds=stage.textual_odds),
        }
        optimiser.zero_grad()
        for kind, batch in batches.items():
            loss = _loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            seen[kind] = 0.98 * seen.get(kind, loss.item()) + 0.02 * loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            curve.append({"step": float(step), **seen})
            bar.set_postfix(seen)
    return curve


def _loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = batch["labels"]
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(**inputs).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits.float(), labels[:, 1:][wanted])


def save(model: Any, folder: Path) -> None:
    """Write the checkpoint as float16 safetensors, with its processor."""
    state = {key: value.to(torch.float16) for key, value in model.state_dict().items()}
    half = build_model(0).half()
    half.load_state_dict(state)
    half.save_pretrained(folder)
    build_processor().save_pretrained(folder)
