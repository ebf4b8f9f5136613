"""A made-up store in the shape of a 7B decoder's residual stream, on which the benchmark of probes runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from seamscope.activations import Schema, create_store
from seamscope.hooks import Ragged
from seamscope.probes._choice import INNER, STRENGTHS

CLASSES = {"suit": 4, "rank": 13}
DIRECT, LAST, SEED = "direct", "last", 0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a grid is."""

    d: int
    rows: int
    sites: int
    folds: int
    strengths: int
    targets: int

    @property
    def site_names(self) -> list[str]:
        """Layers of a decoder."""
        return [f"lm.{layer}.resid_post" for layer in range(self.sites)]

    @property
    def target_names(self) -> list[str]:
        """Suits and ranks of cards."""
        return [f"card.{card}.{what}" for card, what in product(range(self.targets), CLASSES)][: self.targets]

    @property
    def C(self) -> tuple[float, ...]:
        """The strengths to choose from; five are the default ones."""
        low, high = STRENGTHS[0], STRENGTHS[-1]
        found = STRENGTHS if self.strengths == len(STRENGTHS) else np.geomspace(low, high, self.strengths).tolist()
        return tuple(each / self.d for each in (found if self.strengths > 1 else [np.sqrt(low * high)]))

    @property
    def cells(self) -> int:
        """Sites, targets and folds."""
        return self.sites * self.targets * self.folds

    @property
    def fits(self) -> int:
        """Of scikit-learn, in one cell."""
        return (INNER * self.strengths if self.strengths > 1 else 0) + 3


SHAPES = {
    "7B": Shape(d=4096, rows=800, sites=32, folds=5, strengths=5, targets=6),
    "organism": Shape(d=128, rows=800, sites=8, folds=5, strengths=5, targets=6),
    "quick": Shape(d=256, rows=160, sites=4, folds=3, strengths=3, targets=2),
}


def write_store(path: Path, shape: Shape) -> None:
    """Rows in pairs that share a group, with their labels, and what was planted of these at every site."""
    rng = np.random.default_rng(SEED)
    names = shape.target_names
    labels = {name: rng.integers(CLASSES[name.split(".")[-1]], size=shape.rows) for name in names}
    types = {name: rng.integers(3, size=shape.rows) for name in names}  # how it is drawn
    rows = pd.DataFrame(
        {
            "id": [str(row) for row in range(shape.rows)],
            "group": [f"g{row // 2}" for row in range(shape.rows)],
            **{f"var:{name}": each.astype(str) for name, each in labels.items()},
            **{f"type:{name}": [f"{k}/{t}" for k, t in zip(labels[name], types[name], strict=True)] for name in names},
        }
    )
    drawn = [CLASSES[name.split(".")[-1]] * types[name] + labels[name] for name in names]
    lengths = torch.ones(shape.rows, dtype=torch.long)
    with create_store(path, Schema(model="made up", task="cards", conditions=(DIRECT,))) as writer:
        acts = {
            (site, LAST): Ragged(_activations(shape, depth, list(labels.values()), drawn), lengths)
            for site, depth in zip(shape.site_names, np.linspace(0, 1, shape.sites), strict=True)
        }
        writer.append(DIRECT, rows, acts, copy=False)


def _activations(shape: Shape, depth: float, labels: list[Any], drawn: list[Any]) -> torch.Tensor:
    """A site's activations, (rows, d): targets that come later in the list are weaker, and appear deeper."""
    rng = np.random.default_rng([SEED, int(1000 * depth)])
    axes = min(1024, shape.d)
    shared = rng.normal(size=(shape.rows // 2 + 1, axes)).repeat(2, 0)[: shape.rows]
    latent = 0.7 * shared + 0.7 * rng.normal(size=(shape.rows, axes))
    for k, (label, type_) in enumerate(zip(labels, drawn, strict=True)):
        late = k / len(labels)
        strength = 8 * (1 - late) / np.sqrt(axes) / (1 + np.exp(12 * (late - depth)))
        latent += strength * rng.normal(size=(label.max() + 1, axes))[label]
        latent += 0.5 * strength * rng.normal(size=(type_.max() + 1, axes))[type_]
    spectrum = np.arange(1, axes + 1) ** -0.5
    found = (latent * spectrum) @ rng.normal(size=(axes, shape.d)) + 0.3 * rng.normal(size=(shape.rows, shape.d))
    heavy = rng.choice(shape.d, max(1, shape.d // 1000), replace=False)
    found[:, heavy] = 30 * found[:, heavy] + 100 * found.std() * rng.normal(size=len(heavy))
    return torch.from_numpy(found).bfloat16()
