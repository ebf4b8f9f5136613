"""The rows that probes are fitted on: which belong together, in which fold they are, and what is to be predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from seamscope.probes._folds import Codes, Names, grouped_folds, groups_of
from seamscope.probes._labels import Labels, make_labels


class Rows:
    """The rows of one condition or several: a group is in the same fold, and a class has the same code, in all.

    Attributes:
        groups: the group of each row, by condition.
        in_fold: the fold of each row, by condition.

    Raises:
        StoreError: for rows without a group, or fewer groups than folds.
    """

    def __init__(self, tables: Mapping[str, pd.DataFrame], *, folds: int, seed: int) -> None:
        self.groups: dict[str, Names] = groups_of(dict(tables))
        fold_of = grouped_folds(np.concatenate(list(self.groups.values())).tolist(), folds, seed)
        self.in_fold: dict[str, Codes] = {
            condition: np.array([fold_of[name] for name in names], dtype=np.int64)
            for condition, names in self.groups.items()
        }
        self.folds, self._seed = folds, seed
        self._all = pd.concat(
            [table.assign(group=self.groups[condition]) for condition, table in tables.items()], ignore_index=True
        )
        ends = np.cumsum([len(table) for table in tables.values()]).tolist()
        self._own = {name: slice(end - len(tables[name]), end) for name, end in zip(tables, ends, strict=True)}

    def labels(
        self, condition: str, targets: Sequence[str], *, control: bool, shuffled: bool, numbers: bool = False
    ) -> list[Labels]:
        """What is to be predicted in a condition; see `make_labels`, whose errors it raises."""
        own = self._own[condition]
        return [
            make_labels(
                self._all, target, control=control, shuffled=shuffled, seed=self._seed, numbers=numbers, own=own
            )
            for target in targets
        ]
