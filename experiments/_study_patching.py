"""What a run patches and cuts, and with which cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import pandas as pd

from seamscope.hooks import RunError

from ._model import is_small
from ._plates_patch import Shown
from ._preflight import check_pairs
from ._sweeper import Sweeper
from ._token_boxes import token_boxes
from .sweeps import (
    BACK,
    BACK_SPANS,
    LOCATING,
    ROUTES,
    Cell,
    back_cells,
    decoder_sites,
    layer_cells,
    screen,
)

if TYPE_CHECKING:
    from ._study import Study

BOXES: Final = "token_boxes"
WHOLE: Final = {"token": ("prompt",), "object": ("objects",)}  # span sets of cells that are divided


def located(study: Study, name: str) -> pd.DataFrame:
    """All sweeps that the locator weighs, at the run's sites and spans."""
    stream = layer_cells(study.vlm, sites=decoder_sites(study.vlm, study.sites), spans=study.settings.spans)
    return swept(study, name, {each: _back(study) if each == BACK else stream for each in LOCATING})


def patched(study: Study, name: str, experiments: Sequence[str], *, by: str) -> pd.DataFrame:
    """Some experiments at the run's sites, divided some way; `RunError` where there is nothing to patch."""
    sites = [site for site in decoder_sites(study.vlm, study.sites) if by != "head" or site.endswith(".head_z")]
    if not sites and by == "head":
        raise RunError("there are no heads to patch; --sites must name sites such as lm.*.head_z")
    cells = layer_cells(study.vlm, sites=sites, spans=WHOLE.get(by, study.settings.spans))
    if by == "token":
        study.run.derive(BOXES, token_boxes(study.vlm.encode([study.items[0]], condition="direct")))
    rows = swept(study, name, {each: _back(study) if each == BACK else cells for each in experiments}, by=by)
    if rows.empty:
        raise RunError(f"{', '.join(experiments)}: no item has tokens there in both runs, divided by {by}")
    return rows


def swept(study: Study, name: str, cells: Mapping[str, Sequence[Cell]], *, by: str = "span") -> pd.DataFrame:
    """The rows of experiments with their cells, item by item; those of `ROUTES` need none."""
    check_pairs(study.task, study.items)
    if not any(cells.values()) and not set(cells) & set(ROUTES):
        raise RunError("there is nothing to patch; --sites must name sites of the decoder, such as lm.*.resid_post")
    sweeper = Sweeper(study.vlm, study.settings, cells, by=by)
    workers = study.workers if is_small(study.vlm) else 1
    return study.run.in_parts(name, len(study.items), sweeper, workers=workers, progress=study.progress)


def screened(study: Study) -> pd.DataFrame:
    """Every token of the prompt at the run's sites by attribution patching, the strongest measured."""
    check_pairs(study.task, study.items)
    cells = layer_cells(study.vlm, sites=decoder_sites(study.vlm, study.sites), spans=["prompt"])
    asked = study.settings
    return screen(study.vlm, study.task, study.items, cells=cells, seed=asked.seed, progress=study.progress)


def shown(study: Study) -> Shown | None:
    """A picture and where its tokens are, if anything was patched token by token."""
    if not study.run.has(f"{BOXES}.csv"):
        return None
    return Shown(picture=study.items[0].image, boxes=study.run.table(BOXES, pd.DataFrame))


def named(stem: str, experiments: Sequence[str], by: str) -> str:
    """The name of a table of sweeps."""
    return f"{stem}.{'+'.join(experiments)}.{by}"


def _back(study: Study) -> list[Cell]:
    return back_cells(study.vlm, spans=[span for span in BACK_SPANS if span in study.settings.spans])
