"""Where the tokens of a prompt's picture are, under the names that sweeps by token give them."""

from __future__ import annotations

from typing import Final

import pandas as pd

from seamscope.hooks import Batch

from ._overlay import EDGES, _sheets, token_table
from .sweeps._tokens import token_names

COLUMNS: Final = ("span", "token", *EDGES, "sheet")


def token_boxes(batch: Batch) -> pd.DataFrame:
    """List the decoder's image tokens of a batch of one prompt with one picture, and what part of it they show.

    One row for each token that shows a place: `span, token`, as in a sweep by token; its edges `left, top, right,
    bottom` in pixels of the picture; and `sheet`: tokens of one sheet hardly cover each other, as those of an overview
    cover those of its tiles. Empty where the image's tokens are not in the prompt.
    """
    table = token_table(batch)
    shown = table[(table["stack"] == "lm") & table.view.notna()]
    names = token_names(batch)
    sheet = {view: number for number, views in enumerate(_sheets(shown)) for view in views}
    named = [names[position] for position in shown.token]
    spans, tokens = ([name[k] for name in named] for k in (0, 1))
    return shown.assign(span=spans, token=tokens, sheet=shown.view.map(sheet))[list(COLUMNS)].reset_index(drop=True)
