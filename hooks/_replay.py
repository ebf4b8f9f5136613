"""Patch many cells of one prompt, each for a fraction of a forward pass, and see what becomes of the answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from seamscope.hooks._attention import require_editable
from seamscope.hooks._cells import (
    REPLAYED,
    Cell,
    Cut,
    Edit,
    Inside,
    Plan,
    batches,
    check_cut,
    check_edit,
    parts_of,
    plan_of,
    portions,
)
from seamscope.hooks._editing import editing
from seamscope.hooks._engine import require_here
from seamscope.hooks._errors import RunError, SiteError, SpanError
from seamscope.hooks._recording import Recording
from seamscope.hooks._score import Score
from seamscope.hooks._select import count_tokens
from seamscope.hooks._whole import run_whole

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._capture import Activations
    from seamscope.hooks._vlm import Vlm

BUDGET: Final = 2**28  # bytes that the cells of one batch may take on the CPU
SHARE: Final = 0.25  # of the free memory of a GPU, that they may take there
PROOFS: Final = 1  # cells of a prompt that are also run as whole passes, unless as much was proved often before
NEAR: Final = {torch.float32: 1e-5, torch.float64: 1e-9}  # how near these must come, relative; in half precision:
NEAR_HALF: Final = 0.05


class ReplayWarning(UserWarning):
    """A replay did not give what a whole pass gives, and is not used."""


class Replay:
    """The run of one prompt, and what becomes of its answer when some of its activations are others.

    Equal to `patch` and `knockout` around a whole forward pass, but for rounding: a cell is run from the layer of its
    first edit on, for the tokens from its first position on (from the start of its block, where tokens see one
    another), side by side with others that begin at about the same token. Edits before the decoder are run as whole
    passes.

    Attributes:
        base: the score of the unpatched run.
        recording: that run.
        exact: whether cells are replayed; False once one was not what a whole pass gave, and a `ReplayWarning` said so.
    """

    def __init__(
        self,
        vlm: Vlm,
        batch: Batch,
        *,
        rival: Int[Tensor, " tokens"] | None = None,
        sites: Iterable[str] = (),
        proofs: int = PROOFS,
    ) -> None:
        require_here(vlm.engine, "replay")
        if vlm.wiring.taps.places:
            raise RunError("a replay cannot begin inside a capture or a patch; it records the unpatched run")
        if "answer" not in batch.span_names:
            raise SpanError("a replay needs an answer to look at; encode(..., answers=[...])")
        self.vlm, self.batch, self.exact = vlm, batch, True
        self._answer: Int[Tensor, " tokens"] = batch.positions("answer")[0]
        self.recording = Recording(vlm, batch, upto=int(self._answer.max()) - 1, sites=sites)
        self._targets = batch.inputs["input_ids"][0, self._answer.to(batch.inputs["input_ids"].device)]
        self._rivals = None if rival is None else _beside(rival, len(self._targets))
        self._proofs = proofs
        self._proved: set[frozenset[str]] = set()
        self._shapes: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._crossed = {k for k, layer in enumerate(vlm.anatomy.layers) if layer.crossed}
        with torch.inference_mode():
            streams = self.recording.posts[-1][:, self._answer.to(self.recording.posts[-1].device) - 1]
            self._unpatched = vlm.unembed(streams)
            self.base = self._rate(self._unpatched)

    @property
    def held(self) -> Activations:
        """What was captured of the unpatched run."""
        return self.recording.held

    def score(self, cells: Sequence[Cell], *, budget: int | None = None) -> Score:
        """Rate the answer under every cell: one edit or cut, or several at once; the score's fields are (cells,).

        Some of the cells are run as whole passes, too, the first time; if one differs, all are run so. `budget`: bytes
        that the cells of one batch may take; planned, if not given.
        """
        if not len(cells):
            raise RunError("there is no cell to run")
        order: list[int] = []
        found: list[Score] = []
        for numbers, logits in self.logits(cells, budget=budget):
            with torch.inference_mode():
                found.append(self._rate(logits))
            order += numbers
        return Score.join(found)[torch.tensor(order).argsort()]

    def logits(
        self, cells: Sequence[Cell], *, budget: int | None = None
    ) -> Iterator[tuple[list[int], Float[Tensor, "cells tokens vocab"]]]:
        """The logits of the answer's tokens, some cells at a time: which cells, and theirs."""
        several = [parts_of(cell) for cell in cells]
        for parts in several:
            self.check(parts)
        replayed = [number for number, parts in enumerate(several) if self._can_replay(parts)]
        self._prove([several[number] for number in replayed])
        if self.exact:
            plans = [self._plan(number, several[number]) for number in replayed]
            vain = [number for number, plan in zip(replayed, plans, strict=True) if plan is None]
            if vain:
                yield vain, self._unpatched.expand(len(vain), -1, -1)
            most = max(1, (self._budget() if budget is None else budget) // self._bytes)
            ready = self._localised([plan for plan in plans if plan is not None], most)
            for some in batches(ready, self.recording.stop, most):
                with torch.inference_mode():
                    yield [plan.number for plan in some], self.vlm.unembed(self._run(some))
        held = set(replayed) if self.exact else set()
        for number, parts in enumerate(several):
            if number not in held:
                yield [number], run_whole(self.vlm, self.batch, parts)[None]

    def _rate(self, logits: Float[Tensor, "cells tokens vocab"]) -> Score:
        n, length = logits.shape[:2]
        rows = torch.arange(n, device=logits.device).repeat_interleave(length)
        return Score.of(
            logits.flatten(0, 1),
            self._targets.to(logits.device).repeat(n),
            rows,
            n,
            rivals=None if self._rivals is None else self._rivals.to(logits.device).repeat(n),
            reference=self._unpatched[:, 0].expand(n, -1),
        )

    def check(self, parts: Sequence[Edit | Cut]) -> None:
        """Refuse a cell that no run could do, before anything is run."""
        if not parts:
            raise RunError("a cell needs an edit or a cut")
        for part in parts:
            if isinstance(part, Cut):
                require_editable(self.vlm.attn_implementation)
                check_cut(part, self.batch.width, self.vlm.n_layers)
            else:
                check_edit(part, *self._shape(part.site), self.vlm.n_heads)

    def _shape(self, name: str) -> tuple[int, tuple[int, ...]]:
        """How many tokens a site holds, and their features."""
        if name not in self._shapes:
            site = self.vlm.point(name).site
            if site.kind == "pattern":
                raise SiteError(f"{site} holds weights, no tokens; change it with patch, or cut attention with Cut")
            if site.visual and self.batch.visual is None:
                raise SiteError(f"{site} cannot be edited: the prompt has no image")
            feature = self.vlm.shape(site)[1 if site.visual else 2 :]
            self._shapes[name] = count_tokens(site, self.batch), tuple(map(int, feature))
        return self._shapes[name]

    def _can_replay(self, parts: Sequence[Edit | Cut]) -> bool:
        """Whether all of it is inside the decoder, and no cut in layers that attend to the image from outside."""
        return all(
            not self._crossed & set(part.layers)
            if isinstance(part, Cut)
            else part.at.stack == "lm" and part.at.kind in REPLAYED
            for part in parts
        )

    def _prove(self, several: Sequence[Sequence[Edit | Cut]]) -> None:
        """Run some of the cells both ways, once for each kind; stop replaying, and say so, if they differ."""
        proofs = self.vlm.proofs
        kinds = frozenset(part.at.kind if isinstance(part, Edit) else "cut" for parts in several for part in parts)
        if not (self._proofs and several and self.exact) or kinds in self._proved or not proofs.is_due(kinds):
            return
        self._proved.add(kinds)
        drawn = torch.Generator().manual_seed(proofs.asked[kinds])  # other cells in every prompt
        for number in torch.randperm(len(several), generator=drawn)[: self._proofs].tolist():
            off = self._off(several[number])
            if off <= NEAR.get(self.vlm.dtype, NEAR_HALF) and kinds not in proofs.failed:
                continue
            self.exact = False
            proofs.failed.add(kinds)
            where = ", ".join(
                part.site if isinstance(part, Edit) else f"cut in {part.layers}" for part in several[number]
            )
            warnings.warn(
                f"replay of {self.vlm.name!r} differs from a whole pass, here by {off:.1e} of the log-probability "
                f"({where}); every cell of such sites is run as a whole pass instead, which is slow",
                ReplayWarning,
                stacklevel=4,
            )
            return

    def _off(self, parts: Sequence[Edit | Cut]) -> float:
        """By how much of the log-probability a cell's replay differs from its whole pass."""
        with torch.inference_mode():
            plan, got = self._plan(0, parts), self.base
            if plan is not None:
                got = self._rate(self.vlm.unembed(self._run(self._localised([plan], 1))))
            wanted = self._rate(run_whole(self.vlm, self.batch, parts)[None])
        return float((got.logprob - wanted.logprob).abs() / wanted.logprob.abs().clamp(min=1))

    def _plan(self, number: int, parts: Sequence[Edit | Cut]) -> Plan | None:
        return plan_of(number, parts, self.recording.firsts, self.recording.stop)

    def _localised(self, plans: Sequence[Plan], most: int) -> list[Plan]:
        """Do the first layer of plans that edit or cut inside it, `most` tokens at a time; others stay as they are."""
        ready = [plan for plan in plans if plan.direct]
        waiting: dict[int, list[Inside]] = {}
        for plan in plans:
            if not plan.direct:
                waiting.setdefault(plan.layer, []).append(Inside.of(plan))
        for layer, several in waiting.items():
            for some in portions(several, most):
                ready += self._inside(layer, some)
        return ready

    def _inside(self, layer: int, several: Sequence[Inside]) -> Iterator[Plan]:
        """Run a layer at the tokens that plans edit in it, end to end; gives what is left of the plans."""
        sizes = [len(each.places) for each in several]
        edits: list[Edit] = []
        closed = torch.zeros(1, sum(sizes), self.recording.stop, dtype=torch.bool)
        stop = 0
        for each in several:
            start, stop = stop, stop + len(each.places)
            for edit in each.edits:
                edits.append(replace(edit, positions=start + torch.searchsorted(each.places, edit.positions.cpu())))
            for cut in each.cuts:
                at = start + torch.searchsorted(each.places, cut.queries.cpu())
                closed[0, at[:, None], cut.keys.cpu()] = True
        positions = torch.cat([each.places for each in several])
        with editing(self.vlm, self.batch, [edits], sum(sizes)):
            out = self.recording.inside(layer, positions, closed if closed.any() else None)[0]
        for each, values in zip(several, torch.split(out, sizes), strict=True):
            yield each.done(values)

    def _run(self, plans: Sequence[Plan]) -> Tensor:
        """What the last layer gives for the tokens that the answer is read from, (cells, tokens, d_model).

        The plans are in the order of their layers.
        """
        start, record = min(plan.start for plan in plans), self.recording
        reading = self._answer.to(record.posts[-1].device) - 1
        later = reading >= start
        found = record.posts[-1][:, reading].repeat(len(plans), 1, 1)
        if not later.any():
            return found
        joining = {
            layer: self._entering(layer, start, list(some)) for layer, some in groupby(plans, lambda plan: plan.layer)
        }
        edits = [[replace(edit, positions=edit.positions - start) for edit in plan.rest] for plan in plans]
        with editing(self.vlm, self.batch, edits, record.stop - start):
            found[:, later] = record.go_on(
                start,
                joining,
                reading=reading[later],
                closed=self._closed(plans, start),
                trim=all(edit.at.layer != self.vlm.n_layers - 1 for each in edits for edit in each),
            )
        return found

    def _entering(self, layer: int, start: int, plans: Sequence[Plan]) -> Tensor:
        """What goes into a layer from `start` on for plans that begin there, (cells, tokens, d_model)."""
        record = self.recording
        before = record.streams[layer] if layer < self.vlm.n_layers else record.posts[-1]
        stream = before[:, start : record.stop].repeat(len(plans), 1, 1)
        for row, plan in enumerate(plans):
            for edit in plan.direct:
                values = edit.values.to(stream)
                if edit.at.kind == "resid_post":
                    values = self._added(layer, edit.positions, values)
                stream[row, edit.positions.to(stream.device) - start] = values
        return stream

    def _closed(self, plans: Sequence[Plan], start: int) -> dict[int, Tensor]:
        """What is cut in each layer, (cells, tokens, pos), of the layers in which something is."""
        stop, found = self.recording.stop, {}
        for row, plan in enumerate(plans):
            for cut in plan.cuts:
                for layer in cut.layers:
                    if layer not in found:
                        found[layer] = torch.zeros(len(plans), stop - start, stop, dtype=torch.bool)
                    found[layer][row, cut.queries.cpu()[:, None] - start, cut.keys.cpu()] = True
        return found

    def _added(self, layer: int, positions: Tensor, values: Tensor) -> Tensor:
        """What goes into a layer where the one before gives these values."""
        if layer == self.vlm.n_layers:
            return values
        added = self.recording.added[layer - 1]
        return values if added is None else values + added[0, positions.to(added.device)]

    def _budget(self) -> int:
        """Bytes that the cells of one batch may take."""
        device = self.recording.posts[-1].device
        return int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else BUDGET

    @cached_property
    def _bytes(self) -> int:
        """About what a token of a cell takes in a layer."""
        config = self.vlm.model.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        heads = config.num_attention_heads * self.batch.width
        numbers = 8 * config.hidden_size + 3 * inner + heads
        return int(numbers) * torch.finfo(self.vlm.dtype).bits // 8


def replay(
    vlm: Vlm,
    batch: Batch,
    *,
    rival: Int[Tensor, " tokens"] | None = None,
    sites: Iterable[str] = (),
    proofs: int = PROOFS,
) -> Replay:
    """Record the run of a batch of one prompt with its answer, to see what becomes of the answer in patched runs.

    Args:
        vlm: the model.
        batch: one prompt, encoded with an answer.
        rival: the tokens of another answer, as they would stand after the prompt, for `Score.difference`.
        sites: what is captured of that run as well, for `Replay.held`.
        proofs: how many of the first cells are also run as whole passes; should one differ by more than rounding, a
            `ReplayWarning` says so, and every cell is run as a whole pass.

    Raises `RunError` for several prompts, or inside a capture or patch, `SpanError` without an answer, and `ModelError`
    where the model is on another machine.
    """
    return Replay(vlm, batch, rival=rival, sites=sites, proofs=proofs)


def _beside(rival: Tensor, length: int) -> Tensor:
    """A rival answer's tokens at the places of an answer of some length, -1 beyond its end."""
    found = torch.full((length,), -1, dtype=torch.long)
    found[: len(rival)] = rival[:length]
    return found
