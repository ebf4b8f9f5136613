"""What figures of patched runs share: the rows of an experiment, which of them hold nothing, and their colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize

from seamscope.hooks import RunError, choose

from ._mesh import Scale
from ._patch import NOTHING, VALUES
from ._tables import finite, keep, need

SHARED: Final = 0.5  # of the items: a token that fewer of them have is left out


def effect_rows(effects: pd.DataFrame, experiment: str, value: str, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of an experiment; the table must have these columns, and those of the value and its interval."""
    low, high, _ = VALUES[choose("value", value, VALUES, RunError)]
    base = ["base_right"] if value == "right" else []
    rows = need(effects, "effects", ("experiment", *columns, value, low, high, *base))
    return keep(rows, "effects", "experiment", experiment)


def of_most_items(rows: pd.DataFrame) -> pd.DataFrame:
    """Without the cells of tokens that fewer than half of the items have, such as the last ones of a large object."""
    counts = need(rows, "effects", ("n",))["n"]
    kept: pd.DataFrame = rows[counts >= SHARED * counts.max()]
    return kept


def holds_nothing(rows: pd.DataFrame, value: str) -> pd.Series[bool]:
    """Where the interval holds no effect: 0 nats, or the share of the unpatched run."""
    low, high, _ = VALUES[value]
    null = rows.base_right if value == "right" else 0.0
    return (rows[low] <= null) & (null <= rows[high])


def nothing_words(value: str) -> str:
    """What hatching means."""
    return f"95 % interval holds {NOTHING[value]}"


def effect_scale(values: pd.Series[float], value: str) -> Scale:
    """Nats diverge around 0, shares run from 0 to 1."""
    words = VALUES[value][2]
    if value == "right":
        return Scale(colours=colormaps["cividis"], ends=Normalize(0, 1), words=words)
    reach = max(map(abs, finite(values)), default=0.0) or 1.0
    return Scale(colours=colormaps["PuOr"], ends=Normalize(-reach, reach), words=words)
