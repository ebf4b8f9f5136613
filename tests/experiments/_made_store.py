"""Stores with made-up activations of items and their partners, for tests of what the locator reads of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from seamscope.activations import Schema, Store, create_store, open_store
from seamscope.hooks import Ragged

PAIRS, WIDTH, KINDS = 60, 12, 4
GROUPS = [f"g{k}" for k in range(PAIRS)]

Acts = Mapping[tuple[str, str], Ragged]


def written(folder: Path, tables: Mapping[str, tuple[pd.DataFrame, Acts]]) -> Store:
    """A new store in a folder, of rows and activations by condition; opened."""
    file = folder / f"{len(list(folder.iterdir()))}.h5"
    with create_store(file, Schema(model="tiny", task="test", conditions=tuple(tables))) as writer:
        for condition, (rows, acts) in tables.items():
            writer.append(condition, rows, acts)
    return open_store(file)


LABELS = np.random.default_rng(0).integers(KINDS, size=(PAIRS, 2, 2))  # pair, member, object
LABELS[::2, 1, 1] = LABELS[::2, 0, 1]  # in half of the pairs only the first object differs
LABELS[::2, 1, 0] = (LABELS[::2, 0, 0] + 1) % KINDS
LABELS[1::2, 1, 0] = LABELS[1::2, 0, 0]
LABELS[1::2, 1, 1] = (LABELS[1::2, 0, 1] + 1) % KINDS
DIRECTIONS = np.random.default_rng(1).normal(size=(2, KINDS, WIDTH))
LENGTHS = np.random.default_rng(2).integers(1, 4, size=2 * PAIRS)  # tokens


def rows_of(*, extra: bool = False) -> pd.DataFrame:
    """Items and their partners; with an item that has no partner in front."""
    flat = LABELS.reshape(-1, 2)
    table = pd.DataFrame({"id": [f"{g}{m}" for g in GROUPS for m in ("", "'")], "group": np.repeat(GROUPS, 2)})
    for number in range(2):
        table[f"var:object.{number}.name"] = [f"kind {label}" for label in flat[:, number]]
        table[f"type:object.{number}.name"] = [f"type {k % 30}" for k in range(len(flat))]
    table["var:object.0.size"] = "large"  # one label, of many types: there is nothing to tell
    table["type:object.0.size"] = table["type:object.0.name"]
    table["var:total"], table["type:total"] = flat.sum(1).astype(str), "any"
    single = pd.DataFrame(
        {**table.iloc[0].to_dict(), "id": "x", "group": "x", "var:object.0.name": "unheard"}, index=[0]
    )
    return pd.concat([single, table], ignore_index=True) if extra else table


def tokens(means: np.ndarray, seed: int, *, lengths: np.ndarray = LENGTHS) -> Ragged:
    """Tokens about the mean of each row, which is exact."""
    rng, found = np.random.default_rng(seed), []
    for mean, length in zip(means, lengths, strict=True):
        off = rng.normal(size=(length, WIDTH))
        found.append(torch.from_numpy(mean + off - off.mean(0)) if length else torch.zeros(0, WIDTH))
    return Ragged.from_list([each.float() for each in found])


def shown(number: int, *, noise: float, seed: int = 5) -> np.ndarray:
    flat = LABELS.reshape(-1, 2)[:, number]
    return DIRECTIONS[number][flat] + noise * np.random.default_rng(seed + number).normal(size=(len(flat), WIDTH))


def usual(*, lengths: np.ndarray = LENGTHS) -> dict[tuple[str, str], Ragged]:
    """The tower has both objects, the projector only the first, and the last position both of them."""
    acts = {}
    for number in range(2):
        for site, level in (("vision.0.resid_post", 0.2), ("projector.out", 0.2 if number == 0 else 1e3)):
            acts[site, f"image.object.{number}"] = tokens(shown(number, noise=level), number, lengths=lengths)
    acts["lm.0.resid_post", "last"] = tokens(shown(0, noise=0.2) + shown(1, noise=0.2), 7)
    return acts
