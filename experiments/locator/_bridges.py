"""Linear maps from states of direct runs to states of text runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from seamscope.activations import Store

PENALTIES: Final = (10.0, 100.0, 1_000.0, 10_000.0)
FOLDS: Final = 5

Floats = NDArray[np.float64]


class Bridges:
    """Maps by ridge regression; what is told of a row comes from a map that was fitted on other folds' items.

    `objects` are the spans of the objects in the picture, `row` the number of each item in the store.
    """

    def __init__(self, store: Store, *, seed: int) -> None:
        self._store = store
        rows = store.rows("direct")
        codes = pd.factorize(rows.group)[0]
        self._fold = (np.random.default_rng(seed).permutation(codes.max() + 1) % FOLDS)[codes]
        self.row = {str(name): number for number, name in enumerate(rows.id)}
        spans = {span for _, span in store.cells("direct") if span.startswith("image.object.")}
        self.objects = sorted(spans, key=_number)

    def words(self, site: str) -> dict[str, Floats]:
        """What the words of each object would be at the embedding, (rows, d), told from the object's own states."""
        named = [(span, span.replace("image.object", "intermediate")) for span in self.objects]
        source = np.concatenate([self.pooled("direct", site, span) for span, _ in named])
        target = np.concatenate([self.pooled("oracle", "lm.embed", words) for _, words in named])
        told = self.mapped(source, target, fold=np.tile(self._fold, len(named)))
        return dict(zip(self.objects, np.split(told, len(named)), strict=True))

    def shown(self, site: str) -> Floats:
        """What stands at the objects: of each that all rows have, and of all together, (rows, d)."""
        each = np.stack([self.pooled("direct", site, span) for span in self.objects])
        shared = [states for states in each if np.isfinite(states).all()]
        return np.concatenate([*shared, np.nanmean(each, axis=0)], axis=1)

    def read(self, site: str) -> Floats:
        """What stands at the reading positions of direct runs, (rows, d)."""
        return np.concatenate([self.pooled("direct", site, span) for span in ("last", "question")], axis=1)

    def pooled(self, condition: str, site: str, span: str) -> Floats:
        """Mean activations, (rows, d), NaN where a row has no tokens."""
        held = self._store.read(site, span, condition)
        values = held.values.double().flatten(1)
        sums = torch.zeros(len(held), values.shape[1], dtype=torch.float64).index_add_(0, held.row_of, values)
        found: Floats = (sums / held.lengths[:, None]).numpy()
        return found

    def mapped(self, source: Floats, target: Floats, *, fold: NDArray[np.int64] | None = None) -> Floats:
        """What is told of the target of each row from its source."""
        fold = self._fold if fold is None else fold
        known = np.isfinite(source).all(axis=1)
        both = known & np.isfinite(target).all(axis=1)
        told = np.full((len(source), target.shape[1]), np.nan)
        for number in range(FOLDS):
            mine = (fold == number) & known
            fitted = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
            fitted.fit(source[both & (fold != number)], target[both & (fold != number)])
            if mine.any():
                told[mine] = fitted.predict(source[mine])
        return told


def _number(span: str) -> int:
    return int(span.rsplit(".", 1)[1])
