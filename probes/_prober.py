"""Fitting the probes of one cell: every target, its controls, in every fold, with strengths chosen inside the folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamscope.probes._cell import Cell
from seamscope.probes._choice import INNER, choose_strengths, strengths_for
from seamscope.probes._code import Code, online_code
from seamscope.probes._design import Design
from seamscope.probes._folds import Codes, Names, group_order, inner_folds
from seamscope.probes._kinds import Asked, Kind, outputs
from seamscope.probes._labels import PREFIXES, Labels
from seamscope.probes._rows import Rows
from seamscope.probes._stats import bootstrap_interval, paired_bootstrap_interval

STARVED: Final = 5  # training rows per class below which a probe is flagged
COPY: Final = 0.1  # distance of a test row from a training row, as a share of the median, below which it is a copy
CODED: Final = {"bits": "real", "control_bits": "control"}  # what is sent of which labels
SENT: Final = (*CODED, "prior_bits")
NO_CODE: Final = {
    **dict.fromkeys(("curve_rows", "curve", "curve_low", "curve_high"), ()),
    **dict.fromkeys(("gain", "gain_low", "gain_high"), np.nan),
}

Record = dict[str, Any]
Scores = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The probes of several targets that were fitted on the same rows of a cell.

    Attributes:
        kind: the kind of probe.
        rows: the training rows.
        design: the same, standardised and turned.
        targets: what they predict.
        weights: on the principal axes, by number of the target and kind of labels, (outputs, r + 1).
        C: chosen strength of each target.
        converged: whether all probes of each target have converged.
    """

    kind: Kind
    rows: Codes
    design: Design
    targets: Sequence[Labels]
    weights: dict[tuple[int, str], Tensor]
    C: list[float]
    converged: list[bool]

    def scores(self, number: int, Z: Tensor, labels: Labels, rows: Codes) -> dict[str, Scores | None]:
        """How well turned rows, (m, r), are predicted of one target, by the prefix of each kind of labels.

        `labels` are the target's in the cell that the rows are of; there they have the numbers `rows`.
        """
        own = self.targets[number]
        return {
            prefix: self._scores(self.weights[number, name], Z, own.problems[name], labels.problems[name][rows])
            if (number, name) in self.weights
            else None
            for name, prefix in PREFIXES.items()
        }

    def _scores(self, weights: Tensor, Z: Tensor, own: NDArray[Any], labels: NDArray[Any]) -> Scores:
        fitted, new = (torch.from_numpy(each)[None].to(Z.device) for each in (own[self.rows], labels))
        scores: Scores = self.kind.scores(outputs(weights[None], Z), new, fitted)[0].cpu().numpy()
        return scores


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Targets of a cell that have labels in the same rows, `used`, and their probes by fold, each without its rows."""

    cell: Cell
    targets: list[Labels]
    used: Codes
    fits: list[Fitted | None]


@dataclass(frozen=True, kw_only=True)
class Prober:
    """How the probes of a cell are fitted: the kind, the strengths to choose from, and what is measured beside.

    Without `strengths` they depend on the number of features: see `strengths_for`.
    """

    kind: Kind
    strengths: Sequence[float] | None
    control: bool
    shuffled: bool
    code: bool
    seed: int

    def labels(self, rows: Rows, condition: str, targets: Sequence[str]) -> list[Labels]:
        """What is fitted of some targets in a condition."""
        numbers = not self.kind.classifies
        return rows.labels(condition, targets, control=self.control, shuffled=self.shuffled, numbers=numbers)

    def fit(self, cell: Cell, targets: Sequence[Labels], in_fold: Codes, groups: Names) -> list[Folds]:
        """Fit every target without each of the folds, in which the rows are, (rows,)."""
        found = []
        for alike in by_rows(targets):
            used = np.flatnonzero(alike[0].labelled & cell.held)
            trains = [used[in_fold[used] != k] for k in range(int(in_fold.max()) + 1)]
            found.append(Folds(cell=cell, targets=alike, used=used, fits=self._fit(cell, alike, trains, groups)))
        return found

    def score(self, folds: Folds, in_fold: Codes, groups: Names) -> Iterator[Record]:
        """Score the probes of every fold on its rows; one record per target and fold."""
        cell, targets, used = folds.cell, folds.targets, folds.used
        dropped = int((targets[0].labelled & ~cell.held).sum())
        codes = self._codes(cell, targets, used, groups)
        for fold, fitted in enumerate(folds.fits):
            test = used[in_fold[used] == fold]
            found = self._scored(cell, targets, fitted, test)
            for labels, code, record in zip(targets, codes, found, strict=True):
                place = {**cell.place, "target": labels.target, "fold": fold, "n_dropped": dropped}
                sent = {name: value[test] if name in SENT else value for name, value in code.items()}
                yield {**place, **record, **sent, "rows": test, "groups": groups[test]}

    def _fit(self, cell: Cell, targets: Sequence[Labels], folds: list[Codes], groups: Names) -> list[Fitted | None]:
        """Fit all problems of all targets on the rows of every fold at once; None where there are no rows.

        Strengths are chosen by the real labels; control and shuffled labels are fitted with the same.
        """
        held = [k for k, rows in enumerate(folds) if len(rows)]
        found: list[Fitted | None] = [None] * len(folds)
        if not held:
            return found
        trains = [folds[k] for k in held]
        designs = [Design.of(cell.features[train]) for train in trains]
        names = [
            (fold, k, name) for fold in range(len(held)) for k, each in enumerate(targets) for name in each.problems
        ]
        Y = _padded([targets[k].problems[name][trains[fold]] for fold, k, name in names], cell.features)
        owner = torch.tensor([fold for fold, _, _ in names], device=Y.device)
        real = torch.tensor([name == "real" for _, _, name in names], device=Y.device)
        inner = _padded([inner_folds(groups[train], INNER, self.seed) for train in trains], cell.features)
        chosen = choose_strengths(
            self.kind, designs, owner[real], Y[real], inner, strengths_for(cell.width, self.strengths)
        )
        C = chosen[torch.tensor([fold * len(targets) + k for fold, k, _ in names])]
        sizes = torch.tensor([self.kind.size(each) for each in Y])
        asked = Asked(designs=designs, owner=owner, Y=Y, C=C.to(Y.device), sizes=sizes)
        weights, converged = self.kind.fit(asked)
        for fold, (number, design) in enumerate(zip(held, designs, strict=True)):
            mine = {name[1:]: at for at, name in enumerate(names) if name[0] == fold}
            found[number] = Fitted(
                kind=self.kind,
                rows=trains[fold],
                design=design,
                targets=targets,
                weights={name: weights[at] for name, at in mine.items()},
                C=[float(C[mine[k, "real"]]) for k in range(len(targets))],
                converged=[
                    bool(converged[[at for name, at in mine.items() if name[0] == k]].all())
                    for k in range(len(targets))
                ],
            )
        return found

    def _scored(self, cell: Cell, targets: Sequence[Labels], fitted: Fitted | None, test: Codes) -> list[Record]:
        if fitted is None or not len(test):
            return [unfitted(labels, 0 if fitted is None else len(fitted.rows), test) for labels in targets]
        new = cell.features[test]
        copies, turned = _copies(fitted.design, new), fitted.design.project(new)
        return [
            {
                **means(fitted.scores(k, turned, labels, test)),
                **counts(labels.problems["real"], fitted.rows, test, classes=self.kind.classifies),
                "C": fitted.C[k],
                "weakest": self._is_weakest(fitted.C[k], cell.width),
                "copies": copies,
                "converged": fitted.converged[k],
            }
            for k, labels in enumerate(targets)
        ]

    def _is_weakest(self, C: float, width: int) -> float:
        """1 where the penalty is the weakest of several to choose from, so that a weaker one might do better."""
        offered = strengths_for(width, self.strengths)
        return float(offered[-1] == C) if len(offered) > 1 else 0.0

    def _codes(self, cell: Cell, targets: list[Labels], used: Codes, groups: Names) -> list[Record]:
        """The online codes of each target's real and control labels, and its learning curve."""
        if not (self.code and self.kind.coded and len(used)):
            return [dict(NO_CODE) for _ in targets]
        names = [(k, name) for k, each in enumerate(targets) for name in CODED.values() if name in each.problems]
        Y = _padded([targets[k].problems[name][used] for k, name in names], cell.features)
        own = groups[used]
        codes = online_code(
            cell.features[used], Y, own, group_order(own, self.seed), strengths_for(cell.width, self.strengths)
        )
        found = dict(zip(names, codes, strict=True))
        return [
            {
                **_curve(found[k, "real"], own),
                **{
                    sent: _among(found[k, name].bits if (k, name) in found else np.nan, used, len(groups))
                    for sent, name in CODED.items()
                },
                "prior_bits": _among(found[k, "real"].prior, used, len(groups)),
            }
            for k in range(len(targets))
        ]


def by_rows(targets: Sequence[Labels]) -> list[list[Labels]]:
    """Targets that have labels in the same rows, together: they share one design matrix."""
    alike: dict[bytes, list[Labels]] = {}
    for labels in targets:
        alike.setdefault(labels.labelled.tobytes(), []).append(labels)
    return list(alike.values())


def means(scores: dict[str, Scores | None]) -> Record:
    """Mean and per-row score of each kind of labels; NaN and None for a kind that was not fitted."""
    found = {f"{prefix}accuracy": np.nan if each is None else each.mean() for prefix, each in scores.items()}
    return {**found, **{f"{prefix}correct": each for prefix, each in scores.items()}}


def counts(real: NDArray[Any], train: Codes, test: Codes, *, classes: bool) -> Record:
    """Sizes of a fold, and what the best blind guess reaches: the commonest class of all rows, always.

    The commonest class in training would be too little: where classes are balanced, it is rarer among the rows that are
    held out, and pure noise would seem to beat it.
    """
    sizes = {"n_train": len(train), "n_test": len(test)}
    if not classes:
        return {**sizes, "chance": 0.0, "uniform": 0.0, "n_classes": 0, "starved": False, "blind": np.zeros(len(test))}
    own = real[np.union1d(train, test)]
    n_classes = len(np.unique(own))
    blind = (real[test] == np.bincount(own).argmax()).astype(float)
    return {
        **sizes,
        "chance": float(blind.mean()),
        "uniform": 1 / max(n_classes, 1),
        "n_classes": n_classes,
        "starved": len(train) < STARVED * max(n_classes, 2),
        "blind": blind,
    }


def unfitted(labels: Labels, n_train: int, test: Codes) -> Record:
    """A fold in which there is nothing to fit on, or nothing to score: what there is to score is missed."""
    missed = {prefix: np.zeros(len(test)) if name in labels.problems else None for name, prefix in PREFIXES.items()}
    n_classes = len(np.unique(labels.problems["real"][test]))
    return {
        **{f"{prefix}accuracy": np.nan for prefix in missed},
        **{f"{prefix}correct": each for prefix, each in missed.items()},
        **dict.fromkeys(("chance", "uniform", "C", "weakest", "copies"), np.nan),
        **{"n_train": n_train, "n_test": len(test), "n_classes": n_classes, "blind": np.zeros(len(test))},
        **{"starved": True, "converged": False},
    }


def _copies(design: Design, others: Tensor) -> float:
    """The share of test rows that have a near copy among the training rows."""
    distances = design.distances(others)
    return float((distances.amin(1) <= COPY * distances.median()).double().mean())


def _curve(code: Code, groups: Names) -> Record:
    """Accuracy on the last block by the rows that were fitted on, and what the last doubling gained."""
    found: Record = dict(NO_CODE)
    own = groups[code.scored]
    if len(own):
        lows, highs = zip(*(bootstrap_interval(each, own) for each in code.correct), strict=True)
        curve = tuple(code.correct.mean(1).tolist())
        found |= {"curve_rows": code.sizes, "curve": curve, "curve_low": lows, "curve_high": highs}
    if len(found["curve"]) > 1:
        low, high = paired_bootstrap_interval(code.correct[-1], code.correct[-2], own)
        found |= {"gain": found["curve"][-1] - found["curve"][-2], "gain_low": low, "gain_high": high}
    return found


def _padded(codes: Sequence[NDArray[Any]], features: Tensor) -> Tensor:
    """Labels of problems, (problems, rows), where the features are, with -1 beyond the rows that a problem has."""
    found = np.full((len(codes), max(map(len, codes))), -1, codes[0].dtype)
    for into, each in zip(found, codes, strict=True):
        into[: len(each)] = each
    return torch.from_numpy(found).to(features.device)


def _among(values: Scores | float, rows: Codes, n: int) -> Scores:
    """Values of some rows among those of all."""
    found = np.full(n, np.nan)
    found[rows] = values
    return found
