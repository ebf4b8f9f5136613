"""A probe for every site, span, condition, target and fold of a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from seamscope.activations import Store
from seamscope.hooks import StoreError
from seamscope.probes._cell import Cell, Record
from seamscope.probes._labels import grouped_folds, make_labels
from seamscope.probes._plan import Planned, plan_cells

PER_ITEM = ("rows", "groups", "correct", "control_correct", "shuffled_correct")
_COLUMNS = (
    *("site", "layer", "stack", "span", "condition", "target", "fold"),
    *("accuracy", "control_accuracy", "shuffled_accuracy", "chance"),
    *("n_train", "n_test", "n_classes", "n_dropped", "starved", "converged"),
    *PER_ITEM,
)


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
    workers: int = 1,
) -> pd.DataFrame:
    """Fit linear probes across a store and score them on items they were not fitted on.

    Rows with the same `group` (an item and its counterfactual partner) are never on both sides of a split,
    and a group is in the same fold in every condition. A class that only test items have counts as wrong.

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
        workers: cells fitted side by side, each in one thread; more than one pays for large activations only.

    Returns:
        One row per site, span, condition, target and fold: `accuracy`, `control_accuracy` and
        `shuffled_accuracy` on the test rows; `chance`, the share of the commonest class in training;
        `n_train, n_test, n_classes`; `n_dropped`, labelled rows of the condition without tokens; `starved`,
        fewer than five training rows per class; `converged`, of all fits in the row. The columns `PER_ITEM`
        hold one array each: test rows as positions in `store.rows(condition)`, their groups, and which were
        right. `summarise` pools the folds.

    Raises:
        StoreError, SiteError, SpanError: for an unknown name, fewer than two classes, or too few groups.
    """
    plan = plan_cells(store, targets=_listed(target), sites=sites, spans=spans, conditions=conditions)
    rows = {cell.condition: store.rows(cell.condition) for cell in plan}
    groups = {condition: _groups(condition, table) for condition, table in rows.items()}
    fold_of = grouped_folds(np.concatenate(list(groups.values())).tolist(), folds, seed)
    labels = {
        (condition, name): make_labels(rows[condition], name, control=control, shuffled=shuffled, seed=seed)
        for condition, name in dict.fromkeys((cell.condition, name) for cell in plan for name in cell.targets)
    }

    def fit(cell: Planned) -> list[Record]:
        acts = store.read(cell.site, cell.span, cell.condition)
        pooled = Cell.pooled(cell.site, cell.span, cell.condition, acts, pool)
        own = groups[cell.condition]
        in_fold = np.array([fold_of[name] for name in own], dtype=np.int64)
        return pooled.fit([labels[cell.condition, name] for name in cell.targets], in_fold, own, C)

    records = _in_threads(fit, plan, workers)
    return pd.DataFrame(records, columns=list(_COLUMNS)).astype({"layer": "Int64"})


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _groups(condition: str, rows: pd.DataFrame) -> NDArray[np.object_]:
    if "group" not in rows or rows["group"].isna().any():
        raise StoreError(f"every row under {condition!r} needs a 'group': partners that must share a fold")
    return rows["group"].astype(str).to_numpy(dtype=object)


def _in_threads(fit: Callable[[Planned], list[Record]], plan: list[Planned], workers: int) -> list[Record]:
    """Fit the cells with one thread of torch each: on small cells more of them cost time, beside other work much."""
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return [record for records in pool.map(fit, plan) for record in records]
