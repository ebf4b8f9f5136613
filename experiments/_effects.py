"""From one row per (item, cell) to one row per cell, with intervals."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from seamscope.hooks import Site
from seamscope.probes import bootstrap_interval

CELL: Final = ["experiment", "source_site", "target_site", "span"]
MARGIN: Final = 0.5  # nats: pairs whose ceiling and base differ by less have no meaningful normalised effect


def summarise_sweep(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean effects of a sweep, one row per cell.

    Columns: the cell; `source_layer, layer` (of the target), `stack`; `n`; `base, ceiling, patched` (mean
    log-probability, nats); `effect` = patched − base with `low, high` (95 % grouped bootstrap); `normalised` =
    the median over pairs of (patched − base) / (ceiling − base), pairs below the margin left out and counted in
    `below_margin`; `right` = share of items whose whole answer comes out, with `right_low, right_high`;
    `first_right`, `base_right`, `ceiling_right` = shares.
    """
    cells = [_cell(tuple(map(str, key)), table, seed=seed) for key, table in rows.groupby(CELL, sort=False)]
    return pd.DataFrame(cells)


def _cell(key: tuple[str, ...], table: pd.DataFrame, *, seed: int) -> dict[str, object]:
    effect = (table.patched - table.base).to_numpy()
    spread = (table.ceiling - table.base).to_numpy()
    enough = np.abs(spread) >= MARGIN
    low, high = bootstrap_interval(effect, table.group, seed=seed)
    right_low, right_high = bootstrap_interval(table.right.to_numpy(dtype=float), table.group, seed=seed)
    source, target = Site.parse(key[1]), Site.parse(key[2])
    return {
        **dict(zip(CELL, key, strict=True)),
        "stack": target.stack,
        "source_layer": source.layer,
        "layer": target.layer,
        "n": len(table),
        **{name: float(table[name].mean()) for name in ("base", "ceiling", "patched")},
        "effect": float(effect.mean()),
        "low": low,
        "high": high,
        "normalised": float(np.median(effect[enough] / spread[enough])) if enough.any() else float("nan"),
        "below_margin": int((~enough).sum()),
        "right": float(table.right.mean()),
        "right_low": right_low,
        "right_high": right_high,
        **{name: float(table[name].mean()) for name in ("first_right", "base_right", "ceiling_right")},
    }
