"""What a probe is to predict: the labels of a target, their control, their shuffle, and the folds."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from seamscope.hooks import StoreError, choose

Codes = NDArray[np.int64]

_TRIES = 100  # draws of a control labelling with more than one label


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Class codes of one target in one condition, (rows,) each; -1 where a row has no label.

    Attributes:
        target: name of the variable.
        problems: codes by kind: `real`, and `control` and `shuffled` where they were asked for.
    """

    target: str
    problems: dict[str, Codes]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which rows have a label."""
        return self.problems["real"] >= 0


def make_labels(rows: pd.DataFrame, target: str, *, control: bool, shuffled: bool, seed: int) -> Labels:
    """Read the column `var:<target>`, and the column `type:<target>` for the control.

    Raises:
        StoreError: if a column is missing, or the target has fewer than two classes.
    """
    real = _codes(_column(rows, "var:", target))
    if real.max(initial=-1) < 1:
        raise StoreError(f"target {target!r} has {real.max(initial=-1) + 1} classes; a probe needs at least 2")
    problems = {"real": real}
    if control:
        types = _codes(_column(rows, "type:", target))
        problems["control"] = control_labels(real, types, np.random.default_rng(_seeds(seed, target, 1)))
    if shuffled:
        problems["shuffled"] = shuffled_labels(real, np.random.default_rng(_seeds(seed, target, 2)))
    return Labels(target=target, problems=problems)


def control_labels(real: Codes, types: Codes, rng: np.random.Generator) -> Codes:
    """One random label for each control type, drawn with the frequencies of the real labels.

    Section 2 of Hewitt & Liang 2019 (1909.03368): nothing but memory of the types can predict such labels.
    Rows without a label keep none; those without a type are their own type.
    """
    pool = real[real >= 0]
    own_type = np.where(types >= 0, types, types.max(initial=-1) + 1 + np.arange(len(types)))
    kinds, code = np.unique(own_type, return_inverse=True)
    for _ in range(_TRIES):
        drawn = np.where(real >= 0, rng.choice(pool, size=len(kinds))[code], -1)
        if len(np.unique(drawn[real >= 0])) > 1:
            break
    return drawn


def shuffled_labels(real: Codes, rng: np.random.Generator) -> Codes:
    """The same labels on other rows: no probe should beat chance on them."""
    shuffled = real.copy()
    shuffled[real >= 0] = rng.permutation(real[real >= 0])
    return shuffled


def grouped_folds(groups: Sequence[str], folds: int, seed: int) -> dict[str, int]:
    """The fold of each group: groups in random order are dealt out one by one.

    Raises:
        StoreError: with fewer groups than folds.
    """
    names = sorted(set(groups))
    if not 2 <= folds <= len(names):
        raise StoreError(f"cannot make {folds} folds of {len(names)} groups; give between 2 and {len(names)}")
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[index]: place % folds for place, index in enumerate(order)}


def _column(rows: pd.DataFrame, prefix: str, target: str) -> pd.Series[str]:
    known = [str(name).removeprefix(prefix) for name in rows.columns if str(name).startswith(prefix)]
    what = "target" if prefix == "var:" else "control type (give control=False to go without) of target"
    return rows[prefix + choose(what, target, known, StoreError)]


def _codes(column: pd.Series[str]) -> Codes:
    """Codes of the sorted distinct values, -1 where missing."""
    codes, _ = pd.factorize(column, sort=True, use_na_sentinel=True)
    return codes.astype(np.int64)


def _seeds(seed: int, target: str, kind: int) -> list[int]:
    return [seed, zlib.crc32(target.encode()), kind]
