"""Names for the tokens of a prompt that all items share: the span in which a token is, and its number there."""

from __future__ import annotations

import re

from seamscope.hooks import Batch

REST = "template"  # what belongs to no span: the words of the chat template
NESTED = (r"image\.object\.\d+", r"intermediate\.\d+", "image", "intermediate", "question", "answer", "last")


def token_names(batch: Batch) -> list[tuple[str, int]]:
    """For every position of a batch's only row, the innermost span that holds it, and the token's number in that."""
    spans = batch.spans[0]
    names = [REST] * batch.width
    for pattern in reversed(NESTED):
        for name in spans:
            if re.fullmatch(pattern, name):
                for position in spans[name].tolist():
                    names[position] = name
    counts: dict[str, int] = {}
    found = []
    for name in names:
        found.append((name, counts.get(name, 0)))
        counts[name] = found[-1][1] + 1
    return found
