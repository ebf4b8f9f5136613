"""Repairs over several samples of items: what the named one restores, beside the best other one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

NOT_NAMED: Final = r"hand over (?:behind|.* alone)"  # of some losses, or of none: never the verdict's own repair
COLUMNS: Final = ["name", "mends", "named", "restored", "control", "n"]
DRAWS: Final = 1000


def repaired(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every repair over the samples of one data set, and the named one and the best other, which others choose."""
    rows = [{"sample": k, **repair} for k, record in enumerate(records) for repair in record["repairs"] if repair["n"]]
    if not rows:
        return {}
    table = pd.DataFrame(rows)[["sample", *COLUMNS]]
    found = {
        "each": {str(name): {"named": int(own.named.sum()), **_pooled(own)} for name, own in table.groupby("name")}
    }
    named, other = _sides(table, [str(each["locus"]) for each in records])
    if named.empty:
        return found
    gains = [np.subtract(*_sums(side).T) for side in (named, other)]
    return {
        **found,
        "named": {"chosen": dict(Counter(named.name)), **_pooled(named)},
        "best_other": {"chosen": dict(Counter(other.name)), **_pooled(other)},
        "ahead_by": _estimate(gains[0] - gains[1], samples=len(named)),
    }


def _sides(table: pd.DataFrame, loci: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Of each sample, the repair that the others' verdicts name and find best, and the best of the rest."""
    picked: tuple[list[Any], list[Any]] = [], []
    for k in sorted(set(table["sample"])):
        own, others = table[table["sample"] == k], table[table["sample"] != k]
        gains = {str(name): float(np.subtract(*_sums(rows)[0])) for name, rows in others.groupby("name")}
        own = own[own.name.isin(list(gains))]
        told = Counter(locus for number, locus in enumerate(loci) if number != k).most_common(1)
        named = ~own.name.str.fullmatch(NOT_NAMED) & own.mends.isin([locus for locus, _ in told])
        if named.any() and not named.all():
            for rows, side in zip((own[named], own[~named]), picked, strict=True):
                side.append(rows.loc[rows.name.map(gains).idxmax()])
    named_rows, other_rows = (pd.DataFrame(side, columns=["sample", *COLUMNS]) for side in picked)
    return named_rows, other_rows


def _pooled(rows: pd.DataFrame) -> dict[str, Any]:
    """Shares of the answers of all samples, with intervals by resampling samples."""
    sums = _sums(rows)
    shares = {"restored": sums[:, 0], "control": sums[:, 1], "net": sums[:, 0] - sums[:, 1]}
    told = {name: _estimate(share, samples=len(rows)) for name, share in shares.items()}
    return {"samples": len(rows), "answers": int(rows.n.sum()), **told}


def _sums(rows: pd.DataFrame) -> Any:
    """What is restored and the control, (1 + resamples, 2); row 0 is the samples themselves."""
    drawn = np.random.default_rng(0).integers(len(rows), size=(DRAWS, len(rows)))
    chosen = np.concatenate([np.arange(len(rows))[None], drawn])
    n = rows.n.to_numpy(dtype=float)
    right = rows[["restored", "control"]].to_numpy(dtype=float) * n[:, None]
    return right[chosen].sum(1) / n[chosen].sum(1)[:, None]


def _estimate(values: Any, *, samples: int) -> dict[str, float | None]:
    """The estimate and its interval; of one sample nothing can be resampled."""
    low, high = np.quantile(values[1:], [0.025, 0.975]) if samples > 1 else (None, None)
    ends = {name: None if end is None else float(end) for name, end in (("low", low), ("high", high))}
    return {"estimate": float(values[0]), **ends}
