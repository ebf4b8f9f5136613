"""Intervals for means over items that come in groups."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import false_discovery_control, ttest_1samp

_BLOCK = 2_000_000  # resampled group counts held at once

Floats = NDArray[np.float64]


def bootstrap_interval(
    values: ArrayLike, groups: ArrayLike | None = None, *, n: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean when whole groups are resampled (cluster bootstrap).

    Items of one group, such as an item and its counterfactual partner, are not independent; resampling them
    one by one gives intervals that are too narrow (Davison & Hinkley 1997, section 3.8). Values that are all
    equal give an interval of no width: with few groups, an accuracy of 1 is less certain than that looks.

    Args:
        values: one number per item, (items,).
        groups: group of each item, (items,); None: every item is its own group.
        n: number of resamples.
        level: share of the resampled means between the two ends.
        seed: the same seed and number of groups give the same resamples.

    Returns:
        Lower and upper end; both NaN with fewer than two groups, where nothing can be resampled.
    """
    array, code = _grouped(values, groups)
    sizes = np.bincount(code)
    if len(sizes) < 2:
        return float("nan"), float("nan")
    sums = np.bincount(code, weights=array)
    return _ends([(c @ sums) / (c @ sizes) for c in _resamples(len(sizes), n, seed)], level)


def bootstrap_intervals(
    values: ArrayLike, groups: ArrayLike, *, n: int = 2000, level: float = 0.95, seed: int = 0
) -> Floats:
    """`bootstrap_interval` of several numbers of the same items, (items, k): lower and upper ends, (k, 2)."""
    array = np.asarray(values, dtype=np.float64)
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.bincount(code)
    if len(sizes) < 2:
        return np.full((array.shape[1], 2), np.nan)
    sums = np.zeros((len(sizes), array.shape[1]))
    np.add.at(sums, code, array)
    means = np.concatenate([(c @ sums) / (c @ sizes)[:, None] for c in _resamples(len(sizes), n, seed)])
    ends: Floats = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends.T


def median_interval(
    values: ArrayLike, groups: ArrayLike | None = None, *, n: int = 500, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the median when whole groups are resampled; otherwise as `bootstrap_interval`.

    The median of a resample is its lower one, a value that was observed.
    """
    array, code = _grouped(values, groups)
    if len(array) == 0 or code.max() < 1:
        return float("nan"), float("nan")
    order = np.argsort(array, kind="stable")
    found = []
    for counts in _resamples(int(code.max()) + 1, n, seed):
        below = counts[:, code[order]].cumsum(1)
        found.append(array[order][(2 * below >= below[:, -1:]).argmax(1)])
    return _ends(found, level)


def _grouped(values: ArrayLike, groups: ArrayLike | None) -> tuple[Floats, NDArray[np.int64]]:
    """Values, and the number of each one's group."""
    array = np.asarray(values, dtype=np.float64)
    labels = np.arange(len(array)) if groups is None else np.asarray(groups)
    if array.shape != labels.shape or array.ndim != 1:
        raise ValueError(f"values and groups must be one list each; got shapes {array.shape} and {labels.shape}")
    return array, np.unique(labels, return_inverse=True)[1]


def _ends(found: list[Floats], level: float) -> tuple[float, float]:
    low, high = np.quantile(np.concatenate(found), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_bootstrap_interval(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None, **options: Any
) -> tuple[float, float]:
    """Interval of the mean of `first - second` on the same items; options as `bootstrap_interval`."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return bootstrap_interval(difference, groups, **options)


def _resamples(n_groups: int, n: int, seed: int) -> Iterator[Floats]:
    """How often each group comes in each resample, in blocks of (resamples, groups)."""
    step = max(1, _BLOCK // n_groups)
    for start in range(0, n, step):
        yield _counts(n_groups, min(step, n - start), seed, start)


@lru_cache(maxsize=4)
def _counts(n_groups: int, n: int, seed: int, start: int) -> Floats:
    draws = np.random.default_rng([seed, start]).integers(n_groups, size=(n, n_groups))
    cells = (draws + n_groups * np.arange(n)[:, None]).ravel()
    counts = np.bincount(cells, minlength=n * n_groups).reshape(n, n_groups).astype(np.float64)
    counts.setflags(write=False)
    return counts


def exceeds(first: ArrayLike, second: ArrayLike, groups: ArrayLike) -> float:
    """p of a one-sided paired t-test that the mean of `first - second` is above 0, groups taken as one value each.

    Where no group differs from another there is nothing to test with: 0 where all are above, else 1.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    code = np.unique(np.asarray(groups), return_inverse=True)[1]
    sums = np.bincount(code, weights=difference)
    if len(sums) < 2:
        return float("nan")
    if np.ptp(sums) == 0:
        return 0.0 if sums[0] > 0 else 1.0
    return float(ttest_1samp(sums, 0, alternative="greater").pvalue)


def false_discovery(p: ArrayLike) -> Floats:
    """p-values with false discoveries controlled (Benjamini & Hochberg); what is NaN stays so, and is no test."""
    values = np.asarray(p, dtype=np.float64)
    tested = ~np.isnan(values)
    found = np.full(len(values), np.nan)
    if tested.any():
        found[tested] = false_discovery_control(values[tested])
    return found
