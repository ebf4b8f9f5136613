"""Which tokens of a row belong to which piece of its text, from token ids and the tokenizer's character offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from seamscope.hooks._errors import SpanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Int
    from torch import Tensor

    from seamscope.hooks._frame import Framed, Mark

    Offsets = Int[np.ndarray, "tokens 2"]
    Held = Bool[np.ndarray, " pos"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a batch as the processor made it, and its text as the tokenizer alone reads it.

    `ids`, `real` (no padding) and `is_image` have one entry for each position; `plain_ids` and `offsets` (character
    ranges) one for each token of the text in which every picture still is a single placeholder.
    """

    name: str
    ids: Int[np.ndarray, " pos"]
    real: Held
    is_image: Held
    plain_ids: Int[np.ndarray, " tokens"]
    offsets: Offsets


def text_spans(framed: Framed, row: Row) -> dict[str, Tensor]:
    """Find the spans of one row that its text gives: those of its segments, `prompt`, `last`, `answer`.

    What a processor does to a text happens up to its last picture: placeholders grow, tiles get markers, a first token
    is added. What follows is the same, token by token, as the tokenizer alone gives; there the marks are looked up. A
    token belongs to a mark if its characters other than white space overlap it. Spans without tokens are left out.
    """
    positions, ranges = _common_tail(framed, row)
    held: dict[str, Held] = {}
    for mark in framed.marks:
        inside = np.zeros(len(row.ids), dtype=bool)
        inside[positions] = (ranges[:, 0] < mark.stop) & (ranges[:, 1] > mark.start)
        held[mark.name] = held.get(mark.name, np.False_) | inside
    first = _first_answer(framed.marks, held, positions, ranges, row)
    held["prompt"] = row.real & (np.arange(len(row.ids)) < first)
    held["last"] = np.arange(len(row.ids)) == first - 1
    return {span: torch.from_numpy(np.flatnonzero(where)) for span, where in held.items() if where.any()}


def _common_tail(framed: Framed, row: Row) -> tuple[Int[np.ndarray, " tail"], Offsets]:
    """Give the positions of the tokens that row and plain text end with alike, and their trimmed character ranges."""
    positions = np.flatnonzero(row.real)
    n = min(len(positions), len(row.plain_ids))
    differ = np.flatnonzero(row.ids[positions[len(positions) - n :]] != row.plain_ids[len(row.plain_ids) - n :])
    n -= int(differ[-1]) + 1 if len(differ) else 0
    ranges = row.offsets[len(row.offsets) - n :]
    starts = ranges[0, 0] if n else len(framed.text)
    lost = [mark.name for mark in framed.marks if framed.text[mark.start : min(mark.stop, starts)].strip()]
    if lost:
        raise SpanError(f"item {row.name!r}: the processor changes the text of {', '.join(dict.fromkeys(lost))}")
    inked = ranges[:, 1] > ranges[:, 0]
    return positions[len(positions) - n :][inked], _trimmed(framed.text, ranges[inked])


def _trimmed(text: str, ranges: Offsets) -> Offsets:
    """Shrink ranges to what is not white space; ranges of white space alone stay."""
    inked = np.flatnonzero([not char.isspace() for char in text])
    low, high = np.searchsorted(inked, ranges[:, 0]), np.searchsorted(inked, ranges[:, 1])
    some = high > low
    trimmed = ranges.copy()
    trimmed[some, 0], trimmed[some, 1] = inked[low[some]], inked[high[some] - 1] + 1
    return trimmed


def _first_answer(
    marks: Sequence[Mark], held: dict[str, Held], positions: Int[np.ndarray, " tail"], ranges: Offsets, row: Row
) -> int:
    """Give the position of the first answer token, or without answer the one after the last token."""
    answer = next((mark for mark in marks if mark.name == "answer"), None)
    if answer is None:
        return int(np.flatnonzero(row.real)[-1]) + 1
    if not held["answer"].any():
        raise SpanError(f"the answer of item {row.name!r} has no tokens")
    first = int(np.flatnonzero(held["answer"])[0])
    if ranges[np.searchsorted(positions, first), 0] < answer.start:
        raise SpanError(f"the answer of item {row.name!r} shares its first token with the end of the prompt")
    return first
