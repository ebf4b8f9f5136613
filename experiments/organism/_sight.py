"""Pre-train the vision tower alone, as real towers come pre-trained: name what lies under each patch.

A linear head, thrown away afterwards, predicts for every patch the words of the objects whose boxes reach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..tasks import Item
from ._build import PATCH, PIXELS, WIDTH, vocabulary
from ._data import Pool, moved, normalised

SIDE: Final = PIXELS // PATCH


def patch_words(item: Item) -> Tensor:
    """Which words lie under which patch: (patches, words), 0 or 1."""
    index = {word: k for k, word in enumerate(vocabulary())}
    labels = torch.zeros(SIDE, SIDE, len(index))
    for part, box in zip(item.intermediate.parts, item.boxes, strict=True):
        rows = slice(max(int(box.top // PATCH), 0), int(box.bottom // PATCH) + 1)
        columns = slice(max(int(box.left // PATCH), 0), int(box.right // PATCH) + 1)
        for word in part.split():
            labels[rows, columns, index[word]] = 1
    return labels.flatten(0, 1)


def train_sight(
    model: Any, pools: Mapping[str, Pool], *, steps: int, batch: int = 96, rate: float = 1.5e-3, seed: int = 0
) -> list[dict[str, float]]:
    """Train the tower in place; returns the loss curve (nats per patch)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    tower, head = model.model.vision_tower, torch.nn.Linear(WIDTH, len(vocabulary()))
    parameters = [*tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    curve: list[dict[str, float]] = []
    mean = 0.0
    for step in (bar := tqdm(range(1, steps + 1), desc="sight", unit="step")):
        chosen = [(str(n), int(rng.integers(len(pools[str(n)].items)))) for n in rng.choice(list(pools), batch)]
        pixels = normalised(np.stack([moved(pools[n].pixels[k], rng) for n, k in chosen]))
        labels = torch.stack([patch_words(pools[n].items[k]) for n, k in chosen])
        with torch.autocast("cpu", torch.bfloat16):
            seen = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
            logits = head(seen)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
        loss = loss / labels.shape[:2].numel()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        mean = loss.item() if step == 1 else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 0:
            curve.append({"step": float(step), "patch words": mean})
            bar.set_postfix(loss=mean)
    return curve
