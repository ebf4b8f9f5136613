"""Patch many cells of one prompt, each for a fraction of a forward pass, and see what becomes of the answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from seamscope.hooks._attention import require_editable
from seamscope.hooks._batch import Batch
from seamscope.hooks._cells import (
    REPLAYED,
    Cell,
    Cut,
    Edit,
    Plan,
    batches,
    check_cut,
    check_edit,
    parts_of,
    plan_of,
    values_of,
)
from seamscope.hooks._engine import require_here
from seamscope.hooks._errors import RunError, SiteError, SpanError
from seamscope.hooks._patch import Patch, patch
from seamscope.hooks._recording import Recording
from seamscope.hooks._score import Score
from seamscope.hooks._select import count_tokens
from seamscope.hooks._site import Site
from seamscope.hooks._whole import run_whole

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from seamscope.hooks._vlm import Vlm

BUDGET: Final = 2**28  # bytes that the cells of one batch may take
PROOFS: Final = 2  # cells of a prompt that are also run as whole passes
NEAR: Final = {torch.float32: 1e-5, torch.float64: 1e-9}  # how near these must come, relative; in half precision:
NEAR_HALF: Final = 0.05
EDITED: Final = "edited"  # the span of the edited tokens


class ReplayWarning(UserWarning):
    """A replay did not give what a whole pass gives, and is not used."""


class Replay:
    """The run of one prompt, and what becomes of its answer when some of its activations are others.

    Equal to `patch` and `knockout` around a whole forward pass, but for rounding: a cell is run from the layer of its
    first edit on, for the tokens from its first position on (from the start of its block, where tokens see one
    another), side by side with others that begin at the same layer. Edits before the decoder are run as whole passes.

    Attributes:
        base: the score of the unpatched run.
        exact: whether cells are replayed; False once one was not what a whole pass gave, and a `ReplayWarning` said so.
    """

    def __init__(
        self, vlm: Vlm, batch: Batch, *, rival: Int[Tensor, " tokens"] | None = None, proofs: int = PROOFS
    ) -> None:
        require_here(vlm.engine, "replay")
        if vlm.wiring.taps.places:
            raise RunError("a replay cannot begin inside a capture or a patch; it records the unpatched run")
        if "answer" not in batch.span_names:
            raise SpanError("a replay needs an answer to look at; encode(..., answers=[...])")
        self.vlm, self.batch, self.exact = vlm, batch, True
        self._recording = Recording(vlm, batch)
        self._answer: Int[Tensor, " tokens"] = batch.positions("answer")[0]
        self._targets = batch.inputs["input_ids"][0, self._answer.to(batch.inputs["input_ids"].device)]
        self._rivals = None if rival is None else _beside(rival, len(self._targets))
        self._proofs = proofs
        self._shapes: dict[str, tuple[int, tuple[int, ...]]] = {}
        self._crossed = {k for k, layer in enumerate(vlm.anatomy.layers) if layer.crossed}
        with torch.inference_mode():
            streams = self._recording.posts[-1][:, self._answer.to(self._recording.posts[-1].device) - 1]
            logits = vlm.unembed(streams)
            self._reference = logits[0, :1]
            self.base = self._rate(logits)

    def score(self, cells: Sequence[Cell], *, budget: int = BUDGET) -> Score:
        """Rate the answer under every cell: one edit or cut, or several at once; the score's fields are (cells,).

        Some of the cells are run as whole passes, too, the first time; if one differs, all are run so.
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
        self, cells: Sequence[Cell], *, budget: int = BUDGET
    ) -> Iterator[tuple[list[int], Float[Tensor, "cells tokens vocab"]]]:
        """The logits of the answer's tokens, some cells at a time: which cells, and theirs."""
        several = [parts_of(cell) for cell in cells]
        for parts in several:
            self._check(parts)
        replayed = [number for number, parts in enumerate(several) if self._can_replay(parts)]
        self._prove([several[number] for number in replayed])
        if self.exact:
            plans = [plan_of(number, several[number], self._recording.firsts) for number in replayed]
            for some in batches(plans, self.batch.width, budget // self._bytes):
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
            reference=self._reference.expand(n, -1),
        )

    def _check(self, parts: Sequence[Edit | Cut]) -> None:
        """Refuse what no run could do, before anything is run."""
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
            else part.site.startswith("lm.") and Site.parse(part.site).kind in REPLAYED
            for part in parts
        )

    def _prove(self, several: Sequence[Sequence[Edit | Cut]]) -> None:
        """Run some of the cells both ways, once; stop replaying, and say so, if they differ."""
        if not (self._proofs and several and self.exact):
            return
        picked = torch.randperm(len(several), generator=torch.Generator().manual_seed(0))[: self._proofs].tolist()
        self._proofs = 0
        near = NEAR.get(self.vlm.dtype, NEAR_HALF)
        for parts in (several[number] for number in picked):
            with torch.inference_mode():
                plan = plan_of(0, parts, self._recording.firsts)
                got = self._rate(self.vlm.unembed(self._run([plan])))
                wanted = self._rate(run_whole(self.vlm, self.batch, parts)[None])
            off = float((got.logprob - wanted.logprob).abs() / wanted.logprob.abs().clamp(min=1))
            if not off <= near:
                self.exact = False
                where = ", ".join(part.site if isinstance(part, Edit) else f"cut in {part.layers}" for part in parts)
                warnings.warn(
                    f"replay of {self.vlm.name!r} differs from a whole pass by {off:.1e} of the log-probability "
                    f"({where}); every cell of this prompt is run as a whole pass instead, which is slow",
                    ReplayWarning,
                    stacklevel=4,
                )
                return

    def _run(self, plans: Sequence[Plan]) -> Tensor:
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
        reading = self._answer.to(record.posts[-1].device) - 1
        later = reading >= start
        found = record.posts[-1][:, reading].repeat(n, 1, 1)
        if not later.any():
            return found
        batch = self._sub(plans, start, sites)
        patches = [self._patch(plans, site) for site in sites]
        with patch(self.vlm, patches), self.vlm.wiring.running(batch):
            found[:, later] = record.go_on(
                layer,
                start,
                stream,
                reading=reading[later],
                closed=self._closed(plans, start),
                trim=not any(Site.parse(site).layer == self.vlm.n_layers - 1 for site in sites),
            )
        return found

    def _patch(self, plans: Sequence[Plan], site: str) -> Patch:
        new, edited = values_of(plans, site)
        span = f"{EDITED} {site}"
        if edited is None:
            return Patch(site, new, span=span)

        def write(there: Tensor) -> Tensor:
            return torch.where(edited.to(there.device), new.values.to(there), there)

        return Patch(site, write, span=span)

    def _closed(self, plans: Sequence[Plan], start: int) -> dict[int, Tensor]:
        """What is cut in each layer, (cells, tokens, pos), of the layers in which something is."""
        width, found = self.batch.width, {}
        for row, plan in enumerate(plans):
            for cut in plan.cuts:
                for layer in cut.layers:
                    if layer not in found:
                        found[layer] = torch.zeros(len(plans), width - start, width, dtype=torch.bool)
                    found[layer][row, cut.queries.cpu()[:, None] - start, cut.keys.cpu()] = True
        return found

    def _entering(self, layer: int, positions: Tensor, values: Tensor) -> Tensor:
        """What goes into a layer where the one before gives these values."""
        if layer == self.vlm.n_layers:
            return values
        added = self._recording.added[layer - 1]
        return values if added is None else values + added[0, positions.to(added.device)]

    def _sub(self, plans: Sequence[Plan], start: int, sites: Sequence[str]) -> Batch:
        """A batch that stands for the tokens from `start` on of all cells; its spans are the edited tokens."""
        width = self.batch.width - start
        nothing = torch.zeros(0, dtype=torch.long)

        def edited(plan: Plan, site: str) -> Tensor:
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


def replay(vlm: Vlm, batch: Batch, *, rival: Int[Tensor, " tokens"] | None = None, proofs: int = PROOFS) -> Replay:
    """Record the run of a batch of one prompt with its answer, to see what becomes of the answer in patched runs.

    Args:
        vlm: the model.
        batch: one prompt, encoded with an answer.
        rival: the tokens of another answer, as they would stand after the prompt, for `Score.difference`.
        proofs: how many of the first cells are also run as whole passes; should one differ by more than rounding, a
            `ReplayWarning` says so, and every cell is run as a whole pass.

    Raises `RunError` for several prompts, or inside a capture or patch, `SpanError` without an answer, and `ModelError`
    where the model is on another machine.
    """
    return Replay(vlm, batch, rival=rival, proofs=proofs)


def _beside(rival: Tensor, length: int) -> Tensor:
    """A rival answer's tokens at the places of an answer of some length, -1 beyond its end."""
    found = torch.full((length,), -1, dtype=torch.long)
    found[: len(rival)] = rival[:length]
    return found
