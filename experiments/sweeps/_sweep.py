"""Run trials on every item, and tell what became of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from seamscope.hooks import RunError, Score, Vlm, choose

from ._cells import Cell
from ._experiment import EXPERIMENTS
from ._runs import BUDGET, Runs
from ._trials import Trial, trials_of

if TYPE_CHECKING:
    from ..tasks import Item, Task

Plan = Callable[[Runs], Iterable[Trial]]  # the trials of one item's runs


def sweep(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    experiment: str,
    cells: Sequence[Cell],
    by: str = "span",
    rule: str = "stretch",
    budget: int = BUDGET,
    progress: bool = False,
) -> pd.DataFrame:
    """Patch every cell for every item.

    Args:
        vlm: the model.
        task: the task of the items.
        items: each is patched with its partner, or with itself under another condition: see `EXPERIMENTS`.
        experiment: one of `EXPERIMENTS`.
        cells: from `layer_cells` or `back_cells`.
        by: `span` patches all tokens of a span set at once; `object` every object by itself; `token` every token, where
            both runs have equally many in every span (`prompt`: all but the answer's); `head` every head of `head_z`.
        rule: what is done when spans differ in size: see `Patch`.
        budget: tokens that call 1 of the cascade may take, where it is a source.
        progress: show a progress bar.

    Returns:
        One row per (item, cell): `id, group, experiment, source_site, target_site, window, span`; `token, position` by
        token and `head` by head. `base, ceiling, patched`: log-probability in nats of the item's whole answer in the
        unpatched target, in the unpatched source, and in the patched target. `difference`, `base_difference`,
        `ceiling_difference`: by how much the logit of the answer is above that of the partner's answer, at the first
        token in which they differ. `rank, base_rank`: how many tokens are likelier than the answer's first. `kl`: of
        that token's distribution from the unpatched one, nats. `right, base_right, ceiling_right`: greedy decoding
        would give exactly the answer; `first_right`: its first token.
    """
    plan = patching(experiment, cells, by=by, rule=rule)
    return sweep_all(vlm, task, items, [plan], sites=sites_of(cells), budget=budget, what=experiment, progress=progress)


def patching(experiment: str, cells: Sequence[Cell], *, by: str = "span", rule: str = "stretch") -> Plan:
    """The trials of an experiment, for `sweep_all`."""
    plan = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS, RunError)]
    if not cells:
        raise RunError(f"{experiment}: there is no cell to patch")
    return lambda runs: trials_of(runs, plan, cells, by=by, rule=rule)


def sites_of(cells: Iterable[Cell]) -> list[str]:
    """What must be captured for cells."""
    return list(dict.fromkeys(site for cell in cells for pair in cell.pairs for site in pair))


def sweep_all(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    plans: Sequence[Plan],
    *,
    sites: Sequence[str] = (),
    budget: int = BUDGET,
    what: str = "patch",
    progress: bool = False,
) -> pd.DataFrame:
    """The table of several plans for every item."""
    tables = [
        table
        for item in tqdm(items, desc=what, unit="item", disable=not progress)
        for table in [sweep_item(vlm, task, item, plans, sites=sites, budget=budget)]
        if len(table)
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def sweep_item(
    vlm: Vlm, task: Task, item: Item, plans: Sequence[Plan], *, sites: Sequence[str] = (), budget: int = BUDGET
) -> pd.DataFrame:
    """The rows of one item."""
    runs = Runs(vlm, task, item, sites=sites, budget=budget)
    tables = [_rows(runs, trials) for plan in plans for trials in _by_target(plan(runs))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _by_target(trials: Iterable[Trial]) -> Iterator[list[Trial]]:
    alike: dict[object, list[Trial]] = {}
    for trial in trials:
        alike.setdefault((trial.target, trial.ceiling), []).append(trial)
    yield from alike.values()


def _rows(runs: Runs, trials: Sequence[Trial]) -> pd.DataFrame:
    """Run the trials of one target, and put them into a table."""
    replayed = runs.replay(trials[0].target)
    base = replayed.base
    ceiling = None if trials[0].ceiling is None else runs.replay(trials[0].ceiling).base
    live = np.array([bool(trial.parts) for trial in trials])
    score = replayed.score([trial.parts for trial in trials if trial.parts]) if live.any() else None
    table = pd.DataFrame([trial.labels for trial in trials])
    table.insert(0, "id", runs.item.id)
    table.insert(1, "group", runs.item.group)

    def filled(name: str) -> NDArray[Any]:
        found: NDArray[Any] = getattr(base, name).cpu().numpy().repeat(len(trials))
        if score is not None:
            found[live] = getattr(score, name).cpu().numpy()
        return found

    kl = filled("kl")
    kl[~live] = 0.0
    return table.assign(
        base=_one(base, "logprob"),
        ceiling=_one(ceiling, "logprob"),
        patched=filled("logprob"),
        base_difference=_one(base, "difference"),
        ceiling_difference=_one(ceiling, "difference"),
        difference=filled("difference"),
        base_rank=_one(base, "rank"),
        rank=filled("rank"),
        kl=kl,
        base_right=_one(base, "greedy"),
        ceiling_right=_one(ceiling, "greedy"),
        right=filled("greedy"),
        first_right=filled("first"),
    )


def _one(score: Score | None, name: str) -> Any:
    """The only number of a score, in its own precision."""
    return np.float32("nan") if score is None else getattr(score, name).cpu().numpy()[0]
