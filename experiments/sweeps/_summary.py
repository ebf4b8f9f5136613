"""From one row per (item, cell) to one row per cell, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seamscope.hooks import RunError, Site
from seamscope.probes import bootstrap_interval, bootstrap_intervals

MARGIN: Final = 0.5  # nats, or logits: pairs whose ceiling and base differ by less have no meaningful normalised effect
CONTROL: Final = "_control"  # ends the name of what stands beside an experiment
# what a row tells of an item; all other columns tell which cell it is
ITEM: Final = ("id", "group", "position")
MEASURED: Final = (
    *("base", "ceiling", "patched", "base_difference", "ceiling_difference", "difference"),
    *("base_rank", "rank", "kl", "base_right", "ceiling_right", "right", "first_right"),
)


def cell_columns(rows: pd.DataFrame) -> list[str]:
    """The columns of a sweep's table that say which cell a row is of."""
    return [str(name) for name in rows if name not in (*ITEM, *MEASURED)]


def summarise_sweep(rows: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Mean effects of a sweep, one row per cell.

    Columns: the cell; `source_layer, layer` (of the target), `stack`; `n`; `base, ceiling, patched` (mean
    log-probability, nats); `effect` = patched − base with `low, high` (95 % grouped bootstrap); `normalised` =
    the median over pairs of (patched − base) / (ceiling − base), pairs below the margin left out and counted in
    `below_margin`; the same of the logit difference: `difference` (its change) with interval, `difference_normalised`,
    `difference_below_margin`; `right` = share of items whose whole answer comes out, with interval; `flipped` = share
    of those in which that changed, with interval; `rank, base_rank` = medians; `kl` = mean, nats; `first_right`,
    `base_right`, `ceiling_right` = shares.
    """
    keys = cell_columns(rows)
    measures = _measures(rows)
    found = []
    for key, places in rows.groupby(keys, sort=False, dropna=False).indices.items():
        cell = dict(zip(keys, key if isinstance(key, tuple) else (key,), strict=True))
        own = {name: values[places] for name, values in measures.items()}
        found.append({**cell, **_places(cell), **_cell(own, rows.group.to_numpy()[places], seed=seed)})
    return pd.DataFrame(found)


def _measures(rows: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """The measured columns as numbers, and the changes that are made of them."""
    found = {name: rows[name].to_numpy(dtype=np.float64) for name in MEASURED if name in rows}
    found |= {"effect": found["patched"] - found["base"], "spread": found["ceiling"] - found["base"]}
    found |= {"flipped": (found["right"] != found["base_right"]).astype(np.float64)}
    if "difference" in found:
        found["room"] = found["ceiling_difference"] - found["base_difference"]
        found["change"] = found["difference"] - found["base_difference"]
    return found


def _places(cell: dict[str, Any]) -> dict[str, Any]:
    """Layers and stack of the sites of a cell, where it has them."""
    found: dict[str, Any] = {}
    if "target_site" in cell:
        target = Site.parse(str(cell["target_site"]))
        found |= {"stack": target.stack, "layer": target.layer}
    if "source_site" in cell:
        found |= {"source_layer": Site.parse(str(cell["source_site"])).layer}
    return found


WITH_ENDS: Final = {"effect": "", "right": "right_", "flipped": "flipped_", "change": "difference_"}


def _cell(own: Mapping[str, NDArray[np.float64]], groups: NDArray[Any], *, seed: int) -> dict[str, Any]:
    bounded = [name for name in WITH_ENDS if name in own and not np.isnan(own[name]).any()]
    ends = bootstrap_intervals(np.stack([own[name] for name in bounded], 1), groups, seed=seed)
    found: dict[str, Any] = {"n": len(groups), **{name: own[name].mean() for name in ("base", "ceiling", "patched")}}
    for name, prefix in WITH_ENDS.items():
        if name in own:
            low, high = ends[bounded.index(name)] if name in bounded else _known(own[name], groups, seed)
            found |= {"difference" if name == "change" else name: _mean(own[name])}
            found |= {f"{prefix}low": low, f"{prefix}high": high}
    found |= _normalised("", own["effect"], own["spread"])
    if "change" in own:
        found |= _normalised("difference_", own["change"], own["room"])
    found |= {name: float(np.median(own[name])) for name in ("rank", "base_rank") if name in own}
    shares = ("kl", "first_right", "base_right", "ceiling_right")
    return found | {name: own[name].mean() for name in shares if name in own}


def _known(values: NDArray[np.float64], groups: NDArray[Any], seed: int) -> tuple[float, float]:
    """The interval of those numbers that are known."""
    held = ~np.isnan(values)
    return bootstrap_interval(values[held], groups[held], seed=seed) if held.any() else (np.nan, np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    held = ~np.isnan(values)
    return float(values[held].mean()) if held.any() else float("nan")


def _normalised(prefix: str, effect: NDArray[np.float64], room: NDArray[np.float64]) -> dict[str, Any]:
    """The median share of what there is to gain; pairs between which there is little are left out and counted."""
    enough = np.abs(room) >= MARGIN
    share = float(np.median(effect[enough] / room[enough])) if enough.any() else float("nan")
    return {f"{prefix}normalised": share, f"{prefix}below_margin": int((np.abs(room) < MARGIN).sum())}


def best_cells(rows: pd.DataFrame, *, value: str = "effect", by: str = "experiment", seed: int = 0) -> pd.DataFrame:
    """The strongest cell of each experiment, chosen on one half of the groups and scored on the other.

    Chosen and scored on the same items, the best of many cells looks better than it is. A control is shown at the cell
    of what it controls.

    Args:
        rows: from `sweep`.
        value: `effect` (nats), or `difference` (change of the logit difference).
        by: the column whose values get a best cell each.
        seed: of the halves and of the intervals.

    Returns:
        One row per value of `by`: the cell, of those that half as many items have as any; `chosen`, its mean on the
        half that chose it; `effect` on the other with `low, high`; `n`, items of that half.
    """
    if value not in ("effect", "difference"):
        raise RunError(f"cells are compared by effect or difference, not by {value!r}")
    if by not in cell_columns(rows):
        raise RunError(f"the table has no column {by!r} of cells; it has {', '.join(cell_columns(rows))}")
    after, before = ("patched", "base") if value == "effect" else ("difference", "base_difference")
    groups = np.unique(rows.group.astype(str))
    choosing = set(np.random.default_rng(seed).permutation(groups)[: len(groups) // 2].tolist())
    table = rows.assign(effect=rows[after] - rows[before], choosing=rows.group.astype(str).isin(choosing))
    table = table[table.effect.notna()]
    keys = cell_columns(rows)
    found = []
    whole = dict(list(table.groupby(by, sort=False)))
    for which, own in whole.items():
        led = whole.get(str(which).removesuffix(CONTROL), own).assign(**{by: which})
        held = led[led.choosing].groupby(keys, sort=False, dropna=False).effect.agg(["mean", "count"]).reset_index()
        held = held[held["count"] * 2 >= held["count"].max()]  # the mean of few items may be anything
        for _, best in held.reindex(held["mean"].abs().sort_values(ascending=False).index).iterrows():
            named, at = {name: best[name] for name in keys}, own
            for name, wanted in named.items():
                at = at[at[name].isna() if pd.isna(wanted) else at[name] == wanted]
            scored = at[~at.choosing]
            if len(scored):
                low, high = bootstrap_interval(scored.effect.to_numpy(), scored.group, seed=seed)
                ends = {"effect": float(scored.effect.mean()), "low": low, "high": high, "n": len(scored)}
                found.append({**named, "chosen": float(at[at.choosing].effect.mean()), **ends})
                break
    return pd.DataFrame(found)
