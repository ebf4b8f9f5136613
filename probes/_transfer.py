"""Probes that were trained in one place and are tested in another: is it there in the form that is read elsewhere?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from torch import Tensor

from seamscope.activations import Store
from seamscope.hooks import StoreError
from seamscope.probes._cell import Cell
from seamscope.probes._choice import strengths_of
from seamscope.probes._design import Scale
from seamscope.probes._folds import Codes
from seamscope.probes._grid import grid_of, listed
from seamscope.probes._kinds import kind_of
from seamscope.probes._labels import Labels
from seamscope.probes._plan import Planned, plan_cells
from seamscope.probes._prober import Fitted, Folds, Prober, Record, by_rows, counts
from seamscope.probes._side_by_side import side_by_side
from seamscope.probes._stats import bootstrap_interval, exceeds, false_discovery
from seamscope.probes._store_prober import StoreProber

Place = tuple[str, str]

KEYS: Final = ["train_condition", "train_span", "train_site", "condition", "span", "site", "layer", "stack", "target"]
_COLUMNS: Final = (
    *KEYS,
    *("fold", "accuracy", "recentred_accuracy", "control_accuracy", "chance", "uniform", "C", "n_train", "n_test"),
    *("n_classes", "starved", "converged"),
    *("rows", "groups", "correct", "recentred_correct", "control_correct", "blind"),
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
        `control_accuracy` of the control task, the same random labels in both places; `chance`, the share
        of the commonest class of all rows there; `site, layer, stack, span, condition` of the
        test, `train_site, train_span, train_condition`, and arrays as in `probe_grid`.

    Raises:
        StoreError, SiteError, SpanError: as `probe_grid`, or if the two have no site in common.
    """
    targets = listed(target)
    plans = [_plan(store, targets, place, sites) for place in (train, test)]
    shared = _shared(plans)
    if not shared:
        raise StoreError(f"{store.path} has no site both at {' '.join(train)} and at {' '.join(test)}")
    how = Prober(
        kind=kind_of("logistic"), strengths=strengths_of(C), control=True, shuffled=False, code=False, seed=seed
    )
    prober = StoreProber(store, how, [*plans[0], *plans[1]], folds=folds, pool=pool, device=device)
    there = Elsewhere(prober, plans[1], shared, across=across)

    def probe(planned: Planned) -> list[Record]:
        return there.score(planned, prober.fit(planned))

    plan = [each for each in plans[0] if each.site in shared]
    return _table(side_by_side(probe, plan, workers=workers, what="transfer", progress=progress))


def probe_pair(
    store: Store,
    target: str | Sequence[str],
    *,
    places: tuple[Place, Place],
    sites: str | Sequence[str] | None = None,
    across: bool = False,
    pool: str = "mean",
    folds: int = 5,
    seed: int = 0,
    control: bool = True,
    shuffled: bool = True,
    code: bool = True,
    C: float | Sequence[float] | None = None,
    device: str = "cpu",
    workers: int = 1,
    progress: bool = False,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probes of two places, each scored at home and in the other: what `probe_grid` and `probe_transfer` tell of both.

    A probe is fitted once for both tables, which takes about half the time of making them one by one.

    Args:
        store: an open store that has both conditions.
        target: variables to predict, from the columns `var:<target>`.
        places: two of (condition, span), such as `("cascaded", "intermediate.{k}")` and
            `("direct", "image.object.{k}")`.
        sites: names or globs; None: all. Those that only one of the places has are scored at home only.
        across: also test at every other site than the one of the training.
        pool, folds, seed, control, shuffled, code, C, device, workers, progress: as for `probe_grid`.

    Returns:
        The tables of `probe_grid` and of `probe_transfer`, the latter both ways.

    Raises:
        StoreError, SiteError, SpanError: as `probe_grid`.
    """
    targets = listed(target)
    plans = [_plan(store, targets, place, sites) for place in places]
    shared = _shared(plans)
    how = Prober(
        kind=kind_of("logistic"), strengths=strengths_of(C), control=control, shuffled=shuffled, code=code, seed=seed
    )
    prober = StoreProber(store, how, [*plans[0], *plans[1]], folds=folds, pool=pool, device=device)
    away = [Elsewhere(prober, plan, shared, across=across) for plan in reversed(plans)]

    def probe(number: int) -> tuple[list[Record], list[Record]]:
        which, planned = cells[number]
        fitted = prober.fit(planned)
        return prober.score(planned, fitted), away[which].score(planned, fitted)

    cells = [(which, planned) for which, plan in enumerate(plans) for planned in plan]
    found = side_by_side(probe, range(len(cells)), workers=workers, what="probes", progress=progress)
    return grid_of([home for home, _ in found]), _table([other for _, other in found])


class Elsewhere:
    """Scores probes in the cells of another place, each of which is read once.

    Args:
        prober: who fitted them.
        plan: the cells of the other place.
        sites: at which to score.
        across: whether probes of a site are scored at the others, too.
    """

    def __init__(self, prober: StoreProber, plan: Sequence[Planned], sites: Collection[str], *, across: bool) -> None:
        self._prober, self._across, self._sites = prober, across, sites
        self._plan = [each for each in plan if each.site in sites]
        self._cells: dict[Planned, Cell] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads the cells itself."""
        return {**self.__dict__, "_cells": {}}

    def score(self, planned: Planned, fitted: Sequence[Folds]) -> list[Record]:
        """One record per site, target and fold."""
        if planned.site not in self._sites:
            return []
        place = {"train_condition": planned.condition, "train_span": planned.span, "train_site": planned.site}
        others = [other for other in self._plan if self._across or other.site == planned.site]
        return [{**place, **record} for folds in fitted for other in others for record in self._scored(folds, other)]

    def _scored(self, folds: Folds, other: Planned) -> Iterator[Record]:
        """Score the probes of every fold on the rows of that fold in another cell."""
        if other not in self._cells:
            self._cells[other] = self._prober.read(other)
        cell, rows = self._cells[other], self._prober.rows
        in_fold, groups = rows.in_fold[other.condition], rows.groups[other.condition]
        names = [each.target for each in folds.targets]
        there = [self._prober.labels(other.condition, name) for name in names if name in other.targets]
        for alike in by_rows(there):
            used = np.flatnonzero(alike[0].labelled & cell.held)
            for fold, fitted in enumerate(folds.fits):
                test, beside = used[in_fold[used] == fold], used[in_fold[used] != fold]
                if fitted is None or not len(test) or not len(beside):
                    continue
                new = cell.features[test]
                turned = fitted.design.project(new), fitted.design.turned(Scale.of(cell.features[beside]).apply(new))
                for labels in alike:
                    found = _record(fitted, names.index(labels.target), turned, labels, test, used)
                    yield {**cell.place, "target": labels.target, "fold": fold, **found, "groups": groups[test]}


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


def _shared(plans: Sequence[Sequence[Planned]]) -> set[str]:
    """Sites that all plans have."""
    return set.intersection(*({each.site for each in plan} for plan in plans))


def _table(records: Sequence[Sequence[Record]]) -> pd.DataFrame:
    rows = [record for several in records for record in several]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"layer": "Int64"})


def _record(
    fitted: Fitted, number: int, turned: tuple[Tensor, Tensor], labels: Labels, test: Codes, used: Codes
) -> Record:
    """What one target's probe reads in the rows `test` of another cell, turned as they are and after recentring."""
    real, there = fitted.targets[number].problems["real"], labels.problems["real"]
    as_it_is, centred = (fitted.scores(number, each, labels, test) for each in turned)
    correct = {"correct": as_it_is[""], "recentred_correct": centred[""], "control_correct": centred["control_"]}
    means = {name.replace("correct", "accuracy"): each.mean() for name, each in correct.items() if each is not None}
    told = counts(real, fitted.rows, fitted.rows, classes=True)
    blind = (there[test] == np.bincount(there[used]).argmax()).astype(float)
    return {
        **{name: told[name] for name in ("uniform", "n_classes", "starved")},
        **means,
        **{"chance": blind.mean(), "C": fitted.C[number], "converged": fitted.converged[number]},
        **{"n_train": len(fitted.rows), "n_test": len(test)},
        **{"rows": test, **correct, "blind": blind},
    }
