"""The runs of one item and of its partner, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Final

from torch import Tensor

from seamscope.hooks import Batch, Replay, Site, Vlm, replay

from .._conditions import hear
from ._experiment import Who

if TYPE_CHECKING:
    from ..tasks import Item, Task

BUDGET: Final = 64  # tokens that call 1 of the cascade may take


class Runs:
    """Runs of an item and of its partner under the conditions; the item's answer stands behind every prompt.

    Args:
        vlm: the model.
        task: the task that makes the partner, and cuts what call 1 of the cascade says into its parts.
        item: the item.
        sites: what is captured.
        budget: tokens that call 1 of the cascade may take.
    """

    def __init__(self, vlm: Vlm, task: Task, item: Item, *, sites: Sequence[str], budget: int = BUDGET) -> None:
        self.vlm, self.item, self._task, self._sites, self._budget = vlm, item, task, list(sites), budget
        self.batch = cache(self._batch)
        self.replay = cache(self._replay)
        self.values = cache(self._values)

    @cached_property
    def _members(self) -> dict[str, Item]:
        return {"item": self.item, "partner": self._task.partner(self.item)}

    @property
    def n_objects(self) -> int:
        """How many objects the item has."""
        return len(self.item.boxes)

    def _batch(self, who: Who) -> Batch:
        return self._encode(who, self.item.answer)

    def _encode(self, who: Who, answer: str) -> Batch:
        member, condition = who
        shown = self._members[member]
        if condition == "cascaded":
            (shown,), _ = hear(self.vlm, self._task, [shown], budget=self._budget)
        return self.vlm.encode([shown], condition=condition, answers=[answer])

    def _replay(self, who: Who) -> Replay:
        """A run, recorded; the rival of the item's answer is the partner's."""
        batch, rival = self.batch(who), self._encode(who, self._members["partner"].answer)
        tokens = rival.inputs["input_ids"][0, rival.positions("answer")[0].to(rival.inputs["input_ids"].device)]
        passed = [site for site in self._sites if batch.visual is not None or not Site.parse(site).visual]
        return replay(self.vlm, batch, rival=tokens.cpu(), sites=passed)

    def _values(self, who: Who, site: str) -> Tensor | None:
        """What a site holds in a run, (tokens, *feature); None where the run does not pass it."""
        held, named = self.replay(who).held, Site.parse(site)
        if site not in held:
            return None
        return held[site].reshape(-1, *map(int, self.vlm.shape(named)[1 if named.visual else 2 :]))

    def places(self, who: Who, site: str, span: str) -> Tensor | None:
        """The numbers of a span's tokens at a site, (n,); None where there are none."""
        batch, stack = self.batch(who), Site.parse(site).tokens
        if stack == "lm":
            return batch.spans[0].get(span)
        return None if batch.visual is None else batch.visual.spans[stack][0].get(span)
