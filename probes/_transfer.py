"""Probes that were trained in one place and are tested in another: is it there in the form that is read elsewhere?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
import pandas as pd

from seamscope.activations import Store
from seamscope.hooks import StoreError
from seamscope.probes._cell import Cell
from seamscope.probes._choice import strengths_of
from seamscope.probes._design import Scale
from seamscope.probes._folds import Codes, Names, grouped_folds, groups_of
from seamscope.probes._kinds import kind_of
from seamscope.probes._labels import Labels, make_labels
from seamscope.probes._plan import Planned, plan_cells
from seamscope.probes._prober import Fitted, Prober, Record, by_rows, counts
from seamscope.probes._side_by_side import in_threads
from seamscope.probes._stats import bootstrap_interval, exceeds, false_discovery

Place = tuple[str, str]

KEYS: Final = ["train_condition", "train_span", "train_site", "condition", "span", "site", "layer", "stack", "target"]
_COLUMNS: Final = (
    *KEYS,
    *("fold", "accuracy", "recentred_accuracy", "control_accuracy", "chance", "uniform", "C", "n_train", "n_test"),
    *(
        "n_classes",
        "starved",
        "converged",
        "rows",
        "groups",
        "correct",
        "recentred_correct",
        "control_correct",
        "blind",
    ),
)


def probe_transfer(
    store: Store,
    target: str | Sequence[str],
    *,
    train: Place,
    test: Place,
    sites: str | Sequence[str] | None = None,
    across: bool = False,
    pool: str = "mean",
    folds: int = 5,
    seed: int = 0,
    C: float | Sequence[float] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = False,
) -> pd.DataFrame:
    """Train probes in one place of one run, and test them in another, on items they were not fitted on.

    A probe that was trained where the intermediate stands in text, and reads it in the direct run, says that the model
    carries the visual result in the form that its textual skill reads. One that does not says only that this form is
    another, or elsewhere: beside it stands what a probe trained there reads (`probe_grid`).

    Args:
        store: an open store that has both conditions.
        target: variables to predict, from the columns `var:<target>`.
        train: (condition, span) of the rows that are fitted on, such as `("cascaded", "intermediate.{k}")`; `{k}`
            stands for the target's own object.
        test: (condition, span) of the rows that are scored, such as `("direct", "image.object.{k}")`.
        sites: names or globs; None: all that both have.
        across: also test at every other site than the one of the training.
        pool, folds, seed, C, device, workers, progress: as for `probe_grid`.

    Returns:
        One row per pair of sites, target and fold: `accuracy` of the probe as it is, standardised as where it was
        trained; `recentred_accuracy` after the tested rows were standardised by the mean and spread of the training
        groups' rows in their own place, which forgives a shift between the runs and needs no label;
        `control_accuracy` of the control task, the same random labels in both places; `chance`, what guessing the
        commonest class of the training rows reaches on the tested ones; `site, layer, stack, span, condition` of the
        test, `train_site, train_span, train_condition`, and arrays as in `probe_grid`.

    Raises:
        StoreError, SiteError, SpanError: as `probe_grid`, or if the two have no site in common.
    """
    targets = [target] if isinstance(target, str) else list(target)
    sides = [_plan(store, targets, place, sites) for place in (train, test)]
    shared = [site for site in store.sites if all(any(each.site == site for each in side) for side in sides)]
    if not shared:
        raise StoreError(f"{store.path} has no site both at {' '.join(train)} and at {' '.join(test)}")
    conditions = list(dict.fromkeys((train[0], test[0])))
    tables = {name: store.rows(name) for name in conditions}
    groups = groups_of(tables)
    fold_of = grouped_folds(np.concatenate(list(groups.values())).tolist(), folds, seed)
    labels = _shared_labels(tables, groups, targets, seed)
    how = Prober(kind=kind_of("logistic"), strengths=strengths_of(C), code=False, seed=seed)

    @cache
    def read(each: Planned) -> Cell:
        return Cell.read(store, each.site, each.span, each.condition, pool=pool, device=device)

    def own(condition: str) -> tuple[Codes, Names]:
        names = groups[condition]
        return np.array([fold_of[name] for name in names], dtype=np.int64), names

    def test_all(fitted: Planned) -> list[Record]:
        cell, (in_fold, names) = read(fitted), own(fitted.condition)
        others = [each for each in sides[1] if each.site in shared and (across or each.site == fitted.site)]
        place = {"train_condition": fitted.condition, "train_span": fitted.span, "train_site": fitted.site}
        found: list[Record] = []
        for alike in by_rows([labels[fitted.condition, name] for name in fitted.targets]):
            used = np.flatnonzero(alike[0].labelled & cell.held)
            fits = how.fit(cell, alike, [used[in_fold[used] != k] for k in range(folds)], names)
            for other in others:
                held = [each for each in alike if each.target in other.targets]
                for mine in held:
                    theirs = labels[other.condition, mine.target]
                    tested = _tested(fits, alike.index(mine), read(other), theirs, *own(other.condition))
                    found += [{**place, "target": mine.target, **record} for record in tested]
        return found

    plan = [each for each in sides[0] if each.site in shared]
    records = in_threads(test_all, plan, workers, "transfer", progress)
    return pd.DataFrame(records, columns=list(_COLUMNS)).astype({"layer": "Int64"})


def summarise_transfer(table: pd.DataFrame, *, n: int = 2000, level: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Pool the folds of `probe_transfer`: one row per pair of places and target.

    Columns: `accuracy, recentred_accuracy, control_accuracy`, each with its interval (`low, high`, with the prefix
    `recentred_` or `control_`), a bootstrap over groups; `chance, uniform`; `p` and `q` of the recentred accuracy
    against guessing, as in `summarise`; `n_rows, n_groups, starved, converged`.
    """
    rows = []
    for key, cell in table.groupby(KEYS, sort=False, dropna=False):
        groups, blind = (np.concatenate(list(cell[name])) for name in ("groups", "blind"))
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        for prefix in ("", "recentred_", "control_"):
            scores = np.concatenate(list(cell[f"{prefix}correct"]))
            row[f"{prefix}accuracy"] = float(scores.mean()) if len(scores) else np.nan
            row[f"{prefix}low"], row[f"{prefix}high"] = bootstrap_interval(scores, groups, n=n, level=level, seed=seed)
        row["chance"] = float(blind.mean()) if len(blind) else np.nan
        row["uniform"] = float(cell["uniform"].mean())
        row["p"] = exceeds(np.concatenate(list(cell["recentred_correct"])), blind, groups)
        row |= {"q": np.nan, "n_rows": len(groups), "n_groups": len(set(groups))}
        rows.append({**row, "starved": bool(cell["starved"].any()), "converged": bool(cell["converged"].all())})
    for row, q in zip(rows, false_discovery([row["p"] for row in rows]), strict=True):
        row["q"] = q
    return pd.DataFrame(rows)


def _plan(store: Store, targets: Sequence[str], place: Place, sites: str | Sequence[str] | None) -> list[Planned]:
    condition, span = place
    return plan_cells(store, targets=targets, sites=sites, spans=[span], conditions=[condition])


def _shared_labels(
    tables: dict[str, pd.DataFrame], groups: dict[str, Names], targets: Sequence[str], seed: int
) -> dict[tuple[str, str], Labels]:
    """Labels by condition and target; codes, and the control's labels of each type, are the same in all conditions."""
    rows = pd.concat([table.assign(group=groups[name]) for name, table in tables.items()], ignore_index=True)
    bounds = np.cumsum([0, *map(len, tables.values())])
    found = {}
    for target in targets:
        whole = make_labels(rows, target, control=True, shuffled=False, seed=seed)
        for name, start, stop in zip(tables, bounds[:-1], bounds[1:], strict=True):
            problems = {kind: codes[start:stop] for kind, codes in whole.problems.items()}
            found[name, target] = Labels(target=target, problems=problems, labelled=whole.labelled[start:stop])
    return found


def _tested(
    fits: Sequence[Fitted | None], number: int, cell: Cell, labels: Labels, in_fold: Codes, groups: Names
) -> list[Record]:
    """Score one target's probes of every fold on the rows of that fold in another cell."""
    used = np.flatnonzero(labels.labelled & cell.held)
    records = []
    for fold, several in enumerate(fits):
        test, beside = used[in_fold[used] == fold], used[in_fold[used] != fold]
        if several is None or not len(test) or not len(beside):
            continue
        fitted = several.only(number)
        real, new = fitted.targets[0].problems["real"], cell.features[test]
        as_it_is = fitted.scores(fitted.design.project(new), [labels], test)[0]
        recentred = fitted.design.turned(Scale.of(cell.features[beside]).apply(new))
        centred = fitted.scores(recentred, [labels], test)[0]
        told = counts(real, fitted.rows, fitted.rows, classes=True)
        blind = (labels.problems["real"][test] == np.bincount(real[fitted.rows]).argmax()).astype(float)
        correct = {"correct": as_it_is[""], "recentred_correct": centred[""], "control_correct": centred["control_"]}
        held = {name: each for name, each in correct.items() if each is not None}
        means = {name.replace("correct", "accuracy"): float(each.mean()) for name, each in held.items()}
        sizes = {name: told[name] for name in ("uniform", "n_classes", "starved")}
        records.append(
            {
                **cell.place,
                **{"fold": fold, **means, "chance": float(blind.mean()), **sizes, "C": fitted.C[0]},
                **{"n_train": len(fitted.rows), "n_test": len(test), "converged": fitted.converged[0]},
                **{"rows": test, "groups": groups[test], **correct, "blind": blind},
            }
        )
    return records
