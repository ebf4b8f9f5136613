"""Write edits while layers run that are given some tokens of some cells, not a batch of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor

from seamscope.hooks._batch import Batch
from seamscope.hooks._patch import Patch, patch
from seamscope.hooks._ragged import Ragged

if TYPE_CHECKING:
    from seamscope.hooks._cells import Edit
    from seamscope.hooks._vlm import Vlm

EDITED: Final = "edited"  # the span of the edited tokens


@contextmanager
def editing(vlm: Vlm, prompt: Batch, rows: Sequence[Sequence[Edit]], width: int) -> Iterator[None]:
    """Let the layers write the edits of each row that they are given, whose positions are numbers of its tokens."""
    sites = dict.fromkeys(edit.site for edits in rows for edit in edits)
    folded = {site: [_fold([edit for edit in edits if edit.site == site]) for edits in rows] for site in sites}
    batch = _standing_for(prompt, folded, len(rows), width)
    with patch(vlm, [_patch(site, several) for site, several in folded.items()]), vlm.wiring.running(batch):
        yield


class _Folded(NamedTuple):
    """All edits of a site in one row as one: each position once, its values, and which heads of it are edited.

    `edited` is (positions, heads), or (positions, 1) where all heads are, or the site has none.
    """

    positions: Tensor
    values: Tensor | None
    edited: Tensor


def _fold(edits: Sequence[Edit]) -> _Folded:
    """Where several edits write the same, the last counts, as if they were made one after the other."""
    if not edits:
        return _Folded(torch.zeros(0, dtype=torch.long), None, torch.zeros(0, 1, dtype=torch.bool))
    values = torch.cat([edit.values for edit in edits])
    written = _written(edits, 1 if all(edit.heads is None for edit in edits) else values.shape[1])
    positions, place = torch.cat([edit.positions.cpu() for edit in edits]).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    order = torch.where(written, torch.arange(len(written))[:, None], -1)
    last = order.new_full((len(positions), written.shape[1]), -1)
    last.scatter_reduce_(0, place[:, None].expand_as(order), order, "amax")
    kept = last.clamp(min=0).to(values.device)
    if written.shape[1] > 1:
        return _Folded(positions, values[kept, torch.arange(written.shape[1], device=values.device)], last >= 0)
    return _Folded(positions, values[kept[:, 0]], last >= 0)


def _written(edits: Sequence[Edit], n_heads: int) -> Tensor:
    """Which heads each edit writes of each of its tokens, end to end, (tokens, heads)."""
    found = torch.zeros(sum(len(edit.positions) for edit in edits), n_heads, dtype=torch.bool)
    stop = 0
    for edit in edits:
        start, stop = stop, stop + len(edit.positions)
        found[start:stop, slice(None) if edit.heads is None else list(edit.heads)] = True
    return found


def _standing_for(prompt: Batch, folded: Mapping[str, Sequence[_Folded]], n_rows: int, width: int) -> Batch:
    """A batch of as many rows as the layers are given; its spans are the edited tokens."""
    return Batch(
        inputs={"input_ids": torch.zeros(n_rows, width, dtype=torch.long)},
        extra={},
        spans=tuple({f"{EDITED} {site}": rows[k].positions for site, rows in folded.items()} for k in range(n_rows)),
        ids=tuple(f"{prompt.ids[0]}/{k}" for k in range(n_rows)),
        texts=("",) * n_rows,
        condition=prompt.condition,
        padding=prompt.padding,
        visual=None,
    )


def _patch(site: str, rows: Sequence[_Folded]) -> Patch:
    """The new values of a site, row by row, of all heads or of some."""
    held = [row for row in rows if row.values is not None]
    new = Ragged.from_list([held[0].values[:0] if row.values is None else row.values for row in rows])  # type: ignore[index]
    span, n_heads = f"{EDITED} {site}", max(row.edited.shape[1] for row in held)
    if n_heads == 1:
        return Patch(site, new, span=span)
    edited = torch.cat([row.edited.expand(-1, n_heads) for row in rows])[..., None]
    return Patch(site, lambda there: torch.where(edited.to(there.device), new.values.to(there), there), span=span)
