"""What sweeps one item of a run, in this process or in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pandas as pd

from seamscope.hooks import Vlm

from . import tasks
from ._model import load
from .sweeps import CAPTURED, ROUTES, Cell, Plan, patching, sites_of, sweep_item

if TYPE_CHECKING:
    from ._run import Settings

_loaded = lru_cache(maxsize=1)(load)


class Sweeper:
    """Sweeps items by their numbers; sent to another process, it loads the model there.

    `cells` are those of each experiment; the experiments of `ROUTES` need none.
    """

    def __init__(self, vlm: Vlm, settings: Settings, cells: Mapping[str, Sequence[Cell]], *, by: str) -> None:
        self._vlm: Vlm | None = vlm
        self._settings, self._cells, self._by = settings, cells, by

        for name, some in cells.items():
            self._plans(vlm, name, some)  # refuses what the model cannot do, before anything is written

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_vlm": None}

    def __call__(self, number: int) -> pd.DataFrame:
        """The rows of one item."""
        settings, task = self._settings, tasks.get(self._settings.task)
        vlm = self._vlm or _loaded(settings, untrained=settings.untrained)
        return sweep_item(
            vlm,
            task,
            task.item(number, profile_name=settings.profile, seed=settings.seed),
            [plan for name, cells in self._cells.items() for plan in self._plans(vlm, name, cells)],
            sites=list(dict.fromkeys(self._sites(vlm))),
            budget=task.budget[settings.profile],
        )

    def _sites(self, vlm: Vlm) -> list[str]:
        """What must be captured."""
        own = sites_of(cell for cells in self._cells.values() for cell in cells)
        return [*own, *(site for name in self._cells if name in CAPTURED for site in CAPTURED[name](vlm))]

    def _plans(self, vlm: Vlm, name: str, cells: Sequence[Cell]) -> list[Plan]:
        if name in ROUTES:
            return [ROUTES[name](vlm)]
        return [patching(name, cells, by=self._by)] if cells else []
