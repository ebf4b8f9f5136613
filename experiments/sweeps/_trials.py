"""From cells to what is changed in one item's run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from seamscope.hooks import Cut, Edit, Ragged, RunError, Site, align, choose

from .._align import aligned, expand
from ._cells import Cell
from ._experiment import Experiment, Who
from ._runs import Runs
from ._tokens import token_names


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """One patched run: what it is called in the table, and what is changed; nothing, where that is known to do nothing.

    `ceiling` is the run with which it is compared, if any.
    """

    labels: dict[str, Any]
    parts: list[Edit | Cut]
    target: Who
    ceiling: Who | None = None


def trials_of(runs: Runs, plan: Experiment, cells: Sequence[Cell], *, by: str, rule: str) -> Iterator[Trial]:
    """The trials of an experiment's cells: whole spans, or every token or head of them by itself.

    Cells of which a run has no tokens are left out; by token, also those of runs of different lengths.
    """
    make = BY[choose("way to divide cells", by, BY, RunError)]
    for cell in cells:
        for labels, parts in make(runs, plan, cell, rule):
            yield Trial(
                labels={
                    "experiment": plan.name,
                    "source_site": cell.source_site,
                    "target_site": cell.target_site,
                    "window": cell.window,
                    "span": cell.span,
                    **labels,
                },
                parts=parts,
                target=plan.target,
                ceiling=plan.source,
            )


Found = Iterator[tuple[dict[str, Any], list[Edit | Cut]]]


def _by_span(runs: Runs, plan: Experiment, cell: Cell, rule: str) -> Found:
    """All tokens of a span set at once, in every layer of the window."""
    edits: list[Edit | Cut] = []
    for source, target in cell.pairs:
        found = edit_of(runs, plan, source, target, pairs_of(runs, plan, cell.span), rule)
        if found is None:
            return
        if not _is_still(runs, plan, found):
            edits.append(found)
    yield {}, edits


def _is_still(runs: Runs, plan: Experiment, edit: Edit) -> bool:
    """Whether an edit writes what is there already."""
    there = runs.values(plan.target, edit.site)
    return there is not None and torch.equal(there[edit.positions.to(there.device)], edit.values)


def pairs_of(runs: Runs, plan: Experiment, span: str) -> list[tuple[str, str]]:
    """The spans of a span set in the source run and in the target run."""
    return aligned(span, plan.source[1], plan.target[1], objects=runs.n_objects)


def edit_of(
    runs: Runs, plan: Experiment, source: str, target: str, pairs: Sequence[tuple[str, str]], rule: str
) -> Edit | None:
    """What writes spans of the source run into those of the target run; None where one of them has no tokens."""
    held = runs.values(plan.source, source)
    positions, values = [], []
    for mine, theirs in pairs:
        own, other = runs.places(plan.source, source, mine), runs.places(plan.target, target, theirs)
        if held is None or own is None or other is None or not len(own) or not len(other):
            return None  # a decoder that attends to the image from outside has no tokens of its objects
        where = f"patch of {target} at {theirs!r}"
        tokens = Ragged.from_list([held[own.to(held.device)]])
        positions.append(other)
        values.append(align(tokens, [len(other)], rule=rule, where=where, ids=[runs.item.id]))
    kept = _latest(torch.cat(positions))
    return Edit(site=target, positions=torch.cat(positions)[kept], values=torch.cat(values)[kept.to(values[0].device)])


def _latest(positions: Tensor) -> Tensor:
    """Numbers of the positions in ascending order, each once; where spans overlap, the later one counts."""
    last = {position: k for k, position in enumerate(positions.tolist())}
    return torch.tensor([last[position] for position in sorted(last)])


def _by_token(runs: Runs, plan: Experiment, cell: Cell, rule: str) -> Found:
    """Every token of a span set by itself; `prompt` is all of them."""
    batch, other = runs.batch(plan.target), runs.batch(plan.source)
    held, there = runs.values(plan.source, cell.source_site), runs.values(plan.target, cell.target_site)
    names = token_names(batch)
    if held is None or there is None or names != token_names(other) or Site.parse(cell.target_site).tokens != "lm":
        return
    still = (held == there).flatten(1).all(1).tolist()
    wanted = None if cell.span == "prompt" else set(expand(cell.span, plan.target[1], objects=runs.n_objects))
    places = torch.arange(batch.width)
    answers = set(batch.spans[0]["answer"].tolist())
    for position, (span, token) in enumerate(names):
        if position in answers if wanted is None else span not in wanted:
            continue
        at = slice(position, position + 1)
        edit = Edit(site=cell.target_site, positions=places[at], values=held[at])
        yield {"span": span, "token": token, "position": position}, [] if still[position] else [edit]


def _by_object(runs: Runs, plan: Experiment, cell: Cell, rule: str) -> Found:
    """Every object by itself, whatever the cell's span set."""
    for number, pair in enumerate(pairs_of(runs, plan, "objects")):
        edit = edit_of(runs, plan, cell.source_site, cell.target_site, [pair], rule)
        if edit is not None:
            yield {"span": f"object.{number}"}, [] if _is_still(runs, plan, edit) else [edit]


def _by_head(runs: Runs, plan: Experiment, cell: Cell, rule: str) -> Found:
    """Every head of a `head_z` by itself, at all tokens of a span set."""
    if Site.parse(cell.target_site).kind != "head_z":
        raise RunError(f"{cell.target_site} has no heads; expected such as lm.*.head_z")
    edit = edit_of(runs, plan, cell.source_site, cell.target_site, pairs_of(runs, plan, cell.span), rule)
    if edit is not None:
        for head in range(runs.vlm.n_heads):
            yield (
                {"head": head},
                [Edit(site=edit.site, positions=edit.positions, values=edit.values, heads=(head,))],
            )


BY: Final[dict[str, Callable[[Runs, Experiment, Cell, str], Found]]] = {
    "span": _by_span,
    "token": _by_token,
    "object": _by_object,
    "head": _by_head,
}
