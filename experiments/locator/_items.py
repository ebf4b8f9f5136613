"""The items of a study and resamples of them: whatever is measured of an item is resampled together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

RESAMPLES: Final = 1000

Floats = NDArray[np.float64]


class Items:
    """Items, by their groups; row 0 of every result is the sample itself, the others are resamples of it."""

    def __init__(self, groups: Sequence[str], *, seed: int) -> None:
        self.groups = list(groups)
        rng = np.random.default_rng(seed)
        draws = rng.integers(len(self.groups), size=(RESAMPLES, len(self.groups)))
        counts = np.stack([np.bincount(row, minlength=len(self.groups)) for row in draws])
        self.weights: Floats = np.concatenate([np.ones((1, len(self.groups))), counts])

    def mean(self, values: Floats) -> Floats:
        """Means over items, (items,) or (items, places), which may be NaN: (1 + resamples,) or (..., places)."""
        wide = values[:, None] if values.ndim == 1 else values
        held = ~np.isnan(wide)
        total = self.weights @ np.where(held, wide, 0.0)
        counts = self.weights @ held.astype(float)
        means: Floats = np.divide(total, counts, out=np.full_like(total, np.nan), where=counts > 0)
        return means[:, 0] if values.ndim == 1 else means

    def align(self, table: pd.DataFrame, value: str, *, places: str) -> tuple[Floats, tuple[Any, ...]]:
        """A column of a long table as (items, places); what an item lacks is NaN."""
        numbers = table.assign(**{value: table[value].astype(float)})
        if numbers.empty:
            return np.zeros((len(self.groups), 0)), ()
        wide = numbers.pivot_table(index="group", columns=places, values=value, aggfunc="mean", sort=False)
        return wide.reindex(self.groups).to_numpy(dtype=float), tuple(wide.columns)

    def column(self, table: pd.DataFrame, value: str) -> Floats:
        """A column of a table with one row for each group, (items,)."""
        found: Floats = table.groupby("group")[value].mean().reindex(self.groups).to_numpy(dtype=float)
        return found


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resamples, the first value left out; NaN where there are none."""
    kept = values[1:][~np.isnan(values[1:])]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [0.025, 0.975])
    return float(low), float(high)
