"""Train the organism from scratch: `python -m seamscope.experiments.organism.train --out FOLDER`.

Two stages with fixed seeds. *natural*: transcription and text reasoning, composition rare. *composing*: the
natural weights, trained on with composition common.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from ._build import build_model, build_processor
from ._data import IGNORED, Lessons, Pool


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training; `shares` are the odds of each condition among items with pictures."""

    name: str
    steps: int
    shares: dict[str, float]
    pictured: int
    textual: int
    rate: float
    seed: int


STAGES: Final = (
    Stage(
        name="natural",
        steps=6000,
        shares={"perceive": 0.90, "cot": 0.08, "direct": 0.02},
        pictured=56,
        textual=40,
        rate=1.5e-3,
        seed=1,
    ),
    Stage(
        name="composing",
        steps=5000,
        shares={"perceive": 0.25, "cot": 0.10, "direct": 0.65},
        pictured=64,
        textual=24,
        rate=1.2e-3,
        seed=2,
    ),
)


def train_stage(stage: Stage, model: Any, pools: dict[str, Pool], *, log: Path) -> list[dict[str, float]]:
    """Train in place; returns and writes the loss curve (nats per target token)."""
    torch.manual_seed(stage.seed)
    lessons = Lessons(pools, build_processor(), seed=stage.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=stage.rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, stage.rate, total_steps=stage.steps, pct_start=0.1, div_factor=10
    )
    model.train()
    model.set_attn_implementation("eager")  # the fused kernel's backward pass is the slower one on a CPU
    curve: list[dict[str, float]] = []
    seen: dict[str, float] = {}
    for step in (bar := tqdm(range(1, stage.steps + 1), desc=stage.name, unit="step")):
        batches = {
            "pictured": lessons.pictured(stage.pictured, shares=stage.shares),
            "textual": lessons.textual(stage.textual),
        }
        optimiser.zero_grad()
        for kind, batch in batches.items():
            loss = _loss(model, batch)
            loss.backward()
            seen[kind] = 0.98 * seen.get(kind, loss.item()) + 0.02 * loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            curve.append({"step": float(step), **seen})
            bar.set_postfix(seen)
            log.write_text(json.dumps({"stage": asdict(stage), "curve": curve}))
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
