"""One model, one task, one folder: every table of a run, made when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Final

import pandas as pd

from seamscope.activations import Store, open_store
from seamscope.hooks import Vlm, load_vlm

from . import tasks
from ._capture import capture_items, depth_sites
from ._conditions import composition_gap, run_conditions
from ._effects import summarise_sweep
from ._locate import locate
from ._probing import probe_study
from ._run import Run, Settings
from ._sweep import back_cells, layer_cells, sweep
from ._verdict import Verdict
from .tasks import Item, Task

STREAM: Final = ("lm.*.resid_post",)


class Study:
    """Loads nothing until a table needs it; a table that the run's folder holds is read, not made again."""

    def __init__(self, run: Run, *, compare: Sequence[str] = (), progress: bool = False) -> None:
        self.run, self.progress = run, progress
        self.compare = tuple(compare)
        self.task: Task[Any] = tasks.get(run.settings.task)

    @property
    def settings(self) -> Settings:
        """What the run was asked."""
        return self.run.settings

    @cached_property
    def vlm(self) -> Vlm:
        """The model, loaded and checked."""
        return self._load(untrained=self.settings.untrained)

    def _load(self, *, untrained: bool) -> Vlm:
        asked = self.settings
        return load_vlm(
            asked.model,
            device=asked.device,
            dtype=asked.dtype,
            attn_implementation=asked.attn_implementation,
            untrained=untrained,
            seed=asked.seed,
        )

    def items_of(self, task: Task[Any]) -> list[Item]:
        """The items of a task, from the run's seed."""
        return task.items(self.settings.n, profile_name=self.settings.profile, seed=self.settings.seed)

    @cached_property
    def items(self) -> list[Item]:
        """The items of the run's own task."""
        return self.items_of(self.task)

    @cached_property
    def answers(self) -> pd.DataFrame:
        """What the model answered, for the run's task and those it is compared with."""
        names = dict.fromkeys((self.task.name, *self.compare))
        return pd.concat([self._answers(name) for name in names], ignore_index=True)

    def _answers(self, name: str) -> pd.DataFrame:
        task = tasks.get(name)

        def make() -> pd.DataFrame:
            items = self.items if task.name == self.task.name else self.items_of(task)
            return run_conditions(
                self.vlm,
                task,
                items,
                profile=self.settings.profile,
                batch_size=self.settings.batch_size,
                progress=self.progress,
            )

        return self.run.table(f"answers.{task.name}", make)

    @cached_property
    def gap(self) -> pd.DataFrame:
        """The composition gap with intervals."""
        return self.run.table("gap", lambda: composition_gap(self.answers, seed=self.settings.seed))

    def store(self, *, untrained: bool = False) -> Store:
        """The activations of direct and cascaded runs; of an untrained copy of the model, direct only."""
        name = "untrained.h5" if untrained else "activations.h5"
        if not self.run.has(name):
            vlm = self._load(untrained=True) if untrained else self.vlm
            capture_items(
                vlm,
                self.task,
                self.items,
                path=self.run.path(name),
                conditions=("direct",) if untrained else ("direct", "cascaded"),
                sites=depth_sites(vlm),
                settings=self.settings,
                progress=self.progress,
            )
        return open_store(self.run.folder / name)

    @cached_property
    def probe_hits(self) -> pd.DataFrame:
        """What the probes got right, one row per (cell, item)."""

        def make() -> pd.DataFrame:
            with self.store() as trained, self.store(untrained=True) as untrained:
                return probe_study(
                    trained, untrained=untrained, seed=self.settings.seed, progress=self.progress
                )

        return self.run.table("probe_hits", make)

    @cached_property
    def patch_rows(self) -> pd.DataFrame:
        """What every patch did to every item's answer."""
        return self.run.table("patch_rows", lambda: self._sweeps())

    def _sweeps(self) -> pd.DataFrame:
        stream = layer_cells(
            self.vlm, sites=STREAM, spans=("objects", "question", "last", "reading", "objects+reading")
        )
        plans = {
            "denoise": stream,
            "noise": stream,
            "text_noise": stream,
            "cross": stream,
            "cross_control": stream,
            "backpatch": back_cells(self.vlm, spans=("objects", "reading")),
        }
        return pd.concat(
            [
                sweep(
                    self.vlm,
                    self.task,
                    self.items,
                    experiment=name,
                    cells=cells,
                    batch_size=self.settings.batch_size,
                    progress=self.progress,
                )
                for name, cells in plans.items()
            ],
            ignore_index=True,
        )

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Mean effects of the patches, with intervals."""
        return self.run.table("effects", lambda: summarise_sweep(self.patch_rows, seed=self.settings.seed))

    @cached_property
    def verdict(self) -> Verdict:
        """Where the intermediate is lost."""
        return locate(
            answers=self.answers[self.answers.task == self.task.name],
            probe_hits=self.probe_hits,
            patch_rows=self.patch_rows,
            model=self.settings.model,
            task=self.task.name,
            seed=self.settings.seed,
        )
