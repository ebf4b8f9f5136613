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
from seamscope.probes._kinds import kind_of
from seamscope.probes._plan import Planned, plan_cells
from seamscope.probes._prober import Prober, Record
from seamscope.probes._rows import Rows
from seamscope.probes._side_by_side import side_by_side
from seamscope.probes._store_prober import StoreProber

PER_ITEM = (
    "rows",
    "groups",
    "correct",
    "control_correct",
    "shuffled_correct",
    "blind",
    "bits",
    "control_bits",
    "prior_bits",
)
_COLUMNS = (
    *("site", "layer", "stack", "span", "condition", "target", "fold"),
    *("accuracy", "control_accuracy", "shuffled_accuracy", "chance", "uniform", "C", "weakest"),
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
        C: inverse strengths of the penalty to choose from, or one; None: 0.1, 0.8, 6.4, 51.2 and 409.6, divided by
            the number of features.
        device: where the fits run, `cpu` or `cuda`.
        workers: processes in which cells are fitted, where that saves time; each takes about 0.5 GB, and ends with this
            one.
        progress: show a progress bar.

    Returns:
        One row per site, span, condition, target and fold: `accuracy`, `control_accuracy` and
        `shuffled_accuracy` on the test rows; `chance`, the share of the commonest class of all rows, and
        `uniform`, one of the number of classes; `C`, the strength that was chosen, and whether it is the `weakest`
        penalty of those offered; `n_train, n_test, n_classes`; `n_dropped`,
        labelled rows of the condition without tokens; `starved`, fewer than five training rows per class; `copies`,
        the share of test rows with a near copy in training; `converged`, of all fits in the row. The same in all
        folds: `curve`, accuracy on the later half of the rows after fitting `curve_rows` of the earlier, and the `gain`
        of their last doubling, both with intervals. The columns `PER_ITEM` hold one array each: test rows as positions
        in `store.rows(condition)`, their groups, scores of real, control and shuffled labels, whether the commonest
        class is right, and the bits that real and control labels take, and
        the real ones for one who only counts the classes. `summarise` pools the folds.

    Raises:
        StoreError, SiteError, SpanError: for an unknown name, fewer than two classes, values that are not finite, or
            too few groups.
        RunError: for a number of workers that is none.
    """
    how = Prober(
        kind=kind_of(kind), strengths=strengths_of(C), control=control, shuffled=shuffled, code=code, seed=seed
    )
    plan = plan_cells(store, targets=listed(target), sites=sites, spans=spans, conditions=conditions)
    prober = StoreProber(store, how, plan, folds=folds, pool=pool, device=device)

    def probe(planned: Planned) -> list[Record]:
        return prober.score(planned, prober.fit(planned))

    return grid_of(side_by_side(probe, plan, workers=workers, what="probes", progress=progress))


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
    how = Prober(
        kind=kind_of(kind), strengths=strengths_of(C), control=control, shuffled=shuffled, code=code, seed=seed
    )
    X = torch.as_tensor(np.asarray(features, dtype=np.float64)).to(device)
    if X.ndim != 2 or len(X) != len(rows) or not X.isfinite().all():
        raise StoreError(f"features must be finite, (rows, d) for {len(rows)} rows; got {tuple(X.shape)}")
    split = Rows({"": rows}, folds=folds, seed=seed)
    place = {"site": name, "layer": None, "stack": name, "span": "", "condition": ""}
    cell = Cell(features=X, held=np.ones(len(X), dtype=bool), place=place)
    own = split.in_fold[""], split.groups[""]
    fitted = how.fit(cell, how.labels(split, "", listed(target)), *own)
    return grid_of([list(how.score(each, *own)) for each in fitted])


def grid_of(records: Sequence[Sequence[Record]]) -> pd.DataFrame:
    """The table of records, those of a cell together."""
    rows = [record for several in records for record in several]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "Int64"})


def listed(names: str | Sequence[str]) -> list[str]:
    """One name, or several."""
    return [names] if isinstance(names, str) else list(names)
