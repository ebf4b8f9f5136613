"""Which rows are fitted on and which are scored: rows that belong together are never separated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from seamscope.hooks import StoreError

Codes = NDArray[np.int64]
Names = NDArray[np.object_]

TOGETHER = ("group", "image")  # columns of rows that no split separates where they are equal


def groups_of(tables: dict[str, pd.DataFrame]) -> dict[str, Names]:
    """The group of every row of every condition; rows that share a `group`, or an `image`, are in one.

    An item and its counterfactual partner share the column `group`; rows with the same picture, which the column
    `image` tells where there is one, are the same to a probe whatever their groups are called.

    Returns:
        Names by condition, each that of the group's first row.

    Raises:
        StoreError: for a row without a group.
    """
    rows = pd.concat([_named(name, table) for name, table in tables.items()], ignore_index=True)
    links = [pd.factorize(rows[column], use_na_sentinel=True)[0] for column in TOGETHER if column in rows]
    own = np.arange(len(rows))
    ends = [np.full(len(rows), -1) for _ in links]
    for found, codes in zip(ends, links, strict=True):
        first = np.unique(codes[codes >= 0], return_index=True)[1]
        found[codes >= 0] = own[codes >= 0][first][codes[codes >= 0]]
    sides = [np.concatenate([own[found >= 0] for found in ends]), np.concatenate([found[found >= 0] for found in ends])]
    edges = coo_matrix((np.ones(len(sides[0])), sides), shape=(len(rows), len(rows)))
    part = connected_components(edges, directed=False)[1]
    names = rows["group"].astype(str).groupby(part).transform("first").to_numpy(dtype=object)
    bounds = np.cumsum([len(table) for table in tables.values()])[:-1]
    return dict(zip(tables, np.split(names, bounds), strict=True))


def _named(condition: str, rows: pd.DataFrame) -> pd.DataFrame:
    if "group" not in rows or rows["group"].isna().any():
        raise StoreError(f"every row under {condition!r} needs a 'group': partners that must share a fold")
    held = rows[[column for column in TOGETHER if column in rows]]
    return held.assign(group=held["group"].astype(str))


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


def inner_folds(groups: Names, folds: int, seed: int) -> Codes:
    """The inner fold of each training row, by which a strength is chosen; -1 everywhere where groups are too few."""
    if len(set(groups)) < folds:
        return np.full(len(groups), -1)
    fold_of = grouped_folds(groups.tolist(), folds, seed)
    return np.array([fold_of[name] for name in groups], dtype=np.int64)


def group_order(groups: Names, seed: int) -> Codes:
    """Row numbers, group after group, groups in an order that depends on their names and the seed alone."""
    names = sorted(set(groups))
    place = dict(zip(names, np.random.default_rng([seed, 1]).permutation(len(names)), strict=True))
    return np.argsort([place[name] for name in groups], kind="stable").astype(np.int64)
