"""The figures of a study, saved beside its report: every one for which there are tables."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pandas as pd

from . import figures
from ._plate import Draft, Plate, Tables, Words
from ._plates_forms import lens_drafts, transfer_drafts
from ._plates_locator import LOCATED, locator_drafts
from ._plates_patch import Shown, patch_plate_drafts
from ._plates_probes import path_draft, probe_drafts
from ._plates_use import causal_drafts, patch_drafts
from ._report_views import number
from ._verdict import Verdict
from .figures._gap import ALL

# tables that not every run has
OTHERS: Final = ("curves", "transfer", "lens", "lens.tuned", "decodable_causal", *LOCATED)


def draw_plates(
    folder: Path, tables: Tables, *, verdict: Verdict | None = None, shown: Shown | None = None
) -> list[Plate]:
    """Draw and save every figure whose tables are there (PDF, PNG, CSV)."""
    return [draft.save(folder) for draft in drafts_of(tables, verdict=verdict, shown=shown)]


def drafts_of(tables: Tables, *, verdict: Verdict | None = None, shown: Shown | None = None) -> list[Draft]:
    """The figures whose tables are there; effects by token also on the picture that is `shown`.

    `tables` has the names of a run's tables: `gap, answers, probes, effects`, those of `OTHERS`, and those of sweeps,
    see `patch_plate_drafts`. An empty one counts as none.
    """
    held = {name: table for name, table in tables.items() if not table.empty}
    return [
        *_gap(held),
        *locator_drafts(held, verdict=verdict),
        *([path_draft(held, verdict)] if verdict is not None and _has_path(held) else []),
        *probe_drafts(held),
        *transfer_drafts(held),
        *lens_drafts(held),
        *causal_drafts(held),
        *patch_drafts(held),
        *patch_plate_drafts(held, shown=shown),
    ]


def _has_path(tables: Tables) -> bool:
    return {"probes", "effects"} <= set(tables) and "denoise" in set(tables["effects"].experiment)


def _gap(tables: Tables) -> list[Draft]:
    if "gap" not in tables:
        return []
    gap = tables["gap"]
    words = Words(
        title="The composition gap",
        caption="Bars: the share of items answered right under each condition, with 95 % intervals. Open circles: the "
        "items whose two steps both pass alone. The bracket is the gap, cascaded − direct.",
        controls="the oracle, which is the textual half alone, with the true intermediate; and a chain of thought, in "
        "which the model names the intermediate first, in one call.",
        caveat="where in the model anything is lost. A wrong form of the output makes a gap as well.",
        alt=f"Bars of accuracy by data set and condition. {_spoken(gap)}",
    )
    return [Draft(name="gap", draw=lambda: figures.gap_bars(gap), data=gap, words=words, section="gap")]


def _spoken(gap: pd.DataFrame) -> str:
    rows = gap[gap.subset == ALL].groupby("task", sort=False)
    return " ".join(
        f"{task}: {', '.join(f'{row.condition} {number(row.estimate)}' for row in table.itertuples())}."
        for task, table in rows
    )
