"""The rows of a capture: items and their counterfactual partners, drawn when they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._run import Settings
    from .tasks import Item, Task


class Members:
    """Every item of a run and its partner, each once; pictures are drawn or loaded when a row is asked for."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self._task, self._settings = task, settings
        self._pairs = task.pairing(settings.n, seed=settings.seed)

    def __len__(self) -> int:
        return len(self._pairs)

    def __iter__(self) -> Iterator[Item]:
        """Every row in order, one at a time."""
        return self._draw(range(len(self)))

    def __getitem__(self, rows: Iterable[int]) -> list[Item]:
        """The items of these rows."""
        return list(self._draw(rows))

    def spread(self, n: int) -> list[Item]:
        """About `n` rows, evenly spread."""
        return self[range(0, len(self), max(1, len(self) // n))][:n]

    def _draw(self, rows: Iterable[int]) -> Iterator[Item]:
        """The items of these rows; one whose partner follows it is drawn once."""
        drawn: dict[int, Item] = {}
        for row in rows:
            k, partner = self._pairs[row]
            if k not in drawn:
                drawn = {k: self._item(k)}
            yield self._task.partner(drawn[k]) if partner else drawn[k]

    def _item(self, k: int) -> Item:
        return self._task.item(k, profile_name=self._settings.profile, seed=self._settings.seed)
