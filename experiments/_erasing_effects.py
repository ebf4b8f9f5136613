"""What erasing and pushing did, as means with intervals, beside what probes read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from seamscope.hooks import RunError, Site
from seamscope.probes import bootstrap_interval, exceeds, false_discovery

CELL: Final = ["condition", "site", "span", "variable"]
WARNING: Final = (
    "an intervention on a subspace can act through a pathway that is dormant otherwise (Makelov et al. 2311.17030), "
    "and an erasure takes only what is linear"
)
_PROBED: Final = {"target": "variable", "low": "accuracy_low", "high": "accuracy_high"}
_THERE: Final = ("accuracy", "selectivity")
_USED: Final = ("effect", "random_effect", "difference")
_ENDS: Final = ("", "_low", "_high")

Pairs = Mapping[str, tuple[str, str]]
Columns = dict[str, Any]


def summarise_erasing(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean effects of `erase_sweep`, one row per cell, with 95 % intervals of a bootstrap over groups.

    Columns: the cell with `stack, layer`; `n`; the means of all numbers of its rows; `effect` = erased − base,
    `random_effect` = random − base, `difference` = erased − random, in nats; `lost` and `random_lost`, shares of the
    right answers that are not right after. Each with `_low, _high`; what was learnt is held fixed. `p`, of a one-sided
    paired t-test over groups, that the erasure costs more than the control; `q`, with false discoveries controlled
    over the table (Benjamini & Hochberg). `changed` and `random_changed` say how much each changed the tokens.
    """
    effects = {"effect": ("erased", "base"), "random_effect": ("random", "base"), "difference": ("erased", "random")}
    lost = {"lost": ("base_right", "erased_right"), "random_lost": ("base_right", "random_right")}
    return _summary(table, effects, lost, ("random", "erased"), seed=seed)


def summarise_pushes(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean effects of `push_sweep`, one row per cell, with 95 % intervals of a bootstrap over groups.

    Columns: the cell with `stack, layer`; `n`; the means of all numbers of its rows; `effect`, what the push adds to
    the log-probability of the partner's answer, `random_effect`, and their `difference`, in nats; the same of the own
    answer, `own_effect, own_random_effect, own_difference`; `lost` and `random_lost`, shares of the right own answers
    that are not right after. Each with `_low, _high`; what was learnt is held fixed. `p`, of a one-sided paired t-test
    over groups, that the push adds more to the partner's answer than the control does; `q`, with false discoveries
    controlled over the table (Benjamini & Hochberg).
    """
    effects = {
        f"{prefix}{name}": (f"{who}{after}", f"{who}{before}")
        for prefix, who in (("", "partner"), ("own_", "own"))
        for name, after, before in (
            ("effect", "_pushed", ""),
            ("random_effect", "_random", ""),
            ("difference", "_pushed", "_random"),
        )
    }
    lost = {"lost": ("own_right", "own_pushed_right"), "random_lost": ("own_right", "own_random_right")}
    return _summary(table, effects, lost, ("partner_pushed", "partner_random"), seed=seed)


def _summary(table: pd.DataFrame, effects: Pairs, lost: Pairs, greater: tuple[str, str], *, seed: int) -> pd.DataFrame:
    rows = []
    for key, cell in table.groupby(CELL, sort=False):
        row: Columns = dict(zip(CELL, key, strict=True))
        site = Site.parse(row["site"])
        row |= {"stack": site.stack, "layer": site.layer, "n": len(cell)}
        row |= {str(name): mean for name, mean in cell.drop(columns="layer").mean(numeric_only=True).items()}
        for name, (first, second) in effects.items():
            row |= _estimate(name, cell[first] - cell[second], cell.group, seed=seed)
        for name, (before, after) in lost.items():
            right = cell[cell[before]]
            row |= _estimate(name, ~right[after], right.group, seed=seed)
        rows.append({**row, "p": exceeds(cell[greater[0]], cell[greater[1]], cell.group)})
    found = pd.DataFrame(rows).astype({"layer": "Int64"})
    return found.assign(q=false_discovery(found.p))


def _estimate(name: str, values: pd.Series[Any], groups: pd.Series[Any], *, seed: int) -> Columns:
    """A mean with its interval; NaN where there is nothing."""
    low, high = bootstrap_interval(values.to_numpy(dtype=float), groups, seed=seed)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def decodable_and_causal(probes: pd.DataFrame, erasing: pd.DataFrame) -> pd.DataFrame:
    """Put beside each other whether a variable is there and whether it is used.

    Args:
        probes: the summary of `probe_grid`.
        erasing: what `summarise_erasing` gives.

    Returns:
        One row per cell that is in both: `accuracy` of the probe, `control_accuracy`, `chance` and `selectivity`;
        `effect`, `random_effect` and `difference` of the erasure in nats; each with its interval where it has one;
        `p` and `q` of the difference; and a `warning` about what such a pair cannot tell.

    Raises:
        RunError: where no cell is in both.
    """
    there = [f"{name}{end}" for name in _THERE for end in _ENDS] + ["control_accuracy", "chance"]
    used = [f"{name}{end}" for name in _USED for end in _ENDS] + ["p", "q"]
    left = probes.rename(columns=_PROBED)[[*CELL, *there]]
    pairs = left.merge(erasing[[*CELL, "stack", "layer", *used]], on=CELL)
    if pairs.empty:
        raise RunError("no cell is in both tables; probe and erase the same variables at the same sites and spans")
    return pairs[[*CELL, "stack", "layer", *there, *used]].assign(warning=WARNING)
