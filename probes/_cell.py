"""One cell of the grid: the pooled activations of a site at a span, and every probe on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamscope.activations import Store
from seamscope.hooks import Ragged, Site, StoreError
from seamscope.probes._choice import INNER, choose_strengths
from seamscope.probes._code import Code, online_code
from seamscope.probes._design import Design
from seamscope.probes._folds import Codes, Names, group_order, inner_folds
from seamscope.probes._kinds import Kind, outputs
from seamscope.probes._labels import PREFIXES, Labels
from seamscope.probes._stats import paired_bootstrap_interval

STARVED: Final = 5  # training rows per class below which a probe is flagged
COPY: Final = 0.1  # distance of a test row from a training row, as a share of the median, below which it is a copy

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Pooled activations of one (site, span, condition): features (rows, d); `held` where a row has tokens."""

    site: str
    span: str
    condition: str
    features: Tensor
    held: NDArray[np.bool_]

    @classmethod
    def read(cls, store: Store, site: str, span: str, condition: str, *, pool: str, device: str = "cpu") -> Cell:
        """Pool each row's tokens in float64, some rows at a time; `StoreError` for values that are not finite."""
        parts, held = [], []
        for _, acts in store.stream(site, span, condition):
            wide = Ragged(acts.values.double(), acts.lengths).pool(pool).values.flatten(1)
            if not wide.isfinite().all():
                raise StoreError(f"{site} at {span} under {condition} holds values that are not finite")
            features = wide.new_zeros(len(acts), wide.shape[1])
            features[acts.lengths > 0] = wide
            parts.append(features.to(device))
            held.append(acts.lengths > 0)
        return cls(site=site, span=span, condition=condition, features=torch.cat(parts), held=torch.cat(held).numpy())

    @property
    def names(self) -> Record:
        """What identifies it in a table."""
        site = Site.parse(self.site)
        place = {"site": self.site, "layer": site.layer, "stack": site.stack}
        return {**place, "span": self.span, "condition": self.condition}


@dataclass(frozen=True, kw_only=True)
class Prober:
    """How the probes of a cell are fitted: the kind, the strengths to choose from, and whether codes are measured."""

    kind: Kind
    strengths: Sequence[float]
    code: bool
    seed: int

    def fit(self, cell: Cell, targets: list[Labels], folds: Codes, groups: Names) -> Iterator[Record]:
        """Fit every target in every fold; one record per target and fold."""
        for alike in _by_rows(targets):
            used = np.flatnonzero(alike[0].labelled & cell.held)
            dropped = int((alike[0].labelled & ~cell.held).sum())
            codes = self._codes(cell, alike, used, groups)
            splits = [(used[folds[used] != k], used[folds[used] == k]) for k in range(int(folds.max()) + 1)]
            for fold, found in enumerate(self._folds(cell, alike, splits, groups)):
                test = splits[fold][1]
                for labels, code, record in zip(alike, codes, found, strict=True):
                    place = {**cell.names, "target": labels.target, "fold": fold, "n_dropped": dropped}
                    sent = {name: value[test] if name in SENT else value for name, value in code.items()}
                    yield {**place, **record, **sent, "rows": test, "groups": groups[test]}

    def _folds(
        self, cell: Cell, targets: list[Labels], splits: list[tuple[Codes, Codes]], groups: Names
    ) -> list[list[Record]]:
        """Fit all problems of all targets in all folds at once, with strengths chosen by the real labels."""
        found = [[_unfitted(labels, *split) for labels in targets] for split in splits]
        held = [k for k, (train, test) in enumerate(splits) if len(train) and len(test)]
        if not held:
            return found
        trains = [splits[k][0] for k in held]
        designs = [Design.of(cell.features[train]) for train in trains]
        names = [
            (fold, k, name) for fold in range(len(held)) for k, each in enumerate(targets) for name in each.problems
        ]
        Y = _padded([targets[k].problems[name][trains[fold]] for fold, k, name in names], cell.features)
        owner = torch.tensor([fold for fold, _, _ in names])
        real = torch.tensor([name == "real" for _, _, name in names])
        inner = _padded([inner_folds(groups[train], INNER, self.seed) for train in trains], cell.features)
        chosen = choose_strengths(self.kind, designs, owner[real], Y[real], inner, self.strengths)
        C = chosen[torch.tensor([fold * len(targets) + k for fold, k, _ in names])]
        trained = torch.arange(Y.shape[1]) < torch.tensor([len(train) for train in trains])[owner][:, None]
        weights, converged = self.kind.fit(designs, owner, Y, C.to(Y.device), trained.to(Y.device))
        for fold, (design, number) in enumerate(zip(designs, held, strict=True)):
            train, test = splits[number]
            new, copies = design.project(cell.features[test]), _copies(design, cell.features[test])
            for k, labels in enumerate(targets):
                mine = {names[at][2]: at for at in range(len(names)) if names[at][:2] == (fold, k)}
                scores = {
                    prefix: self._scores(weights[mine[name]], new, labels.problems[name], train, test)
                    if name in mine
                    else None
                    for name, prefix in PREFIXES.items()
                }
                found[number][k] = {
                    **_means(scores),
                    **_counts(labels.problems["real"], train, test, classes=self.kind.classifies),
                    "C": float(C[mine["real"]]),
                    "copies": copies,
                    "converged": bool(converged[list(mine.values())].all()),
                }
        return found

    def _scores(
        self, weights: Tensor, Z: Tensor, labels: NDArray[Any], train: Codes, test: Codes
    ) -> NDArray[np.float64]:
        new, fitted = (torch.from_numpy(labels[rows])[None].to(Z.device) for rows in (test, train))
        scores: NDArray[np.float64] = self.kind.scores(outputs(weights[None], Z), new, fitted)[0].cpu().numpy()
        return scores

    def _codes(self, cell: Cell, targets: list[Labels], used: Codes, groups: Names) -> list[Record]:
        """The online codes of each target's real and control labels, and its learning curve."""
        if not (self.code and self.kind.classifies and len(used)):
            return [dict(NO_CODE) for _ in targets]
        names = [(k, str(name)) for k, each in enumerate(targets) for name in CODED if name in each.problems]
        Y = _padded([targets[k].problems[name][used] for k, name in names], cell.features)
        own = groups[used]
        codes = online_code(cell.features[used], Y, own, group_order(own, self.seed), self.strengths)
        found = dict(zip(names, codes, strict=True))
        return [
            {
                **_curve(found[k, "real"], own),
                **{
                    sent: _among(found[k, name].bits if (k, name) in found else np.nan, used, len(groups))
                    for sent, name in zip(SENT, CODED, strict=True)
                },
            }
            for k in range(len(targets))
        ]


CODED: Final = ("real", "control")
SENT: Final = ("bits", "control_bits")
NO_CODE: Final = {"curve_rows": (), "curve": (), "gain": np.nan, "gain_low": np.nan, "gain_high": np.nan}


def _padded(codes: Sequence[NDArray[Any]], features: Tensor) -> Tensor:
    """Labels of problems, (problems, rows), where the features are, with -1 beyond the rows that a problem has."""
    found = np.full((len(codes), max(map(len, codes))), -1, codes[0].dtype)
    for into, each in zip(found, codes, strict=True):
        into[: len(each)] = each
    return torch.from_numpy(found).to(features.device)


def _among(values: NDArray[np.float64] | float, rows: Codes, n: int) -> NDArray[np.float64]:
    """Values of some rows among those of all."""
    found = np.full(n, np.nan)
    found[rows] = values
    return found


def _curve(code: Code, groups: Names) -> Record:
    """Accuracy on the last block by the rows that were fitted on, and what the last doubling gained."""
    found: Record = dict(NO_CODE)
    if len(code.scored):
        found |= {"curve_rows": code.sizes, "curve": tuple(code.correct.mean(1).tolist())}
    if len(found["curve"]) > 1:
        low, high = paired_bootstrap_interval(code.correct[-1], code.correct[-2], groups[code.scored])
        found |= {"gain": found["curve"][-1] - found["curve"][-2], "gain_low": low, "gain_high": high}
    return found


def _by_rows(targets: list[Labels]) -> list[list[Labels]]:
    """Targets that have labels in the same rows, together: they share one design matrix."""
    alike: dict[bytes, list[Labels]] = {}
    for labels in targets:
        alike.setdefault(labels.labelled.tobytes(), []).append(labels)
    return list(alike.values())


def _copies(design: Design, others: Tensor) -> float:
    """The share of test rows that have a near copy among the training rows."""
    distances = design.distances(others)
    return float((distances.amin(1) <= COPY * distances.median()).double().mean())


def _means(scores: dict[str, NDArray[np.float64] | None]) -> Record:
    """Mean and per-row score of each kind of labels; NaN and None for a kind that was not fitted."""
    means = {f"{prefix}accuracy": np.nan if found is None else found.mean() for prefix, found in scores.items()}
    return {**means, **{f"{prefix}correct": found for prefix, found in scores.items()}}


def _unfitted(labels: Labels, train: Codes, test: Codes) -> Record:
    """A fold in which there is nothing to fit on, or nothing to score: what there is to score is missed."""
    nothing = {prefix: np.zeros(len(test)) if name in labels.problems else None for name, prefix in PREFIXES.items()}
    counts = {"n_train": len(train), "n_test": len(test), "n_classes": len(np.unique(labels.problems["real"][test]))}
    missed = {**nothing, **counts}
    means = {f"{prefix}accuracy": np.nan for prefix in PREFIXES.values()}
    arrays = {f"{prefix}correct": missed[prefix] for prefix in PREFIXES.values()}
    none = dict.fromkeys(("chance", "uniform", "C", "copies"), np.nan)
    return {**means, **arrays, **counts, **none, "starved": True, "blind": np.zeros(len(test)), "converged": False}


def _counts(real: NDArray[Any], train: Codes, test: Codes, *, classes: bool) -> Record:
    """Sizes of a fold, and what a blind guess of the commonest class in training reaches."""
    sizes = {"n_train": len(train), "n_test": len(test)}
    if not classes:
        return {**sizes, "chance": 0.0, "uniform": 0.0, "n_classes": 0, "starved": False, "blind": np.zeros(len(test))}
    n_classes = len(np.unique(real[np.concatenate([train, test])]))
    commonest = np.bincount(real[train]).argmax()
    return {
        **sizes,
        "chance": float((real[train] == commonest).mean()),
        "uniform": 1 / max(n_classes, 1),
        "n_classes": n_classes,
        "starved": len(train) < STARVED * max(n_classes, 2),
        "blind": (real[test] == commonest).astype(float),
    }
