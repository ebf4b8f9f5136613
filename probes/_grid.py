"""A probe for every site, span, condition, target and fold of a store."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from seamscope.activations import Store
from seamscope.hooks import SpanError, StoreError, choose
from seamscope.hooks._site import expand_sites
from seamscope.probes._cell import Cell, Record
from seamscope.probes._labels import Codes, Labels, grouped_folds, make_labels

PER_ITEM = ("rows", "groups", "correct", "control_correct", "shuffled_correct")
_COLUMNS = (
    *("site", "layer", "stack", "span", "condition", "target", "fold"),
    *("accuracy", "control_accuracy", "shuffled_accuracy", "chance"),
    *("n_train", "n_test", "n_classes", "n_dropped", "starved", "converged"),
    *PER_ITEM,
)
_OWN = "{k}"  # in a span: the first number in the target's name


def probe_grid(
    store: Store,
    target: str | Sequence[str],
    *,
    sites: str | Sequence[str] | None = None,
    spans: str | Sequence[str] | None = None,
    conditions: str | Sequence[str] | None = None,
    pool: str = "mean",
    folds: int = 5,
    seed: int = 0,
    control: bool = True,
    shuffled: bool = True,
    C: float = 1.0,
    workers: int | None = None,
) -> pd.DataFrame:
    """Fit linear probes across a store and score them on items they were not fitted on.

    Rows with the same `group` (an item and its counterfactual partner) are never on both sides of a split, and
    a group is in the same fold in every condition. A class that only test items have counts as wrong.

    Args:
        store: an open store whose rows have a `group`.
        target: variables to predict, from the columns `var:<target>`.
        sites: names or globs; None: all.
        spans: names; `image.object.{k}` stands for the target's own object, the first number in its name
            (`card.0.rank`: `image.object.0`). None: all.
        conditions: names; None: all.
        pool: how a row's tokens become one vector, `mean` or `last`. Rows without tokens are left out.
        folds: number of folds.
        seed: of folds, control labels and shuffles; the same labels are used at every site.
        control: also fit the control task of Hewitt & Liang (1909.03368), whose types are the column
            `type:<target>`.
        shuffled: also fit shuffled labels, which must come out at chance.
        C: inverse strength of the penalty.
        workers: threads; None: one per processor, at most 8.

    Returns:
        One row per site, span, condition, target and fold: `accuracy`, `control_accuracy`, `shuffled_accuracy`
        on the test rows; `chance`, the share of the commonest class in training; `n_train, n_test, n_classes`;
        `n_dropped`, labelled rows of the condition without tokens; `starved`, fewer than five training rows per
        class; `converged`, of all fits in the row. The columns `PER_ITEM` hold one array each: test rows as
        positions in `store.rows(condition)`, their groups, and which were right. `summarise` pools the folds.

    Raises:
        StoreError, SiteError, SpanError: for an unknown name, fewer than two classes, or too few groups.
    """
    chosen = _Chosen.of(store, conditions, sites, spans, [target] if isinstance(target, str) else list(target))
    rows = {condition: store.rows(condition) for condition in chosen.conditions}
    groups = {condition: _groups(condition, table) for condition, table in rows.items()}
    fold_of = grouped_folds([name for names in groups.values() for name in names], folds, seed)
    labels = {
        (c, t): make_labels(rows[c], t, control=control, shuffled=shuffled, seed=seed)
        for c in chosen.conditions
        for t in chosen.targets
    }

    def fit(cell: tuple[str, str, str]) -> list[Record]:
        site, span, condition = cell
        wanted = [labels[condition, t] for t in chosen.targets_at(span)]
        acts = Cell.pooled(site, span, condition, store.read(site, span, condition), pool)
        in_fold = np.array([fold_of[name] for name in groups[condition]], dtype=np.int64)
        return acts.fit(wanted, in_fold, groups[condition], C)

    records = _in_threads(fit, chosen.cells(store), workers)
    return pd.DataFrame(records, columns=list(_COLUMNS)).astype({"layer": "Int64"})
