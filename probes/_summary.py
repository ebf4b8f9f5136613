"""From folds to one row per cell, with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from seamscope.probes._stats import bootstrap_interval, paired_bootstrap_interval

_CELL = ["site", "layer", "stack", "span", "condition", "target"]
_NONE = (float("nan"), float("nan"))


def summarise(grid: pd.DataFrame, *, n: int = 2000, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Pool the folds of `probe_grid`: one row per site, span, condition and target.

    Columns: `accuracy` over all test items with `low, high`; `control_accuracy`, and `selectivity` =
    accuracy − control accuracy on the same items with `selectivity_low, selectivity_high`;
    `shuffled_accuracy` with `shuffled_low, shuffled_high`; `chance` (weighted by test items); `n_rows,
    n_groups, n_dropped, n_classes`; `starved` if any fold was, `converged` if all did. Intervals are
    percentiles of a bootstrap over groups; they hold the fitted probes fixed. What was not fitted is NaN.
    """
    cells = grid.groupby(_CELL, sort=False, dropna=False)
    options = {"n": n, "level": level, "seed": seed}
    return pd.DataFrame([{**dict(zip(_CELL, key, strict=True)), **_row(cell, options)} for key, cell in cells])


def _row(cell: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    groups = np.concatenate(list(cell["groups"]))
    real, control, shuffled = (_pooled(cell[f"{kind}correct"]) for kind in ("", "control_", "shuffled_"))
    low, high = bootstrap_interval(real, groups, **options)
    gain = _NONE if control is None else paired_bootstrap_interval(real, control, groups, **options)
    blind = _NONE if shuffled is None else bootstrap_interval(shuffled, groups, **options)
    return {
        "accuracy": _mean(real),
        "low": low,
        "high": high,
        "control_accuracy": _mean(control),
        "selectivity": _mean(real) - _mean(control),
        "selectivity_low": gain[0],
        "selectivity_high": gain[1],
        "shuffled_accuracy": _mean(shuffled),
        "shuffled_low": blind[0],
        "shuffled_high": blind[1],
        "chance": _mean(np.repeat(cell["chance"], cell["n_test"])),
        "n_rows": len(groups),
        "n_groups": len(set(groups)),
        "n_dropped": int(cell["n_dropped"].iloc[0]),
        "n_classes": int(cell["n_classes"].max()),
        "starved": bool(cell["starved"].any()),
        "converged": bool(cell["converged"].all()),
    }


def _pooled(correct: pd.Series[Any]) -> Any:
    return None if correct.isna().any() else np.concatenate(list(correct))


def _mean(values: Any) -> float:
    return float("nan") if values is None or not len(values) else float(np.mean(values))
