"""What a probe is to predict: the labels of a target, their control, and their shuffle."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seamscope.hooks import StoreError, choose

Codes = NDArray[np.int64]

PREFIXES = {"real": "", "control": "control_", "shuffled": "shuffled_"}  # of a table's columns, by kind of labels
MANY = 100  # classes, of which so many may be in one group only; fewer are fitted, and called starved
MOST_ALONE = 0.5  # share


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is to be predicted of one target in one condition: class codes or numbers, (rows,) each.

    Attributes:
        target: name of the variable.
        problems: by kind: `real`, and `control` and `shuffled` where they were asked for.
        labelled: which rows have a label; others have code -1, or no number.
    """

    target: str
    problems: dict[str, NDArray[Any]]
    labelled: NDArray[np.bool_]


def make_labels(
    rows: pd.DataFrame,
    target: str,
    *,
    control: bool,
    shuffled: bool,
    seed: int,
    numbers: bool = False,
    own: slice = slice(None),
) -> Labels:
    """Read the column `var:<target>`, as classes or as numbers, and the column `type:<target>` for the control.

    Among rows of several conditions, `own` are those of the one whose labels are wanted: codes, and the control's label
    of a type, are the same in all; a shuffle stays in one.

    Raises:
        StoreError: if a column is missing, or the target has fewer than two classes, or so many that most of them
            are in one group only and can never be both learned and tested; or is no number where numbers are meant.
    """
    column = _column(rows, "var:", target)
    real = _numbers(column, target) if numbers else _codes(column)
    known = np.isfinite(real) if numbers else real >= 0
    problems, labelled = {"real": real[own]}, known[own]
    groups = rows["group"][own][labelled] if "group" in rows else None
    _check(target, problems["real"][labelled], groups, numbers=numbers)
    if control:
        types = _codes(_column(rows, "type:", target))
        rng = np.random.default_rng(_seeds(seed, target, 1))
        problems["control"] = control_labels(real, types, rng, labelled=known)[own]
    if shuffled:
        rng = np.random.default_rng(_seeds(seed, target, 2))
        problems["shuffled"] = shuffled_labels(problems["real"], rng, labelled=labelled)
    return Labels(target=target, problems=problems, labelled=labelled)


def _check(target: str, labels: NDArray[Any], groups: pd.Series[Any] | None, *, numbers: bool) -> None:
    distinct, codes = np.unique(labels, return_inverse=True)
    if len(distinct) < 2:
        what = "different numbers" if numbers else "classes"
        raise StoreError(f"target {target!r} has {len(distinct)} {what}; a probe needs at least 2")
    if numbers or groups is None:
        return
    held = pd.Series(groups.to_numpy()).groupby(codes).nunique()
    if len(distinct) > MANY and (held < 2).mean() > MOST_ALONE:
        alone = int((held < 2).sum())
        raise StoreError(
            f"target {target!r} has {len(distinct)} classes, {alone} of them in one group only: what is held out was "
            "never learned; probe a coarser variable, or store more items"
        )


def control_labels(
    real: NDArray[Any], types: Codes, rng: np.random.Generator, *, labelled: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """One random label for each control type; the labels are about as frequent as the real ones.

    Section 2 of Hewitt & Liang 2019 (1909.03368): nothing but memory of the types can predict such labels. There each
    type draws its label; with few types that makes one label commoner than any real one, and the control easier to
    guess than the task. So the types, in random order, are dealt out in the real shares here. Rows without a label
    keep none; those without a type are their own type.
    """
    labelled = real >= 0 if labelled is None else labelled
    pool = np.sort(real[labelled])
    own_type = np.where(types >= 0, types, types.max(initial=-1) + 1 + np.arange(len(types)))[labelled]
    code = np.unique(own_type, return_inverse=True)[1]
    sizes = np.bincount(code)
    order = rng.permutation(len(sizes))
    middle = np.cumsum(sizes[order]) - sizes[order] / 2
    dealt = np.empty(len(sizes), real.dtype)
    dealt[order] = pool[middle.astype(np.int64)]
    if len(sizes) > 1 and len(np.unique(dealt)) == 1:  # a label that is too rare for any type
        dealt[order[0]] = rng.choice(pool[pool != dealt[0]])
    drawn = real.copy()
    drawn[labelled] = dealt[code]
    return drawn


def shuffled_labels(
    real: NDArray[Any], rng: np.random.Generator, *, labelled: NDArray[np.bool_] | None = None
) -> NDArray[Any]:
    """The same labels on other rows: no probe should beat chance on them."""
    labelled = real >= 0 if labelled is None else labelled
    shuffled = real.copy()
    shuffled[labelled] = rng.permutation(real[labelled])
    return shuffled


def _column(rows: pd.DataFrame, prefix: str, target: str) -> pd.Series[str]:
    known = [str(name).removeprefix(prefix) for name in rows.columns if str(name).startswith(prefix)]
    what = "target" if prefix == "var:" else "control type (give control=False to go without) of target"
    return rows[prefix + choose(what, target, known, StoreError)]


def _numbers(column: pd.Series[str], target: str) -> NDArray[np.float64]:
    """The column as numbers, NaN where missing."""
    found = pd.to_numeric(column.where(column != ""), errors="coerce")
    wrong = column[found.isna() & column.notna() & (column != "")]
    if len(wrong) or not np.isfinite(found.dropna()).all():
        told = f"{wrong.iloc[0]!r} is none" if len(wrong) else "some are not finite"
        raise StoreError(f"target {target!r} is to be predicted as a number, but {told}")
    return found.to_numpy(dtype=np.float64)


def _codes(column: pd.Series[str]) -> Codes:
    """Codes of the sorted distinct values, -1 where missing."""
    codes, _ = pd.factorize(column, sort=True, use_na_sentinel=True)
    return codes.astype(np.int64)


def _seeds(seed: int, target: str, kind: int) -> list[int]:
    return [seed, zlib.crc32(target.encode()), kind]
