"""Hand the intermediate over in words, told from where it still is: the model's own cascade, cut in at one place.

A linear map, fitted on other items, tells what the words of each object would be from the states at a place; the phrase
that comes nearest is handed to the textual skill. Where the place holds the intermediate, the answers come back; where
it is lost, they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import pairwise_distances_argmin

from .._members import Members
from ._bridges import Bridges, Floats
from ._sizes import PATCHED

if TYPE_CHECKING:
    from seamscope.activations import Store

    from .._study import Study
    from ..tasks import Item

EMBEDDED: Final = "lm.embed"


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A place from which the intermediate is handed over: a site, at the objects' own tokens or where it is read."""

    site: str
    reading: bool = False

    @property
    def name(self) -> str:
        """As a report says it."""
        return f"{'the reading positions of ' if self.reading else ''}{self.site}"


def hand_over(study: Study, plans: Mapping[str, Sequence[Spot]]) -> pd.DataFrame:
    """Answers to what is told by each plan: `name, group, right, control`; the control is told from the partner's.

    A plan has one spot for all objects, or one for each.
    """
    items = list(Members(study.task, study.settings))
    with study.locating_store() as store:
        teller = _Teller(store, items, seed=study.settings.seed)
        told = {name: teller.tell(spots) for name, spots in plans.items()}
    row = {item.id: number for number, item in enumerate(items)}
    asked = study.items[:PATCHED]
    tables = []
    for plan, parts in told.items():
        columns = {}
        for name, members in (("right", asked), ("control", [study.task.partner(item) for item in asked])):
            columns[name] = _answered(study, asked, [parts[row[each.id]] for each in members])
        tables.append(pd.DataFrame({"name": plan, "group": [item.group for item in asked], **columns}))
    return pd.concat(tables, ignore_index=True)


def _answered(study: Study, items: Sequence[Item], parts: Sequence[tuple[str, ...]]) -> list[bool]:
    """Whether the textual skill answers rightly when it is told these objects."""
    task, vlm, size = study.task, study.vlm, study.settings.batch_size
    budget = task.budget[study.settings.profile]
    told = [
        item.saying(task.hand_over(item, item.intermediate.separator.join(each)))
        for item, each in zip(items, parts, strict=True)
    ]
    texts = [
        text
        for start in range(0, len(told), size)
        for text in vlm.generate(vlm.encode(told[start : start + size], condition="cascaded"), max_new_tokens=budget)
    ]
    return [task.score(item, text) for item, text in zip(items, texts, strict=True)]


class _Teller:
    """Tells the phrases of objects from states, each item's by maps that were fitted on others."""

    def __init__(self, store: Store, items: Sequence[Item], *, seed: int) -> None:
        self._bridges, self._items = Bridges(store, seed=seed), items
        self._words = {span: self._bridges.pooled("oracle", EMBEDDED, _words(span)) for span in self._bridges.objects}

    def tell(self, spots: Sequence[Spot]) -> list[tuple[str, ...]]:
        """The phrases of every row's objects, in order; objects that have no spot of their own have the last one's."""
        made = {spot: dict(self._phrases(spot)) for spot in dict.fromkeys(spots)}
        objects = self._bridges.objects
        of = {span: made[spots[min(k, len(spots) - 1)]][span] for k, span in enumerate(objects)}
        return [
            tuple(of[span][number] for span in objects[: len(item.intermediate.parts)])
            for number, item in enumerate(self._items)
        ]

    def _phrases(self, spot: Spot) -> list[tuple[str, list[str]]]:
        if spot.reading:
            source = self._bridges.read(spot.site)
            states = {span: self._bridges.mapped(source, words) for span, words in self._words.items()}
        else:
            states = self._bridges.words(spot.site)
        return [(span, self._nearest(told)) for span, told in states.items()]

    def _nearest(self, told: Floats) -> list[str]:
        """The phrase, of all that any item has, whose words are nearest to what is told."""
        places: dict[str, NDArray[np.float64]] = {}
        for number, each in enumerate(self._bridges.objects):
            for item, state in zip(self._items, self._words[each], strict=True):
                if number < len(item.intermediate.parts):
                    places.setdefault(item.intermediate.parts[number], state)
        names = list(places)
        held = np.nan_to_num(told)
        return [names[k] for k in pairwise_distances_argmin(held, np.stack(list(places.values())))]


def _words(span: str) -> str:
    return span.replace("image.object", "intermediate")
