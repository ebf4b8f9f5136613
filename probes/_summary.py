"""From folds to one row per cell, with intervals."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from seamscope.probes._stats import bootstrap_interval, exceeds, false_discovery, paired_bootstrap_interval

CELL: Final = ["site", "layer", "stack", "span", "condition", "target"]
ERRORS: Final = 1.96  # standard errors from the middle of a 95 % interval to its ends
RISING: Final = 0.05  # accuracy that the last doubling of the rows still gains, from which on a probe is starved
_NONE: Final = (float("nan"), float("nan"))


def summarise(grid: pd.DataFrame, *, n: int = 2000, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Pool the folds of `probe_grid`: one row per site, span, condition and target.

    Columns: `accuracy` over all test items with `low, high`; `control_accuracy` with `control_low, control_high`, and
    `selectivity` = accuracy − control accuracy on the same items with `selectivity_low, selectivity_high`;
    `shuffled_accuracy` with `shuffled_low, shuffled_high`; `chance`, the share of the commonest class, and `uniform`,
    one of the number of classes; `p`, of a one-sided paired t-test of groups against always guessing that class, and
    `q`, the same with the false discoveries of the whole table controlled (Benjamini & Hochberg); `bits` and
    `control_bits` per label of the online code with `_low, _high`, to compare with the `prior_bits` that a label takes
    for one who only counts the classes, and the `uniform_bits` where they are equally frequent; `gain`, of the last
    doubling of the training rows, with its interval; `C`, the median strength, and in which share of the folds it was
    the `weakest` penalty offered; `n_rows, n_groups, n_dropped, n_classes`; `starved` if any fold was, or if the gain
    is more than 0.05 and more than its standard error; `copies`, the mean share of test rows with a near copy in
    training; `converged` if all did. Intervals are percentiles of a bootstrap over groups; they hold the fitted probes
    fixed. What was not fitted is NaN.
    """
    cells = grid.groupby(CELL, sort=False, dropna=False)
    options = {"n": n, "level": level, "seed": seed}
    rows = [{**dict(zip(CELL, key, strict=True)), **_row(cell, options)} for key, cell in cells]
    for row, q in zip(rows, false_discovery([row["p"] for row in rows]), strict=True):
        row["q"] = q
    return pd.DataFrame(rows)


def _row(cell: pd.DataFrame, options: dict[str, Any]) -> dict[str, Any]:
    groups = np.concatenate(list(cell["groups"]))
    real, control, shuffled = (_pooled(cell[f"{kind}correct"]) for kind in ("", "control_", "shuffled_"))
    bits, control_bits = (_pooled(cell[name]) if name in cell else None for name in ("bits", "control_bits"))
    gain = _NONE if control is None else paired_bootstrap_interval(real, control, groups, **options)
    low, high, last = (cell[name].iloc[0] for name in ("gain_low", "gain_high", "gain"))
    rising = bool(last > max(RISING, (high - low) / (2 * ERRORS)))
    return {
        **_estimate("", real, groups, options, name="accuracy"),
        **_estimate("control_", control, groups, options, name="accuracy"),
        "selectivity": _mean(real) - _mean(control),
        "selectivity_low": gain[0],
        "selectivity_high": gain[1],
        **_estimate("shuffled_", shuffled, groups, options, name="accuracy"),
        "chance": _mean(np.concatenate(list(cell["blind"]))),
        "uniform": _mean(np.repeat(cell["uniform"], cell["n_test"])),
        "p": exceeds(real, np.concatenate(list(cell["blind"])), groups),
        "q": float("nan"),
        **_estimate("bits_", bits, groups, options, name=""),
        **_estimate("control_bits_", control_bits, groups, options, name=""),
        "prior_bits": _mean(_pooled(cell["prior_bits"])) if "prior_bits" in cell else float("nan"),
        "uniform_bits": float(-np.log2(cell["uniform"]).max()) if (cell["uniform"] > 0).all() else float("nan"),
        **{name: float(cell[name].iloc[0]) for name in ("gain", "gain_low", "gain_high")},
        "C": float(np.median(cell["C"])),
        "weakest": float(cell["weakest"].mean()),
        "n_rows": len(groups),
        "n_groups": len(set(groups)),
        "n_dropped": int(cell["n_dropped"].iloc[0]),
        "n_classes": int(cell["n_classes"].max()),
        "starved": bool(cell["starved"].any()) or rising,
        "copies": _mean(np.repeat(cell["copies"], cell["n_test"])),
        "converged": bool(cell["converged"].all()),
    }


def _estimate(prefix: str, values: Any, groups: Any, options: dict[str, Any], *, name: str) -> dict[str, float]:
    """A mean with its interval; NaN where there is nothing."""
    low, high = _NONE if values is None else bootstrap_interval(values, groups, **options)
    return {prefix + name if name else prefix[:-1]: _mean(values), f"{prefix}low": low, f"{prefix}high": high}


def _pooled(parts: pd.Series[Any]) -> Any:
    values = None if parts.isna().any() else np.concatenate(list(parts))
    return None if values is None or np.isnan(values).any() else values


def _mean(values: Any) -> float:
    return float("nan") if values is None or not len(values) else float(np.mean(values))
