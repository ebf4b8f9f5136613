"""Probes on the cells of a store: each is fitted in every fold, on rows that are split alike wherever they are read."""

from __future__ import annotations

from collections.abc import Sequence

from seamscope.activations import Store
from seamscope.probes._cell import Cell
from seamscope.probes._labels import Labels
from seamscope.probes._plan import Planned
from seamscope.probes._prober import Folds, Prober, Record
from seamscope.probes._rows import Rows


class StoreProber:
    """Reads and fits the cells of a plan, and scores each on the rows of the folds that it was not fitted on.

    Attributes:
        rows: groups and folds of the plan's conditions.

    Raises:
        StoreError: for labels that no probe can learn, of any target of the plan, or too few groups.
    """

    def __init__(
        self, store: Store, how: Prober, plan: Sequence[Planned], *, folds: int, pool: str, device: str
    ) -> None:
        self._store, self._how, self._pool, self._device = store, how, pool, device
        wanted: dict[str, dict[str, None]] = {}
        for each in plan:
            wanted.setdefault(each.condition, {}).update(dict.fromkeys(each.targets))
        self.rows = Rows({name: store.rows(name) for name in wanted}, folds=folds, seed=how.seed)
        self._labels = {
            (condition, labels.target): labels
            for condition, targets in wanted.items()
            for labels in how.labels(self.rows, condition, list(targets))
        }

    def labels(self, condition: str, target: str) -> Labels:
        """What is to be predicted there."""
        return self._labels[condition, target]

    def read(self, planned: Planned) -> Cell:
        """Pooled activations."""
        where = planned.site, planned.span, planned.condition
        return Cell.read(self._store, *where, pool=self._pool, device=self._device)

    def fit(self, planned: Planned) -> list[Folds]:
        """Probes of every target without each fold."""
        condition = planned.condition
        labels = [self.labels(condition, target) for target in planned.targets]
        return self._how.fit(self.read(planned), labels, self.rows.in_fold[condition], self.rows.groups[condition])

    def score(self, planned: Planned, fitted: Sequence[Folds]) -> list[Record]:
        """Score them where they were fitted."""
        own = self.rows.in_fold[planned.condition], self.rows.groups[planned.condition]
        return [record for folds in fitted for record in self._how.score(folds, *own)]
