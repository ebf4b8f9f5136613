"""A probe for every site, span, condition, target and fold of a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from seamscope.activations import Store
from seamscope.hooks import StoreError
from seamscope.probes._cell import Cell
from seamscope.probes._choice import strengths_of
from seamscope.probes._folds import grouped_folds, groups_of
from seamscope.probes._kinds import kind_of
from seamscope.probes._labels import make_labels
from seamscope.probes._plan import Planned, plan_cells
from seamscope.probes._prober import Prober, Record
from seamscope.probes._side_by_side import in_threads

PER_ITEM = ("rows", "groups", "correct", "control_correct", "shuffled_correct", "blind", "bits", "control_bits")
_COLUMNS = (
    *("site", "layer", "stack", "span", "condition", "target", "fold"),
    *("accuracy", "control_accuracy", "shuffled_accuracy", "chance", "uniform", "C"),
    *("n_train", "n_test", "n_classes", "n_dropped", "starved", "copies", "converged"),
    *("curve_rows", "curve", "curve_low", "curve_high", "gain", "gain_low", "gain_high"),
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
    kind: str = "logistic",
    folds: int = 5,
    seed: int = 0,
    control: bool = True,
    shuffled: bool = True,
    code: bool = True,
    C: float | Sequence[float] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = False,
) -> pd.DataFrame:
    """Fit linear probes across a store and score them on items they were not fitted on.

    Rows with the same `group` (an item and its counterfactual partner), or with the same picture, are never on both
    sides of a split, and a group is in the same fold in every condition. A class that only test items have counts as
    wrong. Of several strengths the one is taken that does best in folds inside the training rows; control and shuffled
    labels are fitted with the same one.

    Args:
        store: an open store whose rows have a `group`.
        target: variables to predict, from the columns `var:<target>`.
        sites: names or globs; None: all.
        spans: names; `image.object.{k}` stands for the target's own object, the first number in its name
            (`card.0.rank`: `image.object.0`). None: all.
        conditions: names; None: all.
        pool: how a row's tokens become one vector, `mean` or `last`. Rows without tokens are left out.
        kind: `logistic`, `ridge` (classification), or `regression` (ridge, of numbers; then accuracies are R^2).
        folds: number of folds.
        seed: of folds, control labels and shuffles; the same labels are used at every site.
        control: also fit the control task of Hewitt & Liang (1909.03368), whose types are the column
            `type:<target>`.
        shuffled: also fit shuffled labels, which must come out at chance.
        code: also measure the online description length of the labels, and of those of the control task (Voita &
            Titov 2003.12298), and a learning curve; for `logistic` only.
        C: inverse strengths of the penalty to choose from, or one; None: 0.1, 1, 10, 100 and 1000, divided by the
            number of features.
        device: where the fits run, `cpu` or `cuda`.
        workers: cells fitted side by side, each in one thread.
        progress: show a progress bar.

    Returns:
        One row per site, span, condition, target and fold: `accuracy`, `control_accuracy` and
        `shuffled_accuracy` on the test rows; `chance`, the share of the commonest class in training, and `uniform`,
        one of the number of classes; `C`, the strength that was chosen; `n_train, n_test, n_classes`; `n_dropped`,
        labelled rows of the condition without tokens; `starved`, fewer than five training rows per class; `copies`,
        the share of test rows with a near copy in training; `converged`, of all fits in the row. The same in all
        folds: `curve`, accuracy on the later half of the rows after fitting `curve_rows` of the earlier, and the `gain`
        of their last doubling, both with intervals. The columns `PER_ITEM` hold one array each: test rows as positions
        in `store.rows(condition)`, their groups, scores of real, control and shuffled labels, whether the commonest
        class is right, and the bits that real and control labels take. `summarise` pools the folds.

    Raises:
        StoreError, SiteError, SpanError: for an unknown name, fewer than two classes, values that are not finite, or
            too few groups.
    """
    how = Prober(kind=kind_of(kind), strengths=strengths_of(C), code=code, seed=seed)
    plan = plan_cells(store, targets=_listed(target), sites=sites, spans=spans, conditions=conditions)
    rows = {condition: store.rows(condition) for condition in dict.fromkeys(cell.condition for cell in plan)}
    groups = groups_of(rows)
    fold_of = grouped_folds(np.concatenate(list(groups.values())).tolist(), folds, seed)
    numbers = not how.kind.classifies
    own = {condition: table.assign(group=groups[condition]) for condition, table in rows.items()}
    labels = {
        (condition, name): make_labels(
            own[condition], name, control=control, shuffled=shuffled, seed=seed, numbers=numbers
        )
        for condition, name in dict.fromkeys((cell.condition, name) for cell in plan for name in cell.targets)
    }

    def fit(planned: Planned) -> list[Record]:
        own = groups[planned.condition]
        in_fold = np.array([fold_of[name] for name in own], dtype=np.int64)
        cell = Cell.read(store, planned.site, planned.span, planned.condition, pool=pool, device=device)
        return list(how.probe(cell, [labels[planned.condition, name] for name in planned.targets], in_fold, own))

    records = in_threads(fit, plan, workers, "probes", progress)
    return pd.DataFrame(records, columns=list(_COLUMNS)).astype({"layer": "Int64"})


def probe_features(
    features: ArrayLike,
    rows: pd.DataFrame,
    target: str | Sequence[str],
    *,
    name: str,
    kind: str = "logistic",
    folds: int = 5,
    seed: int = 0,
    control: bool = True,
    shuffled: bool = True,
    code: bool = True,
    C: float | Sequence[float] | None = None,
    device: str = "cpu",
) -> pd.DataFrame:
    """The same probes on features that are no activations, such as raw pixels: what a model need not have made.

    Args:
        features: (rows, d), finite.
        rows: a table with `group`, and `var:<target>` and `type:<target>` of every target, a row for each.
        target: variables to predict.
        name: what the columns `site` and `stack` say.
        kind, folds, seed, control, shuffled, code, C, device: as for `probe_grid`.

    Returns:
        The columns of `probe_grid`; `span` and `condition` are empty.
    """
    how = Prober(kind=kind_of(kind), strengths=strengths_of(C), code=code, seed=seed)
    X = torch.as_tensor(np.asarray(features, dtype=np.float64)).to(device)
    if X.ndim != 2 or len(X) != len(rows) or not X.isfinite().all():
        raise StoreError(f"features must be finite, (rows, d) for {len(rows)} rows; got {tuple(X.shape)}")
    groups = groups_of({"": rows})[""]
    fold_of = grouped_folds(groups.tolist(), folds, seed)
    place = {"site": name, "layer": None, "stack": name, "span": "", "condition": ""}
    cell = Cell(features=X, held=np.ones(len(X), dtype=bool), place=place)
    own, numbers = rows.assign(group=groups), not how.kind.classifies
    labels = [
        make_labels(own, each, control=control, shuffled=shuffled, seed=seed, numbers=numbers)
        for each in _listed(target)
    ]
    in_fold = np.array([fold_of[each] for each in groups], dtype=np.int64)
    return pd.DataFrame(how.probe(cell, labels, in_fold, groups), columns=list(_COLUMNS)).astype({"layer": "Int64"})


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
