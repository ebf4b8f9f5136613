"""Does a repair at the place of the loss bring the answers back, and do others not?

Each class of loss has a repair that should work if the verdict is right, made of the model's own states. Where the
intermediate has to be carried past a broken place, a linear map takes it: from where it still is, in direct runs, to
the form that text runs have, fitted on other items. No repair knows the label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from seamscope.hooks import Edit, replay

from ._bridges import Bridges, Floats
from ._sizes import PATCHED

if TYPE_CHECKING:
    from seamscope.hooks import Batch

    from .._study import Study

WORDS: Final = {
    "bridge": "the words' embeddings, told from the tower's states, are written over the objects' tokens",
    "keep": "the image positions keep what they held before the layer",
    "carry": "what text runs hold at the last position is told from the image positions and written there",
    "earlier": "what text runs hold early at the last position is told from the last layer's reading positions",
    "reread": "what text runs hold at the last position is told from the reading positions of the same layer",
}
MENDS: Final = {
    "bridge": "lost_in_projector",
    "keep": "overwritten",
    "carry": "not_routed",
    "earlier": "too_late",
    "reread": "not_used",
}


@dataclass(frozen=True, kw_only=True)
class Spots:
    """Where repairs read and write.

    `tower` and `image` are sites that hold the intermediate, `layer` the one at whose reading positions the text run's
    own state brings the answer.
    """

    tower: str | None
    image: str | None
    layer: int


def _maps(bridges: Bridges, spots: Spots, *, last: int) -> dict[str, dict[str, Floats]]:
    """For each repair, what is to be written at each span, (rows, d); NaN where a row lacks it."""
    target = bridges.pooled("oracle", f"lm.{spots.layer}.resid_post", "last")
    made: dict[str, dict[str, Floats]] = {}
    if spots.tower is not None:
        made["bridge"] = bridges.words(spots.tower)
    if spots.image is not None:
        made["carry"] = {"last": bridges.mapped(bridges.shown(spots.image), target)}
    for name, layer in (("earlier", last), ("reread", spots.layer)):
        made[name] = {"last": bridges.mapped(bridges.read(f"lm.{layer}.resid_post"), target)}
    return made


def mend(study: Study, spots: Spots) -> pd.DataFrame:
    """Try all repairs on the items: `name, group, right, control, base_right`.

    The control writes what is told from the partner's states.
    """
    with study.locating_store() as store:
        bridges = Bridges(store, seed=study.settings.seed)
        maps = _maps(bridges, spots, last=study.vlm.n_layers - 1)
    rows = []
    items = study.items[:PATCHED]
    for item in tqdm(items, desc="repairs", unit="item", disable=not study.progress):
        partner = study.task.partner(item)
        batch = study.vlm.encode([item], condition="direct", answers=[item.answer])
        names, cells = [], []
        for name, spans in maps.items():
            for whose in (item.id, partner.id):
                cells.append(list(_edits(batch, name, spans, bridges.row[whose], spots)))
                names.append(name)
        run = replay(study.vlm, batch)
        right = run.score(cells).greedy.tolist()
        base = bool(run.base.greedy.item())
        rows += [
            {"name": name, "group": item.group, "right": own, "control": other, "base_right": base}
            for name, own, other in zip(names[::2], right[::2], right[1::2], strict=True)
        ]
    return pd.DataFrame(rows, columns=["name", "group", "right", "control", "base_right"])


def _edits(batch: Batch, name: str, spans: dict[str, Floats], row: int, spots: Spots) -> Iterator[Edit]:
    site = "lm.embed" if name == "bridge" else f"lm.{spots.layer}.resid_post"
    for span, told in spans.items():
        positions = batch.spans[0].get(span)
        if positions is None or not len(positions) or np.isnan(told[row]).any():
            continue
        state = torch.from_numpy(told[row]).float()
        yield Edit(site=site, positions=positions, values=state.expand(len(positions), -1))
