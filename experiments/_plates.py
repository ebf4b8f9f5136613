"""The figures of a study, with their captions, saved beside its report."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import figures
from ._report import Plate
from ._verdict import Verdict


def main_family(probes: pd.DataFrame) -> str | None:
    """The variable family that figures show: the first that describes objects, such as `card.*.rank`."""
    for target in probes.target:
        family = re.sub(r"(?<=\.)\d+(?=\.|$)", "*", target)
        if "*" in family:
            return family
    return None


@dataclass(frozen=True, kw_only=True)
class _Draft:
    name: str
    draw: Callable[[], Axes | Figure]
    data: pd.DataFrame | Mapping[str, pd.DataFrame]
    caption: str
    alt: str
    section: str


def draw_plates(
    folder: Path, *, gap: pd.DataFrame, probes: pd.DataFrame, effects: pd.DataFrame, verdict: Verdict
) -> list[Plate]:
    """Draw and save every figure whose tables hold what it needs (PDF, PNG, CSV)."""
    drafts = [_gap(gap), *_probes(probes, effects, verdict), *_patches(effects)]
    return [save_plate(folder, draft) for draft in drafts]


def save_plate(folder: Path, draft: _Draft) -> Plate:
    """Draw one figure, save it, and close it."""
    drawn = draft.draw()
    try:
        saved = figures.save(drawn, folder, draft.name, data=draft.data)
    finally:
        plt.close(drawn if isinstance(drawn, Figure) else drawn.figure)
    return Plate(saved=saved, caption=draft.caption, alt=draft.alt, section=draft.section)


def _gap(gap: pd.DataFrame) -> _Draft:
    return _Draft(
        name="gap",
        draw=lambda: figures.gap_bars(gap),
        data=gap,
        caption="Accuracy under each condition, with 95 % intervals. Filled: all items; open: items whose two "
        "steps both pass alone. The bracket is the composition gap, cascaded − direct.",
        alt="Bars of accuracy by data set and condition",
        section="gap",
    )


def _probes(probes: pd.DataFrame, effects: pd.DataFrame, verdict: Verdict) -> list[_Draft]:
    family = main_family(probes)
    drafts = [
        _Draft(
            name="probes",
            draw=lambda: figures.probe_panels(probes, target=family),
            data=probes,
            caption=f"Held-out accuracy of linear probes for {family} over depth, direct beside cascaded, with "
            "95 % bands; chance, the control task, shuffled labels and the untrained model below. This is what "
            "is there, not what is used.",
            alt="Curves of probe accuracy by layer and place",
            section="path",
        )
    ]
    if "denoise" in set(effects.experiment):
        drafts.insert(
            0,
            _Draft(
                name="path",
                draw=lambda: figures.summary_path(probes, effects, verdict, target=family),
                data={"probes": probes, "effects": effects},
                caption="The path of the intermediate. Shading: what probes read above chance. Black line: what "
                "patching that place alone moves. Box: the locus of the verdict.",
                alt="Map of places by depth with the locus marked",
                section="path",
            ),
        )
    return drafts


def _patches(effects: pd.DataFrame) -> list[_Draft]:
    held = set(effects.experiment)
    drafts = [_heatmap(effects, name) for name in ("denoise", "noise", "text_noise") if name in held]
    if {"cross", "cross_control"} <= held:
        drafts.append(
            _Draft(
                name="cross",
                draw=lambda: figures.cross_curves(effects),
                data=effects[effects.experiment.isin(["cross", "cross_control"])],
                caption="Answers that come right when the text run's state is written into the direct run, by "
                "layer and place. Dashed: the same with the partner's text run.",
                alt="Curves of restored answers by layer",
                section="patching",
            )
        )
    back = effects[effects.experiment == "backpatch"]
    drafts += [_back(effects, str(span)) for span in dict.fromkeys(back.span)]
    return drafts


HEATMAPS: Mapping[str, str] = {
    "denoise": "Bringing the item's state into its partner's direct run: the rise of the item's answer.",
    "noise": "Bringing the partner's state into the item's direct run: the fall of the item's answer.",
    "text_noise": "The same in the text run: up to which layer the intermediate is read where it stands.",
}


def _heatmap(effects: pd.DataFrame, experiment: str) -> _Draft:
    def draw() -> Axes:
        return figures.patch_heatmap(effects, experiment=experiment)

    return _Draft(
        name=f"patch_{experiment}",
        draw=draw,
        data=effects[effects.experiment == experiment],
        caption=f"{HEATMAPS[experiment]} Hatched: the 95 % interval holds no effect.",
        alt=f"Heat map of {experiment} effects by layer and span",
        section="patching",
    )


def _back(effects: pd.DataFrame, span: str) -> _Draft:
    def draw() -> Any:
        return figures.backpatch_matrix(effects, span=span)

    return _Draft(
        name=f"backpatch_{span}",
        draw=draw,
        data=effects[(effects.experiment == "backpatch") & (effects.span == span)],
        caption=f"Back-patching at {span}: answers right when a later layer's own state is written into an "
        "earlier one. Hatched: no different from the unpatched run.",
        alt=f"Matrix of back-patching by source and target layer at {span}",
        section="patching",
    )
