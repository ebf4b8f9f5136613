"""A patched run of one prompt as a whole pass: what a replay must equal, and what is done where there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from seamscope.hooks._cells import Cut, Edit
from seamscope.hooks._knockout import knockout
from seamscope.hooks._patch import Patch, patch

if TYPE_CHECKING:
    from jaxtyping import Float

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._vlm import Vlm


def run_whole(vlm: Vlm, batch: Batch, parts: Sequence[Edit | Cut]) -> Float[Tensor, "tokens vocab"]:
    """The logits of the answer's tokens in the run of one prompt with some edits and cuts."""
    cuts = [part for part in parts if isinstance(part, Cut)]
    named = {f"cut {k} {side}": getattr(cut, side) for k, cut in enumerate(cuts) for side in ("queries", "keys")}
    batch = replace(batch, spans=({**batch.spans[0], **named},))
    with ExitStack() as stack:
        stack.enter_context(patch(vlm, [Patch(each.site, _writing(each)) for each in parts if isinstance(each, Edit)]))
        for k, cut in enumerate(cuts):
            stack.enter_context(knockout(vlm, queries=f"cut {k} queries", keys=f"cut {k} keys", layers=cut.layers))
        return vlm.answer_logits(batch)[0]


def _writing(edit: Edit) -> Callable[[Tensor], Tensor]:
    return partial(_write, edit=edit)


def _write(value: Tensor, *, edit: Edit) -> Tensor:
    """Put an edit into a site's whole tensor, whose tokens may lie in one dimension or in several."""
    tokens = value.reshape(-1, *edit.values.shape[1:])
    positions, new = edit.positions.to(value.device), edit.values.to(value)
    if edit.heads is None:
        tokens[positions] = new
    else:
        heads = list(edit.heads)
        tokens[positions[:, None], heads] = new[:, heads]
    return tokens.view_as(value)
