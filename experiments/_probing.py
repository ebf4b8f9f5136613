"""Which probes a study fits: every variable where its object stands, and where the answer is made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
import pandas as pd

from seamscope.activations import Store
from seamscope.hooks import RunError
from seamscope.probes import probe_grid, summarise

from ._align import TEXT

CELL: Final = ["condition", "site", "stack", "layer", "span"]
OWN_OBJECT: Final = {True: "intermediate.{k}", False: "image.object.{k}"}
READING: Final = ("question", "last")
FOLDS: Final = 5


def object_of(variable: str) -> int | None:
    """The object that a variable describes: `card.0.rank` the first; `None` for one of the whole item."""
    found = re.search(r"\.(\d+)(?:\.|$)", variable)
    return int(found[1]) if found else None


def shared_targets(store: Store) -> list[str]:
    """Variables that every captured item has, in every condition, with at least two labels."""
    tables = [store.rows(condition) for condition in store.conditions]
    names = [c.removeprefix("var:") for c in tables[0].columns if c.startswith("var:")]
    return [name for name in names if all(_usable(table[f"var:{name}"]) for table in tables)]


def _usable(labels: pd.Series[Any]) -> bool:
    return not labels.isna().any() and not (labels == "").any() and labels.nunique() > 1


def study_grid(store: Store, *, seed: int) -> pd.DataFrame:
    """Probe every variable at its own object and at the reading spans, in every condition of the store."""
    targets = shared_targets(store)
    parts = []
    for condition in store.conditions:
        held = {span for _, span in store.cells(condition)}
        own = OWN_OBJECT[condition in TEXT]
        objects = [t for t in targets if (k := object_of(t)) is not None and own.format(k=k) in held]
        for names, at in ((objects, [own]), (targets, [s for s in READING if s in held])):
            if names and at:
                parts.append(probe_grid(store, names, spans=at, conditions=[condition], folds=FOLDS, seed=seed, workers=2))
    if not parts:
        raise RunError("there is nothing to probe: no captured span belongs to a variable of the task")
    return pd.concat(parts, ignore_index=True)


def summarise_probes(trained: pd.DataFrame, untrained: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row per cell and target, with intervals, controls, and the untrained model's accuracy beside it."""
    table = summarise(trained, seed=seed)
    beside = summarise(untrained, seed=seed).rename(columns={"accuracy": "untrained_accuracy"})
    keys = ["condition", "site", "span", "target"]
    return table.merge(beside[[*keys, "untrained_accuracy"]], on=keys, how="left")


def item_hits(grid: pd.DataFrame, *, needs: Sequence[str] = ("*",)) -> pd.DataFrame:
    """What the probes got right, per group of items, averaged over variables of one kind.

    One row per (cell, kind, group): `kind` is `object` (what the visual skill hands over and the answer depends on,
    by the globs `needs`), `detail` (what else it may hand over) or `answer`; `correct, control, shuffled, chance` are
    means in 0 to 1. The locator resamples the groups.
    """
    rows = grid.assign(kind=[_kind(target, needs) for target in grid.target])
    rows["span"] = rows.span.str.replace(r"\.\d+$", "", regex=True).replace(
        {"image.object": "objects", "intermediate": "objects"}
    )
    long = pd.concat([_long(row) for row in rows.itertuples()], ignore_index=True)
    keys = [*CELL, "kind", "group"]
    return long.groupby(keys, sort=False, dropna=False, as_index=False).mean(numeric_only=True)


def _kind(target: str, needs: Sequence[str]) -> str:
    if object_of(target) is None:
        return "answer"
    return "object" if any(fnmatchcase(target, glob) for glob in needs) else "detail"


def _long(row: Any) -> pd.DataFrame:
    count = len(row.groups)
    keep = {name: [getattr(row, name)] * count for name in (*CELL, "kind")}
    return pd.DataFrame(
        {
            **keep,
            "group": list(row.groups),
            "correct": np.asarray(row.correct, dtype=float),
            "control": np.asarray(row.control_correct, dtype=float),
            "shuffled": np.asarray(row.shuffled_correct, dtype=float),
            "chance": [row.chance] * count,
        }
    )
