"""One cell of the grid: the pooled activations of a site at a span, and every probe on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamscope.hooks import Ragged, Site, StoreError
from seamscope.probes._labels import Codes, Labels
from seamscope.probes._scale import Scale
from seamscope.probes._solver import fit_logistic

STARVED = 5  # training rows per class below which a probe is flagged

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
    def pooled(cls, site: str, span: str, condition: str, acts: Ragged, pool: str) -> Cell:
        """Pool each row's tokens in float64; raises `StoreError` for values that are not finite."""
        held = acts.lengths > 0
        wide = Ragged(acts.values.double(), acts.lengths).pool(pool).values.flatten(1)
        if not wide.isfinite().all():
            raise StoreError(f"{site} at {span} under {condition} holds values that are not finite")
        features = wide.new_zeros(len(acts), wide.shape[1])
        features[held] = wide
        return cls(site=site, span=span, condition=condition, features=features, held=held.numpy())

    def fit(self, targets: list[Labels], folds: Codes, groups: NDArray[Any], C: float) -> list[Record]:
        """Fit every target in every fold; one record per target and fold."""
        records = []
        for alike in _by_rows(targets):
            used = np.flatnonzero(alike[0].labelled & self.held)
            for fold in range(int(folds.max()) + 1):
                train, test = used[folds[used] != fold], used[folds[used] == fold]
                records += [{**r, "fold": fold, "groups": groups[test]} for r in self._fold(alike, train, test, C)]
        return records

    def _fold(self, targets: list[Labels], train: Codes, test: Codes, C: float) -> Iterator[Record]:
        """Fit all problems of all targets on the same rows at once."""
        codes = np.stack([codes for labels in targets for codes in labels.problems.values()])
        correct, converged = self._correct(codes, train, test, C)
        site, at = Site.parse(self.site), 0
        for labels in targets:
            mine = slice(at, at + len(labels.problems))
            at = mine.stop
            yield {
                "site": self.site,
                "layer": site.layer,
                "stack": site.stack,
                "span": self.span,
                "condition": self.condition,
                "target": labels.target,
                **_scores(dict(zip(labels.problems, correct[mine], strict=True))),
                **_counts(labels.problems["real"], train, test),
                "n_dropped": int((labels.labelled & ~self.held).sum()),
                "converged": bool(converged[mine].all()),
                "rows": test,
            }

    def _correct(self, codes: Codes, train: Codes, test: Codes, C: float) -> tuple[NDArray[np.bool_], Any]:
        """Whether each problem's probe is right on each test row, (problems, test), and has converged."""
        if not len(train):
            return np.zeros((len(codes), len(test)), bool), np.zeros(len(codes), bool)
        X = self.features[torch.from_numpy(train)]
        scale = Scale.of(X)
        fit = fit_logistic(scale.apply(X), torch.from_numpy(codes[:, train]), C)
        predicted = fit.predict(scale.apply(self.features[torch.from_numpy(test)])).numpy()
        return predicted == codes[:, test], fit.converged.numpy()


def _by_rows(targets: list[Labels]) -> list[list[Labels]]:
    """Targets that have labels in the same rows, together: they share one design matrix."""
    alike: dict[bytes, list[Labels]] = {}
    for labels in targets:
        alike.setdefault(labels.labelled.tobytes(), []).append(labels)
    return list(alike.values())


def _scores(correct: dict[str, NDArray[np.bool_]]) -> Record:
    """Mean and per-item correctness of each kind of labels; NaN and None for a kind that was not fitted."""
    scores: Record = {}
    for kind, prefix in (("real", ""), ("control", "control_"), ("shuffled", "shuffled_")):
        found = correct.get(kind)
        scores[f"{prefix}accuracy"] = float("nan") if found is None or not len(found) else found.mean()
        scores[f"{prefix}correct"] = found
    return scores


def _counts(real: Codes, train: Codes, test: Codes) -> Record:
    """Sizes of a fold, and the share of the commonest class in training: what a blind guess reaches."""
    n_classes = len(np.unique(real[np.concatenate([train, test])]))
    commonest = np.bincount(real[train]).max() / len(train) if len(train) else float("nan")
    return {
        "chance": float(commonest),
        "n_train": len(train),
        "n_test": len(test),
        "n_classes": n_classes,
        "starved": len(train) < STARVED * max(n_classes, 2),
    }
