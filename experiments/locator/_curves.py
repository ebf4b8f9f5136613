"""What probes read along the way and at the reading positions: of all objects together, and of each."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from ._asking import READ_AT, Asking, layer_of
from ._items import Floats, Items

if TYPE_CHECKING:
    from collections.abc import Sequence

COLUMNS: Final = ("right", "control", "named", "named_control", "floor")


class Curve:
    """What probes read of every item at each place."""

    def __init__(self, items: Items, table: pd.DataFrame, *, places: Sequence[str] | None = None) -> None:
        self._items = items
        held = {name: items.align(table, name, places="site") for name in COLUMNS}
        self.index: tuple[str, ...] = held["floor"][1] if places is None else tuple(places)
        self._columns = {
            name: pd.DataFrame(values, columns=list(index)).reindex(columns=list(self.index)).to_numpy()
            for name, (values, index) in held.items()
        }

    def apart(self) -> Floats:
        """How well an item is told from its partner: 0 is chance, 1 all pairs; (1 + resamples, places)."""
        return 2 * self._items.mean(self._columns["right"]) - 1

    def named(self) -> tuple[Floats, Floats]:
        """How many are named rightly, of those that are not by chance: 0 to 1; and the control's."""
        floor = self._items.mean(self._columns["floor"])
        own, control = (self._items.mean(self._columns[name]) for name in ("named", "named_control"))
        return (own - floor) / (1 - floor), (control - floor) / (1 - floor)


class Curves:
    """The curves of a model; `number` is that of an object, None for all of them."""

    def __init__(self, items: Items, asking: Asking) -> None:
        self._items, self._asking = items, asking

    @cached_property
    def places(self) -> tuple[str, ...]:
        """The sites of the way, in forward order."""
        return Curve(self._items, self._own("direct")).index

    @cached_property
    def objects(self) -> tuple[int, ...]:
        """The objects of which most items have one."""
        most = self._counts.named >= len(self._items.groups) / 2
        return tuple(int(number) for number in self._counts.index[most])

    def pairs(self, number: int) -> int:
        """How many items have another object there than their partner."""
        return int(self._counts.right[number])

    @cached_property
    def _counts(self) -> pd.DataFrame:
        """How many items have each object, and another one than their partner."""
        found = self._own("direct").groupby(["object", "group"])[["named", "right"]].mean()
        return found.notna().groupby(level="object").sum()

    def own(self, condition: str, number: int | None = None) -> Curve:
        """At the objects' own tokens: the picture's on the way, or the words'."""
        places = self.places if condition == "direct" else None
        return Curve(self._items, _of(self._own(condition), number), places=places)

    def reading(self, condition: str, number: int | None = None) -> Floats:
        """How well items are told apart at the reading position that holds most, (1 + resamples, layers)."""
        table = self._asking.reading()
        return self._best(_of(table[(table.condition == condition) & (table.kind == "object")], number))

    def form(self) -> Floats:
        """The same of direct runs by probes that were fitted on text runs."""
        return self._best(self._asking.form())

    def _best(self, chosen: pd.DataFrame) -> Floats:
        best = np.full((len(self._items.weights), self._asking.n_layers), np.nan)
        for span in READ_AT:
            curve = Curve(self._items, chosen[chosen.span == span])
            if curve.index:
                layers = [layer_of(site) for site in curve.index]
                best[:, layers] = np.fmax(best[:, layers], curve.apart())
        return _filled(best)

    def _own(self, condition: str) -> pd.DataFrame:
        table = self._asking.path()
        return table[table.condition == condition]


def _of(table: pd.DataFrame, number: int | None) -> pd.DataFrame:
    return table if number is None else table[table.object == number]


def _filled(curve: Floats) -> Floats:
    """Layers that were not measured hold what the nearest measured one before them does."""
    return pd.DataFrame(curve).T.ffill().bfill().T.to_numpy()
