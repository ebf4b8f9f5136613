"""Which probes a study fits: every variable where its object stands, and where the answer is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from joblib import cpu_count
from numpy.typing import NDArray

from seamscope.activations import Store
from seamscope.hooks import RunError
from seamscope.probes import probe_features, probe_grid, probe_pair, summarise, summarise_transfer

from ._align import TEXT

if TYPE_CHECKING:
    from .tasks import Item

OWN_OBJECT: Final = {True: "intermediate.{k}", False: "image.object.{k}"}
READING: Final = ("question", "last")
NONE: Final = ["train_condition", "train_span", "train_site", "condition", "span", "site", "target", "accuracy"]
ENDS: Final = ("accuracy", "low", "high")
FOLDS: Final = 5
WORKERS: Final = min(8, cpu_count())
CROP: Final = 12  # pixels of an object's picture, each way
WHOLE: Final = 24  # of the whole picture


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


def study_grid(
    store: Store, *, seed: int, baseline: bool = False, progress: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Probe every variable at its own object and at the reading spans, in every condition of the store.

    For a `baseline`, such as an untrained model, labels are not shuffled, and no code is measured.

    Returns:
        The table of `probe_grid`, and where the store has two conditions, that of `probe_transfer`: probes of text runs
        tested on direct runs, and back; those of objects, in words and in the picture, also at every other site.
    """
    options: dict[str, Any] = {"folds": FOLDS, "seed": seed, "workers": WORKERS, "progress": progress}
    options |= {"shuffled": not baseline, "code": not baseline}
    targets = shared_targets(store)
    objects = [target for target in targets if object_of(target) is not None]
    grids, moved = [], []
    for names, span in ((objects, None), *((targets, each) for each in READING)):
        places = [(name, span or OWN_OBJECT[name in TEXT]) for name in store.conditions]
        held = {place: found for place in places if (found := _held(store, names, place))}
        if len(held) == 2 and len({tuple(each) for each in held.values()}) == 1:
            one, other = held
            grid, elsewhere = probe_pair(store, held[one], places=(one, other), across=span is None, **options)
            grids.append(grid)
            moved.append(elsewhere)
        else:
            for (condition, at), found in held.items():
                grids.append(probe_grid(store, found, spans=[at], conditions=[condition], **options))
    if not grids:
        raise RunError("there is nothing to probe: no captured span belongs to a variable of the task")
    return pd.concat(grids, ignore_index=True), pd.concat(moved, ignore_index=True) if moved else pd.DataFrame()


def _held(store: Store, targets: Sequence[str], place: tuple[str, str]) -> list[str]:
    """The targets whose own span there is in a place."""
    condition, span = place
    held = {each for _, each in store.cells(condition)}
    return [target for target in targets if span.format(k=object_of(target)) in held]


def pixel_grid(items: Iterable[Item], rows: pd.DataFrame, *, targets: Sequence[str], seed: int) -> pd.DataFrame:
    """Probe raw pixels for every variable: those of its own object, or of the whole picture if it is of no object.

    `items` are those of the table's rows, in its order; they are drawn one at a time.
    """
    numbers = {target: object_of(target) for target in targets}
    features: dict[int | None, list[NDArray[np.float64]]] = {number: [] for number in numbers.values()}
    for item in items:
        for number, held in features.items():
            held.append(_pixels(item, number))
    parts = [
        probe_features(
            np.stack(held),
            rows,
            [target for target in targets if numbers[target] == number],
            name="pixels",
            folds=FOLDS,
            seed=seed,
            shuffled=False,
            code=False,
        )
        for number, held in features.items()
    ]
    return pd.concat(parts, ignore_index=True)


def _pixels(item: Item, number: int | None) -> NDArray[np.float64]:
    """An object's picture, or the whole of it, small; (3 * pixels,), 0 to 1."""
    picture, size = item.image, WHOLE
    if number is not None and number < len(item.boxes):
        box = item.boxes[number]
        left, top, right, bottom = (round(side) for side in (box.left, box.top, box.right, box.bottom))
        picture, size = picture.crop((left, top, max(right, left + 1), max(bottom, top + 1))), CROP
    return np.asarray(picture.convert("RGB").resize((size, size)), dtype=np.float64).ravel() / 255


def summarise_probes(
    trained: pd.DataFrame, untrained: pd.DataFrame, pixels: pd.DataFrame, *, seed: int
) -> pd.DataFrame:
    """One row per cell and target, with intervals and controls, and what needs no trained model beside it.

    `untrained_accuracy` and `untrained_control_accuracy`, with their intervals: the same probe on a copy of the model
    with random weights; `pixels_accuracy`, with its interval: on the pixels of the variable's
    object, in runs with a picture; `embedded_accuracy`: at the same place before the first layer of the decoder, in
    text runs the token embeddings.
    """
    table = summarise(trained, seed=seed)
    early = table[table.site == "lm.embed"]
    table = _beside(table, summarise(untrained, seed=seed), "untrained", [*ENDS, *(f"control_{name}" for name in ENDS)])
    table = _beside(table, summarise(pixels, seed=seed), "pixels", ENDS, on=["target"])
    table.loc[table.condition.isin(TEXT), [f"pixels_{name}" for name in ENDS]] = np.nan
    return _beside(table, early, "embedded", ["accuracy"], on=["condition", "span", "target"])


def _beside(
    table: pd.DataFrame,
    other: pd.DataFrame,
    prefix: str,
    names: Sequence[str],
    *,
    on: Sequence[str] = ("condition", "site", "span", "target"),
) -> pd.DataFrame:
    """A table, with columns of another beside it that get a prefix, where both agree on some columns."""
    told = other[[*on, *names]].rename(columns={name: f"{prefix}_{name}" for name in names})
    return table.merge(told, on=[*on], how="left")


def summarise_moved(table: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """The table of `summarise_transfer`; only its first columns where there is nothing to summarise."""
    return summarise_transfer(table, seed=seed) if len(table) else pd.DataFrame(columns=NONE)
