"""What the locator weighs: every curve as one row per item, so that items can be resampled together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seamscope.hooks import RunError

from ._conditions import both_steps_pass

Floats = NDArray[np.float64]
RESAMPLES: Final = 1000
PATCH_PLACES: Final = ["span", "source", "layer"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One number per item and place: `values` (items, places), NaN where an item does not count.

    `control` is the same for the control that belongs to it, `floor` what knowing nothing would give.
    """

    values: Floats
    control: Floats | None = None
    floor: float = 0.0
    places: tuple[Any, ...] = (None,)

    def among(self, counted: NDArray[np.bool_]) -> Curve:
        """The same for some of the items only: `counted` (items,)."""
        control = None if self.control is None else np.where(counted[:, None], self.control, np.nan)
        return replace(self, values=np.where(counted[:, None], self.values, np.nan), control=control)


class Items:
    """The items of a study and resamples of them; one random half chooses, the other scores."""

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


def patch_curve(items: Items, rows: pd.DataFrame, *, experiment: str, spans: Sequence[str], value: str) -> Curve | None:
    """A column of a sweep at each cell of the decoder's residual stream; `None` where nothing was patched.

    Places are (span, source layer, layer written to). The control is `{experiment}_control`, where it was run.
    """
    chosen = _stream(rows, experiment, spans)
    if chosen.empty:
        return None
    values, places = items.align(chosen, value, places=PATCH_PLACES)
    beside = _stream(rows, f"{experiment}_control", spans)
    control = None if beside.empty else items.align(beside, value, places=PATCH_PLACES)[0]
    return Curve(values=values, control=control, places=places)


def _stream(rows: pd.DataFrame, experiment: str, spans: Sequence[str]) -> pd.DataFrame:
    wanted = (rows.experiment == experiment) & rows.span.isin(spans) & rows.target_site.str.endswith("resid_post")
    chosen = rows[wanted]
    layers = {
        name: chosen[site].str.extract(r"lm\.(\d+)\.", expand=False).astype(int)
        for name, site in (("source", "source_site"), ("layer", "target_site"))
    }
    return chosen.assign(**layers)


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
