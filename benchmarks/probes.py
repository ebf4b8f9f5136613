"""The whole grid of probes against scikit-learn's loop on the same store: `python benchmarks/probes.py --json`.

The store holds made-up activations in the shape of a 7B decoder's residual stream (bfloat16, a power-law spectrum, a
few dimensions a hundred times larger than the rest), in which the suits and ranks of cards are planted, some readable
from early layers on, some late, some hardly. An item and its partner share a group. In one process, on the same rows,
folds, inner folds, labels and strengths:

- ours: `probe_grid` with its defaults, wall clock, with reading the store, the online codes and the search for copies
- scikit-learn: for every site, target and fold, a `LogisticRegression` for every strength and inner fold, and then one
  for real, control and shuffled labels at the strength that did best. No online codes; reading and standardising are
  not counted. As many cells side by side as ours has workers, with one thread of BLAS each: a single fit that uses
  several is slower. Its time is processor time over the number of workers, so that no waiting counts.

scikit-learn runs on a random sample of (site, target) pairs, in all folds, every target equally often; its time is
scaled by the number of cells, all of which have equally many fits. `speedup_interval` is a bootstrap over the sampled
pairs, `speedup_spread` the least and the greatest ratio of a single cell. `ways` are ways to write the loop, by the
tolerances of the fits that choose a strength and of those that are reported:

- careful: the loosest `tol`, of powers of ten, with which all fits come as near to the optimum as ours must: 1e-3,
  relative, for the choice, and 1e-4 for what is reported; this is `speedup`
- default: scikit-learn's own `tol`; `max_objective_difference` says how far from the optimum it ends
- turned: as careful, on the rows as our solver has them, turned onto their axes, for which few would think to ask; what
  is left of the ratio is from fitting side by side

`max_accuracy_difference` is that of the real labels, of (site, target) pairs pooled over folds, each side at the
strength that it chose; `..._at_equal_strengths` has both at scikit-learn's. Where two strengths do about equally well,
rounding chooses: `longer_by_other_strength` is how much longer a code of the inner folds' labels scikit-learn sees,
relative and at most, where ours chose another; `..._careful` compares it with itself. `min_coefficient_cosine` and
`max_objective_difference` compare fits at the same strength: all final fits of the sample, and every strength on some.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from _probes_store import CLASSES, DIRECT, LAST, SEED, SHAPES, Shape, write_store
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from seamscope.activations import Store, open_store
from seamscope.experiments.figures._style import COLOURS, blank, styled
from seamscope.probes import bootstrap_interval, probe_grid
from seamscope.probes._choice import INNER
from seamscope.probes._design import Design
from seamscope.probes._folds import inner_folds
from seamscope.probes._kinds import ROUGHLY, TEMPERATURES
from seamscope.probes._rows import Rows
from seamscope.probes._solver import fit_logistic

RESULTS = Path(__file__).parent / "results"
WITHIN = 1e-4  # of the optimum, relative: as near as both sides must come
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)  # scikit-learn's `tol`, to choose from
DEFAULT_TOL, REFERENCE_TOL, MOST = 1e-4, 1e-8, 100_000
SWEEPS = {"sites": (1, 2, 4, 8, 16, 32), "targets": (1, 2, 4, 6), "folds": (2, 5, 10), "strengths": (1, 3, 5, 9)}
SWEPT_SITES = 4  # sites of a sweep over something else

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Pair = tuple[str, str]  # site, target
R = TypeVar("R")


def ours(path: Path, shape: Shape, workers: int, sites: Sequence[str] | None = None) -> tuple[pd.DataFrame, float]:
    """The table of the grid, at some sites or all; and seconds."""
    started = time.perf_counter()
    with open_store(path) as store:
        table = probe_grid(
            store, shape.target_names, sites=sites, folds=shape.folds, seed=SEED, C=shape.C, workers=workers
        )
    return table, time.perf_counter() - started


class Linear(NamedTuple):
    """A fit: class codes, weights on standardised features (classes, d), and intercepts."""

    classes: Codes
    coef: Floats
    intercept: Floats

    @classmethod
    def of(cls, model: LogisticRegression) -> Linear:
        """scikit-learn's, of three classes or more."""
        return cls(model.classes_, model.coef_, model.intercept_)

    def right(self, X: Floats, y: Codes) -> NDArray[np.bool_]:
        """Which rows it has right."""
        found: NDArray[np.bool_] = self.classes[(X @ self.coef.T + self.intercept).argmax(1)] == y
        return found

    def objective(self, X: Floats, y: Codes, C: float) -> float:
        """What scikit-learn says that it minimises."""
        logits = X @ self.coef.T + self.intercept
        own = logits[np.arange(len(y)), np.searchsorted(self.classes, y)]
        return float(C * (logsumexp(logits, 1) - own).sum() + 0.5 * (self.coef**2).sum())


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A site, a target and a fold: standardised rows, and codes by kind of labels.

    `X` and `new` are training and test rows, `answers` the real labels of the latter, `inner` the inner fold of each
    training row; `design` is what our solver makes of the training rows.
    """

    X: Floats
    new: Floats
    labels: dict[str, Codes]
    answers: Codes
    inner: Codes
    design: Design

    @classmethod
    def of(cls, store: Store, shape: Shape, pair: Pair, fold: int) -> Cell:
        """Read it."""
        site, target = pair
        rows = Rows({DIRECT: store.rows(DIRECT)}, folds=shape.folds, seed=SEED)
        groups, test = rows.groups[DIRECT], rows.in_fold[DIRECT] == fold
        labels = rows.labels(DIRECT, [target], control=True, shuffled=True)[0].problems
        features = store.read(site, LAST, DIRECT).values.double().numpy()
        scaler = StandardScaler().fit(features[~test])
        return cls(
            X=scaler.transform(features[~test]),
            new=scaler.transform(features[test]),
            labels={kind: codes[~test] for kind, codes in labels.items()},
            answers=labels["real"][test],
            inner=inner_folds(groups[~test], INNER, SEED),
            design=Design.of(torch.from_numpy(features[~test])),
        )

    def fit(self, kind: str, C: float) -> Linear:
        """Our fit; of the classes that the training rows have."""
        fit = fit_logistic(self.design, torch.from_numpy(self.labels[kind])[None], C)
        held = np.unique(self.labels[kind])
        return Linear(held, fit.coef[0].numpy()[held], fit.intercept[0].numpy()[held])

    def agreement(self, kind: str, C: float, theirs: Linear) -> Agreement:
        """Of our fit with another at the same strength."""
        mine, y = self.fit(kind, C), self.labels[kind]
        cosine = (mine.coef * theirs.coef).sum() / np.linalg.norm(mine.coef) / np.linalg.norm(theirs.coef)
        return Agreement(float(cosine), abs(theirs.objective(self.X, y, C) / mine.objective(self.X, y, C) - 1))


class Agreement(NamedTuple):
    """Cosine of the weights, and how much the objectives differ, relative."""

    cosine: float
    objective: float

    @classmethod
    def worst(cls, several: Iterable[Agreement]) -> Agreement:
        """The least cosine and the greatest difference."""
        cosines, objectives = zip(*several, strict=True)
        return cls(min(cosines), max(objectives))


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to write the loop: `tol` of the fits that choose, `tol` of those that are reported, and the rows."""

    choice: float
    final: float
    turned: bool = False


@dataclass(frozen=True, kw_only=True)
class Found:
    """What scikit-learn took and found in a cell.

    Attributes:
        pair, fold: which cell.
        seconds: processor time.
        held_out: bits that the labels of the inner folds' rows take under each strength.
        C: the strength that was chosen.
        correct: which test rows are right.
        equal: which test rows ours has right at the same strength.
        agreement: of the final fits, at worst.
    """

    pair: Pair
    fold: int
    seconds: float
    held_out: dict[float, float]
    C: float
    correct: NDArray[np.bool_]
    equal: NDArray[np.bool_]
    agreement: Agreement


def loop(cell: Cell, shape: Shape, way: Way) -> tuple[dict[float, float], float, dict[str, Linear]]:
    """scikit-learn's way: the strength that does best in the inner folds, of equals the strongest penalty; its fits."""
    X = cell.design.Z.numpy() if way.turned else cell.X
    y = cell.labels["real"]
    length = dict.fromkeys(shape.C, 0.0)
    for held in range(INNER if shape.strengths > 1 else 0):
        inside, outside = cell.inner != held, cell.inner == held
        rows, new = X[inside], X[outside]
        for C in shape.C:
            length[C] += bits(fit(rows, y[inside], C, way.choice), new, y[outside], int(inside.sum()), int(y.max()) + 1)
    best = min(length, key=length.__getitem__)  # the first of equals
    return length, best, {kind: Linear.of(fit(X, codes, best, way.final)) for kind, codes in cell.labels.items()}


def bits(model: LogisticRegression, X: Floats, y: Codes, seen: int, size: int) -> float:
    """What labels take in a code, at the best temperature; half a row of each of the `size` classes is added."""
    logits = model.decision_function(X)
    known = np.isin(y, model.classes_)
    column = np.searchsorted(model.classes_, y).clip(max=len(model.classes_) - 1)
    return min(
        float(
            -np.log2(
                (seen * known * softmax(logits * each, 1)[np.arange(len(y)), column] + 0.5) / (seen + 0.5 * size)
            ).sum()
        )
        for each in TEMPERATURES
    )


def fit(X: Floats, y: Codes, C: float, tol: float) -> LogisticRegression:
    """scikit-learn's."""
    return LogisticRegression(C=C, tol=tol, max_iter=MOST).fit(X, y)


def run_cell(store: Store, shape: Shape, way: Way, pair: Pair, fold: int) -> Found:
    """Time the loop in one cell, and compare our fits at the strength that it chose."""
    cell = Cell.of(store, shape, pair, fold)
    started = time.thread_time()
    held_out, C, fits = loop(cell, shape, way)
    seconds = time.thread_time() - started
    if way.turned:
        back = cell.design.axes.numpy().T
        fits = {kind: fit._replace(coef=fit.coef @ back) for kind, fit in fits.items()}
    return Found(
        pair=pair,
        fold=fold,
        seconds=seconds,
        held_out=held_out,
        C=C,
        correct=fits["real"].right(cell.new, cell.answers),
        equal=cell.fit("real", C).right(cell.new, cell.answers),
        agreement=Agreement.worst(cell.agreement(kind, C, fit) for kind, fit in fits.items()),
    )


def beside(workers: int, each: Callable[..., R], places: Sequence[tuple[Any, ...]], what: str) -> list[R]:
    """Call with every tuple of arguments, as many side by side as there are workers, in one thread each."""
    with threadpool_limits(1), ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.map(lambda place: each(*place), places)
        return list(tqdm(found, total=len(places), desc=what, unit="cell", disable=None))


def calibrate(store: Store, shape: Shape, pairs: list[Pair], workers: int) -> tuple[dict[float, float], Agreement]:
    """How far above the optimum each `tol` ends at worst, relative; and how near ours comes.

    With the weakest penalty, which is the hardest, on all labels of the sampled pairs; with the others on the real
    labels of the first pairs. A smaller `tol` than the first that comes within `WITHIN` is not tried.
    """

    def ladder(pair: Pair, kind: str, C: float) -> tuple[dict[float, float], Agreement]:
        cell = Cell.of(store, shape, pair, 0)
        y = cell.labels[kind]
        best = Linear.of(fit(cell.X, y, C, REFERENCE_TOL))
        lowest, excess = best.objective(cell.X, y, C), {}
        for tol in TOLERANCES:
            excess[tol] = Linear.of(fit(cell.X, y, C, tol)).objective(cell.X, y, C) / lowest - 1
            if excess[tol] <= WITHIN:
                break
        return excess, cell.agreement(kind, C, best)

    hardest = product(pairs, ("control", "shuffled", "real"), shape.C[-1:])
    others = product(pairs[: len(CLASSES)], ("real",), shape.C[:-1])
    found = beside(workers, ladder, [*hardest, *others], "tolerances")
    worst = {tol: max((each[tol] for each, _ in found if tol in each), default=0.0) for tol in TOLERANCES}
    return worst, Agreement.worst(agreement for _, agreement in found)


def loosest(excess: dict[float, float], bound: float) -> float:
    """The largest `tol` from which on none ends further above the optimum."""
    found = (tol for tol in TOLERANCES if all(excess[each] <= bound for each in TOLERANCES if each <= tol))
    return next(found, TOLERANCES[-1])


def draw_pairs(shape: Shape, sample: int) -> list[Pair]:
    """Every target equally often, at sites drawn at random, which differ as far as they can."""
    order = np.random.default_rng(SEED).permutation(shape.sites)
    places = product(range(sample), shape.target_names)
    return [(shape.site_names[order[k % shape.sites]], target) for k, (_, target) in enumerate(places)]


def mean_seconds(found: Sequence[Found], targets: Sequence[str]) -> float:
    """Of a cell, over targets."""
    return float(np.mean([np.mean([each.seconds for each in found if each.pair[1] == target]) for target in targets]))


def run_way(store: Store, shape: Shape, way: Way, pairs: list[Pair], workers: int, name: str) -> list[Found]:
    """All folds of the sampled pairs; of the first pairs, unless it is the way that `speedup` is from."""
    some = pairs if name == "careful" else pairs[: len(CLASSES)]
    return beside(workers, partial(run_cell, store, shape, way), list(product(some, range(shape.folds))), name)


def compare(path: Path, shape: Shape, *, workers: int, sample: int, sweeps: Sequence[str]) -> dict[str, Any]:
    """Everything about one shape."""
    ours(path, replace(shape, targets=1), workers, shape.site_names[:1])  # what is loaded at first use is not timed
    table, seconds = ours(path, shape, workers)
    pairs = draw_pairs(shape, sample)
    with open_store(path) as store:
        excess, everywhere = calibrate(store, shape, pairs, workers)
        rough, tight = loosest(excess, ROUGHLY["rtol"]), loosest(excess, WITHIN)
        ways = {
            "careful": Way(choice=rough, final=tight),
            "default": Way(choice=DEFAULT_TOL, final=DEFAULT_TOL),
            "turned": Way(choice=rough, final=tight, turned=True),
        }
        runs = {name: run_way(store, shape, way, pairs, workers, name) for name, way in ways.items()}
        found = runs["careful"]
        scale = shape.cells / workers / seconds
        speedup = scale * mean_seconds(found, shape.target_names)
        swept = [
            point for axis in sweeps for point in sweep(store, shape, axis, ways["careful"], found, seconds, workers)
        ]
    each = scale * np.array([one.seconds for one in found])
    agreement = Agreement.worst([everywhere, *(one.agreement for one in found)])
    return {
        "speedup": round(speedup, 2),
        "speedup_interval": _rounded(bootstrap_interval(each, [" ".join(one.pair) for one in found])),
        "speedup_spread": _rounded((each.min(), each.max())),
        **accuracies(table, found),
        "min_coefficient_cosine": agreement.cosine,
        "max_objective_difference": agreement.objective,
        "ways": {name: _told(ways[name], run, found, speedup) for name, run in runs.items()},
        "seconds": {
            "ours": round(seconds, 2),
            "scikit_learn_scaled": round(speedup * seconds, 1),
        },
        "excess_objective_by_tol": {f"{tol:g}": value for tol, value in excess.items()},
        "shape": {**asdict(shape), "cells": shape.cells, "scikit_learn_fits": shape.cells * shape.fits},
        "sampled": {"pairs": pairs, "cells": len(found), "scikit_learn_fits": len(found) * shape.fits},
        "converged": bool(table["converged"].all()),
        "accuracy": _ranges(table),
        "sweep": swept,
    }


def _told(way: Way, run: Sequence[Found], careful: Sequence[Found], speedup: float) -> dict[str, Any]:
    """A way beside the careful one, on the cells that both ran in."""
    places = {(one.pair, one.fold) for one in run}
    same = [one for one in careful if (one.pair, one.fold) in places]
    worst = Agreement.worst(one.agreement for one in run)
    return {
        "speedup": round(speedup * sum(one.seconds for one in run) / sum(one.seconds for one in same), 2),
        **asdict(way),
        "min_coefficient_cosine": worst.cosine,
        "max_objective_difference": worst.objective,
        "max_accuracy_difference_from_careful": accuracy_difference(run, [one.correct for one in same]),
        "other_strength_than_careful": float(np.mean([a.C != b.C for a, b in zip(run, same, strict=True)])),
        "cells": len(run),
    }


def accuracy_difference(found: Sequence[Found], others: Sequence[Any]) -> float:
    """How much the held-out accuracy of a (site, target) pair differs at most from what others have right there."""
    table = pd.DataFrame({"pair": [" ".join(one.pair) for one in found]})
    table["rows"] = [len(one.correct) for one in found]
    table["more"] = [np.sum(one.correct) - np.sum(other) for one, other in zip(found, others, strict=True)]
    pooled = table.groupby("pair").sum()
    return float((pooled["more"] / pooled["rows"]).abs().max())


def accuracies(table: pd.DataFrame, found: Sequence[Found]) -> dict[str, float]:
    """How far held-out accuracies are apart; how often ours chose another strength, and what it lost by that at most.

    That is by how much longer scikit-learn says that the held-out labels of the inner folds become, relative.
    """
    cells = {(row["site"], row["target"], row["fold"]): row for _, row in table.iterrows()}
    mine = [cells[(*one.pair, one.fold)] for one in found]
    other = [(one, row["C"]) for one, row in zip(found, mine, strict=True) if row["C"] != one.C]
    lost = [one.held_out[C] / one.held_out[one.C] - 1 for one, C in other]
    return {
        "max_accuracy_difference": accuracy_difference(found, [row["correct"] for row in mine]),
        "max_accuracy_difference_at_equal_strengths": accuracy_difference(found, [one.equal for one in found]),
        "other_strength_chosen": len(other) / len(found),
        "longer_by_other_strength": max(lost, default=0.0),
    }


def _ranges(table: pd.DataFrame) -> dict[str, list[float]]:
    """The least and the greatest accuracy of a target over sites."""
    by_site = table.groupby(["target", "site"])["accuracy"].mean().groupby("target").agg(["min", "max"])
    return {str(target): _rounded(row) for target, row in zip(by_site.index, by_site.to_numpy(), strict=True)}


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 3) for value in values]


def sweep(
    store: Store, shape: Shape, axis: str, way: Way, found: Sequence[Found], seconds: float, workers: int
) -> list[dict[str, Any]]:
    """The ratio along one axis, at `SWEPT_SITES` sites if it is another.

    scikit-learn's time of a cell is that of the sample; for other folds and strengths, times what some of the sampled
    cells take there over what they took in the sample.
    """
    points = []
    for value in SWEEPS[axis]:
        if axis in ("sites", "targets") and value > getattr(shape, axis):
            continue
        here = replace(replace(shape, sites=min(SWEPT_SITES, shape.sites)), **{axis: value})
        spread = [shape.site_names[int((k + 0.5) * shape.sites / here.sites)] for k in range(here.sites)]
        mine = seconds if here == shape else ours(store.path, here, workers, spread)[1]
        theirs = mean_seconds(found, here.target_names) * here.cells / workers
        if axis in ("folds", "strengths") and value != getattr(shape, axis):
            base = [one for one in found if one.fold == 0][: len(CLASSES)]
            again = beside(
                workers, partial(run_cell, store, here, way), [(one.pair, 0) for one in base], f"{value} {axis}"
            )
            theirs *= sum(one.seconds for one in again) / sum(one.seconds for one in base)
        points.append({"axis": axis, "value": value, "ours": mine, "scikit_learn": theirs, "speedup": theirs / mine})
    return points


@styled
def draw(points: pd.DataFrame) -> Figure:
    """The ratio along every axis, a line for each shape."""
    figure = blank(1.7, width=6.8)
    axes = figure.subplots(1, points["axis"].nunique(), sharey=True, squeeze=False)[0]
    colours = dict(zip(points["shape"].unique(), (COLOURS["cascaded"], COLOURS["direct"]), strict=False))
    for ax, (axis, part) in zip(axes, points.groupby("axis", sort=False), strict=True):
        for name, line in part.groupby("shape", sort=False):
            ax.plot(
                line["value"], line["speedup"], "o-", color=colours[name], label=f"{name} (d = {line['d'].iloc[0]})"
            )
        ax.set_xscale("log")
        ax.set_xticks(sorted(part["value"].unique()), labels=[str(each) for each in sorted(part["value"].unique())])
        ax.minorticks_off()
        ax.set_xlabel(axis)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("scikit-learn's time / ours")
    axes[0].legend(loc="center right")
    return figure


def main() -> None:
    """Measure and print; with `--save`, write results/probes.json, with `--plot` results/probes.png."""
    options = _options()
    found = {}
    for number, name in enumerate(options.shape):
        given = {key: getattr(options, key) for key in Shape.__dataclass_fields__ if getattr(options, key) is not None}
        shape = replace(SHAPES[name], **(given if number == 0 else {}))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store.h5"
            write_store(path, shape)
            found[name] = compare(
                path, shape, workers=options.workers, sample=options.sample, sweeps=options.sweep or ()
            )
        print(name, json.dumps(found[name], indent=1), flush=True)
    result = {**found[options.shape[0]], "shapes": found, "about": _about(options)}
    if options.plot:
        points = [
            {"shape": name, "d": each["shape"]["d"], **point} for name, each in found.items() for point in each["sweep"]
        ]
        draw(pd.DataFrame(points)).savefig(RESULTS / "probes.png", dpi=200, metadata={"Software": None})
    if options.keep:
        (RESULTS / "probes.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.json:
        print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["7B", "organism"])
    parser.add_argument("--quick", dest="shape", action="store_const", const=["quick"], help="a small shape only")
    for name in Shape.__dataclass_fields__:
        parser.add_argument(f"--{name}", type=int, help=f"{name} of the first shape")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side, on both sides")
    parser.add_argument("--sample", type=int, default=1, help="sites at which scikit-learn runs, per target")
    parser.add_argument("--sweep", nargs="*", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--plot", action="store_true", help="write results/probes.png")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    # nnsight gives every object a method `save`, which argparse would take for the option
    parser.add_argument("--save", dest="keep", action="store_true", help="write results/probes.json")
    return parser.parse_args()


def _about(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "device": f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "workers": options.workers,
        "versions": {name: version(name) for name in ("torch", "scikit-learn", "numpy", "scipy")},
    }


if __name__ == "__main__":
    main()
