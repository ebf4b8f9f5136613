"""One model, one task, one folder: every table of a run, made when it is first asked for."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final

import pandas as pd

from seamscope.activations import Store, is_whole, open_store
from seamscope.hooks import RunError, Vlm
from seamscope.probes import TunedLens

from . import tasks
from ._capture import Capture
from ._conditions import composition_gap, run_conditions
from ._erasing_effects import decodable_and_causal
from ._files import replacing
from ._identity import used_by
from ._members import Members
from ._model import load
from ._plates import OTHERS, draw_plates
from ._plates_locator import LOCATED
from ._preflight import check_divided, check_locating, check_pairs, check_probing, check_sites, check_span_sets
from ._probing import WORKERS, pixel_grid, shared_targets, study_grid, summarise_moved, summarise_probes
from ._report import Example, write_report
from ._run import Run, Settings
from ._study_erasing import erased, pushed
from ._study_lens import read_layers, tuned_lens
from ._study_patching import located, named, patched, screened, shown, swept
from ._verdict import Verdict
from .figures._learning import learning_rows
from .locator import locate
from .locator._pairs import way
from .sweeps import summarise_sweep
from .tasks import Item, Task

ACTIVATIONS: Final = "activations.h5"
UNTRAINED: Final = "untrained.h5"
LOCATING_STORE: Final = "locating.h5"
VERDICT: Final = "verdict.json"
PROBED_SPANS: Final = ("objects", "question", "last")


class Study:
    """Loads nothing until a table needs it; a table that the run's folder holds is read, not made again."""

    def __init__(
        self, run: Run, *, compare: Sequence[str] = (), workers: int = WORKERS, progress: bool = False
    ) -> None:
        self.run, self.workers, self.progress = run, workers, progress
        self.task: Task = tasks.get(run.settings.task)
        self.compare = tuple(tasks.get(name).name for name in compare)
        check_span_sets(run.settings.spans)

    @property
    def settings(self) -> Settings:
        """What the run was asked."""
        return self.run.settings

    @cached_property
    def vlm(self) -> Vlm:
        """The model, loaded and checked."""
        vlm = load(self.settings, untrained=self.settings.untrained)
        check_sites(vlm, self._sites_of(vlm), self.settings.spans)
        self.run.uses(used_by(vlm))
        return vlm

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that are captured and patched."""
        return self._sites_of(self.vlm)

    def _sites_of(self, vlm: Vlm) -> tuple[str, ...]:
        """Those asked for; of those that nobody asked for, the ones that the model has: not all have a tower."""
        asked, usual = self.settings.sites, Settings.sites
        return vlm.expand([site for site in asked if site not in usual or fnmatch.filter(vlm.sites, site)])

    def items_of(self, task: Task) -> list[Item]:
        """The items of a task, from the run's seed."""
        return task.items(self.settings.n, profile_name=self.settings.profile, seed=self.settings.seed)

    @cached_property
    def items(self) -> list[Item]:
        """The items of the run's own task."""
        return self.items_of(self.task)

    @cached_property
    def answers(self) -> pd.DataFrame:
        """What the model answered, for the run's task, those it is compared with, and those compared earlier."""
        names = dict.fromkeys((self.task.name, *self.compare, *self.run.finished("answers")))
        return pd.concat([self._answers(name) for name in names], ignore_index=True)

    def _answers(self, name: str) -> pd.DataFrame:
        def make() -> pd.DataFrame:
            task = self.task if name == self.task.name else tasks.get(name)
            items = self.items if task is self.task else self.items_of(task)
            return run_conditions(
                self.vlm,
                task,
                items,
                profile=self.settings.profile,
                batch_size=self.settings.batch_size,
                progress=self.progress,
            )

        return self.run.table(f"answers.{name}", make)

    @cached_property
    def gap(self) -> pd.DataFrame:
        """The composition gap with intervals."""
        return self.run.derive("gap", composition_gap(self.answers, seed=self.settings.seed))

    def store(self, *, untrained: bool = False) -> Store:
        """The activations of direct and cascaded runs, also of an untrained copy of the model."""
        if not self.has_store(untrained=untrained):
            self.capture(untrained=untrained)
        return open_store(self.run.folder / (UNTRAINED if untrained else ACTIVATIONS))

    def has_store(self, *, untrained: bool = False) -> bool:
        """Whether all shards of the store are finished and joined."""
        return is_whole(self.run.folder / (UNTRAINED if untrained else ACTIVATIONS))

    def capture(self, *, untrained: bool = False, part: tuple[int, int] = (0, 1)) -> Capture:
        """Make the shards of one part of the store that are missing."""
        made = self.plan_capture(untrained=untrained, part=part)
        made.check_room()
        self.run.path(ACTIVATIONS, alone=False)
        made.run(progress=self.progress)
        return made

    def plan_capture(self, *, untrained: bool = False, part: tuple[int, int] = (0, 1)) -> Capture:
        """What makes the store, or one part of it; nothing is written yet.

        An untrained copy of the model names nothing that it sees: its text runs are about what the trained one said.
        """
        return Capture(
            load(self.settings, untrained=True) if untrained else self.vlm,
            self.task,
            Members(self.task, self.settings),
            path=self.run.folder / (UNTRAINED if untrained else ACTIVATIONS),
            conditions=("direct", "cascaded"),
            sites=self.sites,
            settings=replace(self.settings, untrained=untrained),
            part=part,
            digests=self.run.made_from,
            said=self._said() if untrained else None,
        )

    def locating_store(self) -> Store:
        """The pooled activations of direct and of text runs, with the gold intermediate, that the locator probes."""
        file = self.run.folder / LOCATING_STORE
        if not is_whole(file):
            asked = replace(self.settings, spans=PROBED_SPANS, pool="mean")
            made = Capture(
                self.vlm,
                self.task,
                Members(self.task, self.settings),
                path=file,
                conditions=("direct", "oracle"),
                sites=way(self.vlm.sites),
                settings=asked,
                part=(0, 1),
                digests=self.run.made_from,
            )
            made.check_room()
            self.run.path(LOCATING_STORE)
            made.run(progress=self.progress)
        return open_store(file)

    def _said(self) -> dict[str, str]:
        """What the model said in call 1 of every row, by its id."""
        with self.store() as store:
            rows = store.rows("cascaded")
        return dict(zip(rows.id, rows.said, strict=True))

    @cached_property
    def probes(self) -> pd.DataFrame:
        """The probes of every cell and target, with intervals and controls."""
        return self._probe_tables[0]

    @cached_property
    def transfer(self) -> pd.DataFrame:
        """Probes that were trained on text runs and tested on direct runs, and back."""
        return self._probe_tables[1]

    @cached_property
    def _probe_tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        if not self.run.has("probes.csv"):
            check_probing(self.items)

        seed = self.settings.seed

        @cache
        def home() -> tuple[pd.DataFrame, pd.DataFrame]:
            with self.store() as trained:
                return study_grid(trained, seed=seed, progress=self.progress)

        def summarised() -> pd.DataFrame:
            with self.store() as trained, self.store(untrained=True) as untrained:
                grid, _ = home()
                self.run.derive("curves", learning_rows(grid))
                beside, _ = study_grid(untrained, seed=seed, baseline=True, progress=self.progress)
                return summarise_probes(grid, beside, self._pixel_grid(trained), seed=seed)

        return (
            self.run.table("probes", summarised),
            self.run.table("transfer", lambda: summarise_moved(home()[1], seed=seed)),
        )

    def _pixel_grid(self, store: Store) -> pd.DataFrame:
        rows, targets = store.rows("direct"), shared_targets(store)
        return pixel_grid(Members(self.task, self.settings), rows, targets=targets, seed=self.settings.seed)

    def lens(self, *, tuned: bool = False) -> pd.DataFrame:
        """What comes up in the layers, read through the logit lens, or through a tuned one that is fitted first."""
        return self.run.table("lens.tuned" if tuned else "lens", lambda: read_layers(self, tuned=tuned))

    def tuned_lens(self) -> TunedLens:
        """The run's tuned lens, fitted on items of other seeds than those that are read; kept in its folder."""
        return tuned_lens(self)

    @cached_property
    def erasing(self) -> pd.DataFrame:
        """What erasing the variables of the answer does to direct runs, beside random subspaces."""
        return self.run.table("erased", lambda: erased(self))

    @cached_property
    def pushing(self) -> pd.DataFrame:
        """What pushing them towards the partner's does, beside random directions."""
        return self.run.table("pushed", lambda: pushed(self))

    @cached_property
    def causal(self) -> pd.DataFrame:
        """What probes read of the variables, beside what erasing them does."""
        return self.run.derive("decodable_causal", decodable_and_causal(self.probes, self.erasing))

    @cached_property
    def patch_rows(self) -> pd.DataFrame:
        """What every patch did to every item's answer."""
        return self.run.table("patch_rows", lambda: located(self, "patch_rows"))

    def patched(self, experiments: Sequence[str], *, by: str) -> pd.DataFrame:
        """One row per item and cell of some experiments, whose cells are the run's sites and spans, divided some way.

        By object or token spans do not count: every object, or token of the prompt, is patched by itself.
        """
        check_divided(experiments, by)
        name = named("patched", experiments, by)
        return self.run.table(name, lambda: patched(self, name, experiments, by=by))

    def patch_effects(self, experiments: Sequence[str], *, by: str) -> pd.DataFrame:
        """Mean effects of these experiments, with intervals."""
        rows = self.patched(experiments, by=by)
        name = named("effects", experiments, by)
        return self.run.table(name, lambda: summarise_sweep(rows, seed=self.settings.seed))

    def cut(self, name: str) -> pd.DataFrame:
        """What cutting attention does to every item, by one of `ROUTES`; `RunError` where there is nothing to cut."""
        rows = self.run.table(f"cut.{name}", lambda: swept(self, f"cut.{name}", {name: []}))
        if rows.empty:
            raise RunError(f"{name}: no token of this model's decoder is what it cuts or holds; try knockout")
        return rows

    def cut_effects(self, name: str) -> pd.DataFrame:
        """Mean effects of cutting attention, with intervals."""
        return self.run.table(f"effects.{name}", lambda: summarise_sweep(self.cut(name), seed=self.settings.seed))

    def screen(self) -> pd.DataFrame:
        """Every token of the prompt by attribution patching, the strongest measured."""
        return self.run.table("screen", lambda: screened(self))

    @cached_property
    def effects(self) -> pd.DataFrame:
        """Mean effects of the patches, with intervals."""
        return self.run.table("effects", lambda: summarise_sweep(self.patch_rows, seed=self.settings.seed))

    @cached_property
    def verdict(self) -> Verdict:
        """Where the intermediate is lost."""
        self.check()
        return locate(self)

    def check(self) -> None:
        """Refuse what has no verdict, before anything is written."""
        check_pairs(self.task, self.items)
        check_probing(self.items)
        if not self.run.has(f"answers.{self.task.name}.csv"):
            self.vlm  # noqa: B018 - what the model has not is refused first
        check_locating(self.items)

    @property
    def located(self) -> dict[str, pd.DataFrame]:
        """The tables on which the verdict rests, as far as they were asked for: `path, reading, needs, hold, given`."""
        return self.run.tables(LOCATED)

    def report(self) -> Path:
        """Draw every figure and write `report.html` and `verdict.json`."""
        verdict = self.verdict
        of_sweeps = [f"effects.{name}" for name in self.run.finished("effects")]
        tables = self.run.tables(("probes", "effects", *OTHERS, *of_sweeps, "screen"))
        tables["answers"] = self.answers[self.answers.task == self.task.name]
        with replacing(self.run.path(VERDICT)) as temporary:
            temporary.write_text(json.dumps(verdict.to_json(), indent=1) + "\n")
        plates = draw_plates(
            self.run.folder / "figures", {"gap": self.gap, **tables}, verdict=verdict, shown=shown(self)
        )
        return write_report(
            self.run.folder,
            settings=asdict(self.settings),
            gap=self.gap,
            probes=tables.pop("probes", None),
            effects=tables.pop("effects", None),
            verdict=verdict,
            others=tables,
            figures=plates,
            examples=[Example.of(item, self.answers) for item in self.items[:3]],
            task_summary=self.task.summary,
        )
