"""Patch many cells of one prompt, each for a fraction of a forward pass, and see what becomes of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from seamscope.hooks._batch import Batch
from seamscope.hooks._engine import require_here
from seamscope.hooks._errors import RunError, SiteError, SpanError
from seamscope.hooks._patch import Patch, patch
from seamscope.hooks._ragged import Ragged
from seamscope.hooks._recording import Recording
from seamscope.hooks._score import Score
from seamscope.hooks._site import Site

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from seamscope.hooks._vlm import Vlm

BUDGET: Final = 2**28  # bytes that the cells of one batch may take
WASTE: Final = 0.2  # of the tokens of a batch, computed though they come before a cell's patch
FEWEST: Final = 4  # cells that are put together whatever is wasted
STREAMS: Final = ("resid_post", "embed", "resid_pre")  # of what goes into a layer, in the order in which they come
EDITED: Final = "edited"  # the span of the edited tokens


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """New values for some tokens of a decoder's site: `positions` (n,) in the prompt, `values` (n, *feature)."""

    site: str
    positions: Int[Tensor, " n"]
    values: Float[Tensor, n * feature]


class Replay:
    """The run of one prompt, and what becomes of its answer when some of its activations are others.

    Equal to `patch` around a whole forward pass, but for rounding: a cell is run from the layer of its first edit on,
    for the tokens from its first position on (from the start of its block, where tokens see one another), side by side
    with others that begin at the same layer.
    """

    def __init__(self, vlm: Vlm, batch: Batch) -> None:
        require_here(vlm.engine, "replay")
        if vlm.wiring.taps.places:
            raise RunError("a replay cannot begin inside a capture or a patch; it records the unpatched run")
        if "answer" not in batch.span_names:
            raise SpanError("a replay needs an answer to look at; encode(..., answers=[...])")
        self.vlm, self.batch = vlm, batch
        self._recording = Recording(vlm, batch)
        self._answer: Int[Tensor, " tokens"] = batch.positions("answer")[0]

    def score(self, cells: Sequence[Edit | Sequence[Edit]], *, budget: int = BUDGET) -> Score:
        """Rate the answer under every cell: one edit, or several at once; the fields of the score are (cells,)."""
        targets = self.batch.inputs["input_ids"][0, self._answer]
        order: list[int] = []
        parts: list[Score] = []
        for numbers, logits in self.logits(cells, budget=budget):
            n, length = logits.shape[:2]
            rows = torch.arange(n, device=logits.device).repeat_interleave(length)
            parts.append(Score.of(logits.flatten(0, 1), targets.to(logits.device).repeat(n), rows, n))
            order += numbers
        back = torch.tensor(order).argsort()
        return Score(
            *(torch.cat([getattr(each, name) for each in parts])[back] for name in ("logprob", "first", "greedy"))
        )

    def logits(
        self, cells: Sequence[Edit | Sequence[Edit]], *, budget: int = BUDGET
    ) -> Iterator[tuple[list[int], Float[Tensor, "cells tokens vocab"]]]:
        """The logits of the answer's tokens, some cells at a time: which cells, and theirs."""
        plans = [
            self._plan(number, [cell] if isinstance(cell, Edit) else list(cell)) for number, cell in enumerate(cells)
        ]
        for some in _batches(plans, self.batch.width, budget // self._bytes):
            with torch.inference_mode():
                yield [plan.number for plan in some], self.vlm.unembed(self._run(some))

    def _plan(self, number: int, edits: list[Edit]) -> _Plan:
        if not edits:
            raise RunError("a cell needs an edit")
        sites = [Site.parse(edit.site) for edit in edits]
        for site, edit in zip(sites, edits, strict=True):
            self._check(site, edit)
        start = min(self._recording.firsts[int(edit.positions.min())] for edit in edits)
        layer = min(map(_begin, sites))
        direct = [k for k, site in enumerate(sites) if _begin(site) == layer and site.kind in STREAMS]
        direct.sort(key=lambda k: STREAMS.index(sites[k].kind))
        return _Plan(
            number=number,
            layer=layer,
            start=start,
            direct=tuple(edits[k] for k in direct),
            rest=tuple(edit for k, edit in enumerate(edits) if k not in direct),
        )

    def _check(self, site: Site, edit: Edit) -> None:
        self.vlm.point(site)
        if site.stack != "lm" or site.kind in ("pattern", "deepstack", "final_norm", "logits"):
            raise SiteError(f"{site} is not replayed; patch it, and run the whole model")
        if len(edit.positions) == 0 or edit.positions.min() < 0 or edit.positions.max() >= self.batch.width:
            raise SpanError(f"{site}: positions must be in 0 to {self.batch.width - 1}, at least one")
        if site.kind in STREAMS and edit.values.shape != (len(edit.positions), self.vlm.d_model):
            needed = (len(edit.positions), self.vlm.d_model)
            raise SiteError(f"{site} needs values of shape {needed}; got {tuple(edit.values.shape)}")

    def _run(self, plans: Sequence[_Plan]) -> Tensor:
        """What the last layer gives for the tokens that the answer is read from, (cells, tokens, d_model)."""
        layer, start = plans[0].layer, min(plan.start for plan in plans)
        record, n = self._recording, len(plans)
        stream = (record.streams[layer] if layer < self.vlm.n_layers else record.posts[-1])[:, start:].repeat(n, 1, 1)
        for row, plan in enumerate(plans):
            for edit in plan.direct:
                values = edit.values.to(stream)
                if Site.parse(edit.site).kind == "resid_post":
                    values = self._entering(layer, edit.positions, values)
                stream[row, edit.positions.to(stream.device) - start] = values
        sites = list(dict.fromkeys(edit.site for plan in plans for edit in plan.rest))
        batch = self._sub(plans, start, sites)
        patches = [Patch(site, _values(plans, site), span=f"{EDITED} {site}") for site in sites]
        with patch(self.vlm, patches), self.vlm.wiring.running(batch):
            out = record.go_on(layer, start, stream)
        reading = self._answer.to(out.device) - 1
        found = record.posts[-1][:, reading].repeat(n, 1, 1)
        later = reading >= start
        found[:, later] = out[:, reading[later] - start]
        return found

    def _entering(self, layer: int, positions: Tensor, values: Tensor) -> Tensor:
        """What goes into a layer where the one before gives these values."""
        if layer == self.vlm.n_layers:
            return values
        added = self._recording.added[layer - 1]
        return values if added is None else values + added[0, positions.to(added.device)]

    def _sub(self, plans: Sequence[_Plan], start: int, sites: Sequence[str]) -> Batch:
        """A batch that stands for the tokens from `start` on of all cells; its spans are the edited tokens."""
        width = self.batch.width - start
        nothing = torch.zeros(0, dtype=torch.long)

        def edited(plan: _Plan, site: str) -> Tensor:
            return torch.cat([nothing, *(edit.positions.cpu() - start for edit in plan.rest if edit.site == site)])

        spans = tuple({f"{EDITED} {site}": edited(plan, site) for site in sites} for plan in plans)
        return Batch(
            inputs={"input_ids": torch.zeros(len(plans), width, dtype=torch.long)},
            extra={},
            spans=spans,
            ids=tuple(f"{self.batch.ids[0]}/{plan.number}" for plan in plans),
            texts=("",) * len(plans),
            condition=self.batch.condition,
            padding=self.batch.padding,
            visual=None,
        )

    @cached_property
    def _bytes(self) -> int:
        """About what a token of a cell takes in a layer."""
        config = self.vlm.model.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        heads = config.num_attention_heads * self.batch.width
        numbers = 8 * config.hidden_size + 3 * inner + heads
        return int(numbers) * torch.finfo(self.vlm.dtype).bits // 8


def replay(vlm: Vlm, batch: Batch) -> Replay:
    """Record the run of a batch of one prompt with its answer, to see what becomes of the answer in patched runs.

    Raises `RunError` for several prompts, or inside a capture or patch, `SpanError` without an answer, and `ModelError`
    where the model is on another machine.
    """
    return Replay(vlm, batch)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """How a cell is run: from which layer and token on, what is edited before and what on the way."""

    number: int
    layer: int
    start: int
    direct: tuple[Edit, ...]
    rest: tuple[Edit, ...]


def _begin(site: Site) -> int:
    """The first layer that an edit changes, or is made in."""
    layer = int(site.layer or 0)
    return layer + 1 if site.kind == "resid_post" else layer


def _batches(plans: Sequence[_Plan], width: int, most: int) -> Iterator[list[_Plan]]:
    """Cells that are run side by side, `most` tokens at a time: those that begin and are edited at the same places."""
    alike: dict[tuple[int, tuple[str, ...]], list[_Plan]] = {}
    for plan in plans:
        alike.setdefault((plan.layer, tuple(sorted({edit.site for edit in plan.rest}))), []).append(plan)
    for several in alike.values():
        several.sort(key=lambda plan: -plan.start)
        some: list[_Plan] = []
        needed = 0  # tokens, if none were wasted
        for plan in several:
            length = width - plan.start
            taken = (len(some) + 1) * length
            if some and (taken > most or (len(some) >= FEWEST and taken > (1 + WASTE) * (needed + length))):
                yield some
                some, needed = [], 0
            some.append(plan)
            needed += length
        yield some


def _values(plans: Sequence[_Plan], site: str) -> Ragged:
    """The new values of a site, cell by cell."""
    edits = [[edit.values for edit in plan.rest if edit.site == site] for plan in plans]
    empty = next(each[0] for each in edits if each)[:0]
    return Ragged.from_list([torch.cat([empty, *each]) for each in edits])
