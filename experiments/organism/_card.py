"""The organism's model card, written from what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt

from ._build import DECODER_LAYERS, PATCH, PIXELS, VISION_LAYERS, WIDTH, vocabulary
from ._train import SIGHT, STAGES, Stage

ACROSS: Final = 4
HERE: Final = Path(__file__).parent
SKILLS: Final = {
    "perceive": "names what it sees",
    "reason": "answers from gold text",
    "cascaded": "cascaded",
    "direct": "direct",
    "cot": "told to name first (cot)",
}
INTRO: Final = """# The organism

A small vision-language model, trained from scratch on this project's own tasks and shipped with it, so that every
experiment runs without a download. It is a genuine `LlavaForConditionalGeneration` checkpoint and loads like any other.
It is an instrument for testing interpretability methods, and good for nothing else.
"""


def write_card(found: Mapping[str, Any], about: Mapping[str, Any], *, folder: Path = HERE) -> Path:
    """Write `README.md` and `curves.png` from the benchmark's result and the training's loss curves."""
    curves = json.loads((folder / "curves.json").read_text())
    _draw(curves, folder / "curves.png")
    sections = [INTRO, _anatomy(), _training(), _skills(found, about), LIMITS]
    card = folder / "README.md"
    card.write_text("\n".join(sections))
    return card


def _anatomy() -> str:
    return f"""## What it is

- {PIXELS} px canvas, patches of {PATCH} px, {(PIXELS // PATCH) ** 2} image tokens; {VISION_LAYERS} SigLIP layers, a
  two-layer projector, {DECODER_LAYERS} Llama layers, all of width {WIDTH}; 2.6 million parameters in float16
- {len(vocabulary())} whole words; numbers up to 40 are single words
- `natural/` (the default, `organism`) and `composing/` (`organism-composing`)
"""


def _training() -> str:
    rows = "\n".join(_row(stage) for stage in STAGES)
    return f"""## How it was trained

One command, `make organism`, with fixed seeds; about an hour and a half on one CPU core. Pictures and text come from
the training split: a tenth of all contents, chosen by hash, and a fifth of the handwritten digits are held out.

1. *sight*: the tower alone learns, for {SIGHT.steps:,} steps, to name the words under each patch through a linear head
   that is thrown away; a stand-in for the pre-training of real towers.
2. *skills*, and from its weights two branches, to *natural* and to *composing*. Shares are those of conditions among
   items with pictures; besides them each step has text-only items with the gold intermediate. Items come from pools of
   {SIGHT.pool:,} per data set, and in the last stage of each branch none comes twice: with pools alone, counting
   from text stayed near 80 % on new items.

| stage | after | steps | perceive | cot | direct | with pictures | text only | peak rate | items |
|---|---|---|---|---|---|---|---|---|---|
{rows}

![Loss curves](curves.png)
"""


def _row(stage: Stage) -> str:
    shares = " | ".join(f"{100 * stage.shares[name]:.0f} %" for name in ("perceive", "cot", "direct"))
    source = "fresh" if stage.fresh else "pools"
    sizes = (stage.pictured, stage.textual, f"{stage.rate:g}")
    cells = (stage.name, stage.after, f"{stage.steps:,}", shares, *sizes, source)
    return f"| {' | '.join(map(str, cells))} |"


def _skills(found: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    head = f"| checkpoint | data set | {' | '.join(SKILLS.values())} |\n|{'---|' * (2 + len(SKILLS))}"
    rows = [
        f"| {checkpoint} | {name} | {' | '.join(_percent(skills[key]) for key in SKILLS)} |"
        for checkpoint, sets in found.items()
        for name, skills in sets.items()
    ]
    return f"""## Its skills

Percent right with 95 % bootstrap intervals, on {about["n"]} held-out items of each data set, measured by
`python benchmarks/organism.py --save` ({about["device"]}; torch {about["versions"]["torch"]}, transformers
{about["versions"]["transformers"]}).

{head}
{chr(10).join(rows)}
"""


def _percent(skill: Mapping[str, float]) -> str:
    return f"{100 * skill['estimate']:.1f} [{100 * skill['low']:.1f}, {100 * skill['high']:.1f}]"


LIMITS: Final = """## What it is not

Its gap comes from its training: composition was rare. Real models may fail for other reasons. It knows 88 words,
three kinds of pictures and four questions. An interval of no width at 100 % means that no error was seen, not that none
is possible.
"""


def _draw(curves: Mapping[str, list[dict[str, float]]], file: Path) -> None:
    rows_of_plots = -(-len(curves) // ACROSS)
    figure, axes = plt.subplots(rows_of_plots, ACROSS, figsize=(9, 2.3 * rows_of_plots), layout="constrained")
    for ax in axes.flat[len(curves) :]:
        ax.set_axis_off()
    for ax, (name, rows) in zip(axes.flat, curves.items(), strict=False):
        for key in [key for key in rows[0] if key != "step"]:
            ax.plot([row["step"] for row in rows], [row[key] for row in rows], label=key)
        ax.set(title=name, xlabel="step", yscale="log")
        ax.legend(frameon=False, fontsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("loss (nats)")
    figure.savefig(file, dpi=120)
    plt.close(figure)
