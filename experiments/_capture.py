"""Run items under conditions and keep what flows through the model in a store, shard by shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import pandas as pd
from tqdm import tqdm

from seamscope.activations import (
    Background,
    Schema,
    Shards,
    StoreWriter,
    fitting_rows_per_shard,
    planned_rows_per_shard,
    to_host,
)
from seamscope.hooks import Batch, Ragged, RunError, Vlm, capture

from ._align import TEXT, expand
from ._amounts import size_text
from ._conditions import hear
from ._identity import made_with, provenance

if TYPE_CHECKING:
    from ._members import Members
    from ._run import Settings
    from .tasks import Item, Task

SAMPLE: Final = 8  # rows that are run to tell what a row takes
TO_SPARE: Final = 1.02  # the joined file takes this much more than the shards
DATASET_BYTES: Final = 600  # what a dataset takes beside its data
DATASET_ROOM: Final = 5000  # what is kept free for it while its file is being written, names included

Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a capture is going to take: `rows` under each condition, `bytes` and `free` on the disk, `seconds`.

    What is finished already is not counted in `bytes` and `seconds`, which is None where nothing was timed. A file
    takes `beside` more while it is being written.
    """

    rows: int
    shards: int
    rows_per_shard: int
    finished: int
    bytes: int
    beside: int
    free: int
    seconds: float | None = None

    def check(self, folder: Path) -> None:
        """Refuse a capture that the disk cannot hold."""
        if self.bytes + self.beside > self.free:
            needed, free = size_text(self.bytes + self.beside), size_text(self.free)
            raise RunError(
                f"the store needs {needed}, and the disk of {folder} has {free} free; "
                "take fewer sites, spans or items, pool spans, or choose another --out"
            )


class Capture:
    """The activations of a task's items and their partners under some conditions, and where they are kept.

    One row per (item or partner, condition); both share their group, so that no split separates them. A shard depends
    only on what was asked, not on when or where it is made. In the cascade, call 2 is put after what the model itself
    says in call 1, or after what was `said` of each item, by its id.
    """

    def __init__(
        self,
        vlm: Vlm,
        task: Task,
        members: Members,
        *,
        path: Path,
        conditions: Sequence[str],
        sites: Sequence[str],
        settings: Settings,
        part: tuple[int, int] = (0, 1),
        digests: Mapping[str, str] | None = None,
        said: Mapping[str, str] | None = None,
    ) -> None:
        self._vlm, self._task, self._members, self._said = vlm, task, members, said
        self._path, self._part, self._settings = path, part, settings
        self._conditions, self._sites = tuple(conditions), sites
        sample = members.spread(SAMPLE)
        self._row_bytes, self._datasets = self._measure(sample)
        self._shards = Shards(
            path,
            Schema(
                model=settings.model,
                task=task.name,
                conditions=self._conditions,
                provenance=provenance(
                    vlm, settings, sample[0], sites=sites, conditions=self._conditions, digests=digests
                ),
            ),
            rows=len(members),
            rows_per_shard=(
                settings.rows_per_shard
                or planned_rows_per_shard(path)
                or fitting_rows_per_shard(self._row_bytes, len(members))
            ),
            part=part,
            compression=None if settings.compression == "none" else settings.compression,
        )

    def run(self, *, progress: bool = False) -> bool:
        """Make the shards of this part that are missing, then join all if all are there; tells whether they are."""
        missing = self._shards.missing()
        total = sum(len(self._shards.rows_of(each)) for each in range(self._part[0], self._shards.count, self._part[1]))
        left = sum(len(self._shards.rows_of(each)) for each in missing)
        size = len(self._conditions)
        with (
            self._shards,
            Background() as writer,
            tqdm(
                total=total * size, initial=(total - left) * size, desc="capture", unit="run", disable=not progress
            ) as bar,
        ):
            for number in missing:
                file = self._shards.create(number, made_with(self._vlm, self._settings))
                for rows, append in self._batches(self._members[self._shards.rows_of(number)], file):
                    writer.submit(append)
                    bar.update(rows)
                writer.submit(file.close)
        return self._shards.join()

    @property
    def finished(self) -> tuple[int, int]:
        """How many shards are finished, of all parts, and how many there will be."""
        return len(self._shards.finished()), self._shards.count

    def check_room(self) -> None:
        """Refuse, with `RunError`, what the disk cannot hold."""
        self.forecast().check(self._path.parent)

    def forecast(self, *, timed: bool = False) -> Forecast:
        """What remains to be done, and whether there is room for it; `timed`: run one batch to tell how long."""
        missing = self._shards.missing()
        rows = sum(len(self._shards.rows_of(each)) for each in missing)
        place = next(each for each in self._path.absolute().parents if each.exists())
        return Forecast(
            rows=len(self._members),
            shards=self._shards.count,
            rows_per_shard=len(self._shards.rows_of(0)),
            finished=len(self._shards.finished()),
            bytes=int(rows * self._row_bytes * TO_SPARE + len(missing) * self._datasets * DATASET_BYTES),
            beside=self._datasets * DATASET_ROOM if missing else 0,
            free=shutil.disk_usage(place).free,
            seconds=rows * self._seconds() if timed else None,
        )

    def _seconds(self) -> float:
        """How long a row takes, by one batch."""
        items = self._members[self._shards.rows_of(0)[: self._settings.batch_size]]
        start = perf_counter()
        for _, append in self._batches(items, None):
            append()
        return (perf_counter() - start) / len(items)

    def _measure(self, sample: Sequence[Item]) -> tuple[float, int]:
        """Bytes of a row under all conditions together, and datasets of a file; call 1 is taken to be right."""
        heard = [item.saying(item.intermediate) for item in sample]
        held = [acts for condition in self._conditions for acts in self._acts(heard, condition).values()]
        table = describe_rows(self._task, heard)
        texts = len(self._conditions) * sum(len(str(row)) for row in table.to_dict("records"))
        sizes = sum(acts.values.numel() * acts.values.element_size() + 4 * len(acts) for acts in held)
        return (sizes + texts) / len(sample), 2 * len(held) + 3 * len(table.columns) * len(self._conditions)

    def _batches(self, items: list[Item], file: StoreWriter | None) -> Iterator[tuple[int, Callable[[], object]]]:
        """Run items, the longest first; gives how many were run, and what keeps them in a file."""
        if "cascaded" in self._conditions:
            items = self._heard(items)
        for condition in self._conditions:
            for places in self._by_length(items, condition):
                batch = [items[place] for place in places]
                acts = to_host(self._acts(batch, condition))
                yield len(batch), _Append(file, condition, describe_rows(self._task, batch), acts, places)

    def _heard(self, items: list[Item]) -> list[Item]:
        if self._said is not None:
            return [item.saying(self._task.hand_over(item, self._said[item.id])) for item in items]
        heard = list(items)
        for places in self._by_length(items, "perceive"):
            batch, _ = hear(
                self._vlm,
                self._task,
                [items[place] for place in places],
                budget=self._task.budget[self._settings.profile],
            )
            for place, item in zip(places, batch, strict=True):
                heard[place] = item
        return heard

    def _by_length(self, items: Sequence[Item], condition: str) -> Iterator[list[int]]:
        """Numbers of items in batches of about one length: the longest come first, so that memory fails at once."""
        widths = self._vlm.widths(items, condition=condition)
        order = sorted(range(len(items)), key=lambda place: -widths[place])
        size = self._settings.batch_size
        return (order[start : start + size] for start in range(0, len(order), size))

    def _acts(self, items: Sequence[Item], condition: str) -> dict[Key, Ragged]:
        batch = self._vlm.encode(items, condition=condition)
        objects = max(len(item.boxes) for item in items)
        return kept(
            self._vlm, batch, sites=self._sites, spans=self._settings.spans, pool=self._settings.pool, objects=objects
        )


def kept(
    vlm: Vlm, batch: Batch, *, sites: Sequence[str], spans: Sequence[str], pool: str, objects: int
) -> dict[Key, Ragged]:
    """What is kept of one batch: some sites at some span sets, pooled unless `pool` is none.

    A text run does not pass the tower, so it has nothing of its sites.
    """
    condition = str(batch.condition)
    wanted = dict.fromkeys(each for name in spans for each in expand(name, condition, objects=objects))
    passed = [site for site in sites if condition not in TEXT or site.startswith("lm.")]
    reduced = None if pool == "none" else pool
    with capture(vlm, passed, spans=[each for each in wanted if each in batch.span_names], pool=reduced) as acts:
        vlm.forward(batch, logits_to_keep=1)
    return dict(acts)


@dataclass(frozen=True)
class _Append:
    """Keeps a batch, once its activations have come to the host."""

    file: StoreWriter | None
    condition: str
    rows: pd.DataFrame
    acts: Callable[[], dict[Key, Ragged]]
    places: list[int]

    def __call__(self) -> None:
        held = self.acts()
        if self.file is not None:
            self.file.append(self.condition, self.rows, held, places=self.places, copy=False)


def describe_rows(task: Task, items: Sequence[Item]) -> pd.DataFrame:
    """What a store keeps of each item beside its activations: identity, labels, and control types."""
    return pd.DataFrame(
        [
            {
                "id": item.id,
                "group": item.group,
                "image": sha256(item.image.tobytes()).hexdigest()[:16],
                "question": item.question,
                "intermediate": item.intermediate.text,
                "said": "" if item.said is None else item.said.text,
                "answer": item.answer,
                **{f"var:{name}": label for name, label in item.variables.items()},
                **{f"type:{name}": kind for name, kind in item.types.items()},
            }
            for item in items
        ]
    )
