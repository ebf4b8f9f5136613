"""Which tokens of a row belong to which span, from token ids, character offsets and boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seamscope.hooks._boxes import box_cells
from seamscope.hooks._errors import SpanError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Int
    from torch import Tensor

    from seamscope.hooks._families import Visual
    from seamscope.hooks._frame import Framed, Mark
    from seamscope.hooks._prompt import Picture

    Offsets = Int[np.ndarray, "pos 2"]
    Held = Bool[np.ndarray, " pos"]


def text_spans(
    framed: Framed, *, offsets: Offsets, is_image: Held, real: Held, placeholder: str, name: str
) -> dict[str, Tensor]:
    """Find the spans of one row that its text gives: the segments', `prompt`, `last`, `answer`, `image`.

    `offsets` are the tokenizer's character ranges in the text with every image placeholder repeated,
    `is_image` and `real` mark image tokens and tokens that are no padding. A token belongs to a mark if its
    characters other than white space overlap it. Spans without tokens are left out.
    """
    ranges = _trimmed(framed.text, _unrepeated(framed.text, offsets, is_image, placeholder, name))
    textual = real & ~is_image & (offsets[:, 1] > offsets[:, 0])
    held: dict[str, Held] = {"image": is_image & real}
    for mark in framed.marks:
        inside = textual & (ranges[:, 0] < mark.stop) & (ranges[:, 1] > mark.start)
        held[mark.name] = held.get(mark.name, np.False_) | inside
    first = _first_answer(framed.marks, held, ranges, real, name)
    held["prompt"] = real & (np.arange(len(real)) < first)
    held["last"] = np.arange(len(real)) == first - 1
    return {span: torch.from_numpy(np.flatnonzero(where)) for span, where in held.items() if where.any()}


def object_spans(
    pictures: Sequence[Picture],
    image: Tensor,
    *,
    visual: Visual,
    processor: Any,
    pixels: tuple[int, int],
) -> Iterator[tuple[str, Tensor]]:
    """Find `image.object.k` of one row; k counts the boxes of all its pictures, in order.

    `image` are the positions of the row's image tokens, `pixels` the (height, width) of processed images.
    """
    k = 0
    for picture, tokens in zip(pictures, torch.split(image, visual.tokens), strict=True):
        for box in picture.boxes:
            size = picture.image.size
            cells = box_cells(processor, box, size=size, pixels=pixels, visual=visual)
            own = [i for cell in cells if 0 <= (i := cell + visual.prefix - visual.dropped) < visual.tokens]
            if own:
                yield f"image.object.{k}", tokens[own]
            k += 1


def _unrepeated(text: str, offsets: Offsets, is_image: Held, placeholder: str, name: str) -> Offsets:
    """Move offsets from the text with repeated placeholders to `text`; image tokens' are void then."""
    starts = _occurrences(text, placeholder)
    if not starts:
        return offsets
    repeats, rest = divmod(int(is_image.sum()), len(starts))
    grown = (repeats - 1) * len(placeholder) * np.arange(len(starts) + 1)
    begins = np.asarray(starts) + grown[:-1]
    found = offsets[is_image][:: max(repeats, 1)]
    if rest or not repeats or np.any((found[:, 0] > begins) | (found[:, 1] <= begins)):
        raise SpanError(f"the image tokens of item {name!r} are not where its {len(starts)} placeholders are")
    passed = np.searchsorted(begins, offsets[:, 0], side="right")
    return offsets - grown[passed][:, None]


def _occurrences(text: str, word: str) -> list[int]:
    pieces = np.cumsum([0, *(len(piece) + len(word) for piece in text.split(word)[:-1])])
    return [int(stop) - len(word) for stop in pieces[1:]]


def _trimmed(text: str, ranges: Offsets) -> Offsets:
    """Shrink ranges to what is not white space; ranges of white space alone stay."""
    inked = np.flatnonzero([not char.isspace() for char in text])
    low, high = np.searchsorted(inked, ranges[:, 0]), np.searchsorted(inked, ranges[:, 1])
    some = high > low
    trimmed = ranges.copy()
    trimmed[some, 0], trimmed[some, 1] = inked[low[some]], inked[high[some] - 1] + 1
    return trimmed


def _first_answer(marks: Sequence[Mark], held: dict[str, Held], ranges: Offsets, real: Held, name: str) -> int:
    """Give the position of the first answer token, or without answer the one after the last token."""
    answer = next((mark for mark in marks if mark.name == "answer"), None)
    if answer is None:
        return int(np.flatnonzero(real)[-1]) + 1
    if not held["answer"].any():
        raise SpanError(f"the answer of item {name!r} has no tokens")
    first = int(np.flatnonzero(held["answer"])[0])
    if ranges[first, 0] < answer.start:
        raise SpanError(f"the answer of item {name!r} shares its first token with the end of the prompt")
    return first
