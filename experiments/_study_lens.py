"""How a run reads its layers through a lens, and the tuned lens that is fitted for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from seamscope.hooks import Batch, RunError, Site
from seamscope.probes import LogitLens, TunedLens, fit_tuned_lens, load_tuned_lens

from ._lensing import lens_table, summarise_lens
from ._preflight import check_pairs

if TYPE_CHECKING:
    import pandas as pd

    from ._study import Study

TUNED_LENS: Final = "tuned_lens.safetensors"
ITEMS: Final = 128  # that it is fitted on


def read_layers(study: Study, *, tuned: bool) -> pd.DataFrame:
    """What comes up in the layers of a run's model; `RunError` where none of its sites can be read."""
    asked = study.settings
    check_pairs(study.task, study.items)
    kinds = TunedLens.kinds if tuned else LogitLens.kinds
    parsed = [Site.parse(site) for site in study.sites]
    sites = [str(site) for site in parsed if site.stack == "lm" and site.kind in kinds]
    if not sites:
        raise RunError("there is nothing to read; --sites must name streams of the decoder, as lm.*.resid_post")
    table = lens_table(
        study.vlm,
        study.task,
        study.items,
        lens=tuned_lens(study) if tuned else LogitLens(study.vlm),
        sites=sites,
        spans=asked.spans,
        profile=asked.profile,
        batch_size=asked.batch_size,
        progress=study.progress,
    )
    return summarise_lens(table, seed=asked.seed)


def tuned_lens(study: Study) -> TunedLens:
    """The lens in a run's folder, fitted on items of other seeds than those that are read if there is none.

    Raises `RunError` for a task that has no other items.
    """
    run, vlm = study.run, study.vlm
    if run.has(TUNED_LENS):
        return load_tuned_lens(run.folder / TUNED_LENS, vlm)
    if study.task.size is not None:
        raise RunError("a tuned lens needs items that it is not read on; use a task that makes them, or the logit lens")
    seen, unseen = (_batches(study, count, seed) for count, seed in ((ITEMS, 1), (ITEMS // 4, 2)))
    lens = fit_tuned_lens(vlm, seen, held_out=unseen, seed=study.settings.seed, progress=study.progress)
    lens.save(run.path(TUNED_LENS))
    return lens


def _batches(study: Study, count: int, seed: int) -> list[Batch]:
    asked = study.settings
    items = study.task.items(count, profile_name=asked.profile, seed=asked.seed + seed)
    heard = [item.saying(item.intermediate) for item in items]
    starts = range(0, count, asked.batch_size)
    return [
        study.vlm.encode(heard[start : start + asked.batch_size], condition=name)
        for name in ("direct", "cascaded")
        for start in starts
    ]
