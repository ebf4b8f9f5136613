"""Write edits while layers run that are given some tokens of some cells, not a batch of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

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
    sites = list(dict.fromkeys(edit.site for edits in rows for edit in edits))
    batch = _standing_for(prompt, rows, width, sites)
    with patch(vlm, [_patch(rows, site) for site in sites]), vlm.wiring.running(batch):
        yield


def _standing_for(prompt: Batch, rows: Sequence[Sequence[Edit]], width: int, sites: Sequence[str]) -> Batch:
    """A batch of as many rows as the layers are given; its spans are the edited tokens."""
    nothing = torch.zeros(0, dtype=torch.long)
    spans = tuple(
        {
            f"{EDITED} {site}": torch.cat([nothing, *(edit.positions.cpu() for edit in edits if edit.site == site)])
            for site in sites
        }
        for edits in rows
    )
    return Batch(
        inputs={"input_ids": torch.zeros(len(rows), width, dtype=torch.long)},
        extra={},
        spans=spans,
        ids=tuple(f"{prompt.ids[0]}/{k}" for k in range(len(rows))),
        texts=("",) * len(rows),
        condition=prompt.condition,
        padding=prompt.padding,
        visual=None,
    )


def _patch(rows: Sequence[Sequence[Edit]], site: str) -> Patch:
    """The new values of a site, row by row, of all heads or of some."""
    edits = [[edit for edit in several if edit.site == site] for several in rows]
    flat = [edit for several in edits for edit in several]
    empty = flat[0].values[:0]
    new = Ragged.from_list([torch.cat([empty, *(edit.values for edit in several)]) for several in edits])
    span = f"{EDITED} {site}"
    if all(edit.heads is None for edit in flat):
        return Patch(site, new, span=span)
    edited = _heads(flat, new.values.shape[1])
    return Patch(site, lambda there: torch.where(edited.to(there.device), new.values.to(there), there), span=span)


def _heads(edits: Sequence[Edit], n_heads: int) -> Tensor:
    """Which heads of each token are edited, (tokens, heads, 1)."""
    found = torch.zeros(sum(len(edit.positions) for edit in edits), n_heads, 1, dtype=torch.bool)
    stop = 0
    for edit in edits:
        start, stop = stop, stop + len(edit.positions)
        found[start:stop, slice(None) if edit.heads is None else list(edit.heads)] = True
    return found
