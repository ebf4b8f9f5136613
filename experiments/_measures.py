"""What the locator weighs: every curve as one row per item, so that items can be resampled together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seamscope.hooks import RunError

from ._conditions import both_steps_pass

Floats = NDArray[np.float64]
RESAMPLES: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One number per item and place: `values` (items, places), NaN where an item does not count.

    `control` is the same for the control that belongs to it, `floor` what knowing nothing would give.
    """

    values: Floats
    control: Floats | None = None
    floor: float = 0.0
    places: tuple[Any, ...] = (None,)


class Items:
    """The items of a study and resamples of them; the first half by hash chooses, the second half scores."""

    def __init__(self, groups: list[str], *, seed: int) -> None:
        self.groups = groups
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(groups))
        self.choosing = np.isin(np.arange(len(groups)), order[: len(groups) // 2])
        draws = rng.integers(len(groups), size=(RESAMPLES, len(groups)))
        counts = np.stack([np.bincount(row, minlength=len(groups)) for row in draws])
        self.weights: Floats = np.concatenate([np.ones((1, len(groups))), counts])

    def mean(self, values: Floats, *, half: str | None = None) -> Floats:
        """Weighted means over items: (1 + resamples, places); row 0 is the sample itself."""
        held = ~np.isnan(values)
        members = {None: np.ones_like(self.choosing), "choose": self.choosing, "score": ~self.choosing}[half]
        weights = self.weights * members.astype(float)
        total = weights @ np.where(held, values, 0.0)
        counts = weights @ held.astype(float)
        means: Floats = np.divide(total, counts, out=np.full_like(total, np.nan), where=counts > 0)
        return means

    def best(self, curve: Curve) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """The best place, chosen on one half and scored on the other: score, control there, and place."""
        chosen = np.nan_to_num(self.mean(curve.values, half="choose"), nan=-np.inf).argmax(1)
        rows = np.arange(len(chosen))
        scored = self.mean(curve.values, half="score")[rows, chosen]
        control = np.full_like(scored, np.nan)
        if curve.control is not None:
            control = self.mean(curve.control, half="score")[rows, chosen]
        return scored, control, chosen

    def align(self, table: pd.DataFrame, value: str, *, places: str | list[str]) -> tuple[Floats, tuple[Any, ...]]:
        """A column of a long table as (items, places)."""
        numbers = table.assign(**{value: table[value].astype(float)})
        wide = numbers.pivot_table(index="group", columns=places, values=value, aggfunc="mean")
        return wide.reindex(self.groups).to_numpy(dtype=float), tuple(wide.columns)


def probe_curve(
    items: Items, hits: pd.DataFrame, *, condition: str, span: str, stack: str, kind: str = "object"
) -> Curve | None:
    """Which items a probe got right at each layer of a stack; `None` where nothing was probed."""
    chosen = hits[(hits.condition == condition) & (hits.span == span) & (hits["stack"] == stack) & (hits.kind == kind)]
    chosen = chosen[chosen.layer.notna()] if stack != "projector" else chosen.assign(layer=0)
    if chosen.empty:
        return None
    values, places = items.align(chosen, "correct", places="layer")
    control, _ = items.align(chosen, "control", places="layer")
    floor = max(float(chosen.chance.mean()), float(chosen.shuffled.mean()))
    return Curve(values=values, control=control, floor=floor, places=places)


def patch_curve(
    items: Items, rows: pd.DataFrame, counted: NDArray[np.bool_], *, experiment: str, span: str, value: str
) -> Curve | None:
    """What a patch did at each decoder layer, for the items that count.

    `value` is a column, or `lost`: the share of (base − ceiling) that was lost, of both runs' mean difference.
    """
    chosen = rows[(rows.experiment == experiment) & (rows.span == span)]
    chosen = chosen[chosen.target_site.str.endswith("resid_post")]
    if chosen.empty:
        return None
    layer = chosen.target_site.str.extract(r"lm\.(\d+)\.")[0].astype(int)
    source = chosen.source_site.str.extract(r"lm\.(\d+)\.")[0].astype(int)
    keys = ["source", "layer"] if experiment == "backpatch" else "layer"
    values, places = items.align(chosen.assign(layer=layer, source=source), value, places=keys)
    return Curve(values=np.where(counted[:, None], values.astype(float), np.nan), places=places)


def behaviour(items: Items, answers: pd.DataFrame) -> Mapping[str, Floats]:
    """Shares in 0 to 1 per group: right under each condition, both steps pass, direct answer unreadable."""
    missing = {"direct", "cascaded", "oracle"} - set(answers.condition)
    if missing:
        raise RunError(f"the locator needs answers under {', '.join(sorted(missing))} as well")
    passing = answers.assign(passing=answers.id.isin(both_steps_pass(answers)), unreadable=~answers.parsed)
    found = {
        name: items.align(passing[passing.condition == name], "correct", places="task")[0][:, 0]
        for name in passing.condition.unique()
    }
    direct, cascaded = (passing[passing.condition == name] for name in ("direct", "cascaded"))
    return {
        **found,
        "saw": items.align(cascaded, "saw", places="task")[0][:, 0],
        "passing": items.align(direct, "passing", places="task")[0][:, 0],
        "unreadable": items.align(direct, "unreadable", places="task")[0][:, 0],
    }
