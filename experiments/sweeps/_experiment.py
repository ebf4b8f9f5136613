"""Which run is patched with which, and what that asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Who = tuple[str, str]  # item or partner, and condition
BACK: Final = "backpatch"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Which run is patched with which: (item or partner, condition) of the source and of the target.

    Whatever is patched, the score is that of the *item's* answer.
    """

    name: str
    question: str
    source: Who
    target: Who


EXPERIMENTS: Final = {
    e.name: e
    for e in (
        Experiment(
            name="denoise",
            question="is the item's state here enough to bring its answer into its partner's run?",
            source=("item", "direct"),
            target=("partner", "direct"),
        ),
        Experiment(
            name="noise",
            question="is the item's state here needed for its answer?",
            source=("partner", "direct"),
            target=("item", "direct"),
        ),
        Experiment(
            name="text_noise",
            question="in the text run, up to which layer is the intermediate still read from here?",
            source=("partner", "oracle"),
            target=("item", "oracle"),
        ),
        Experiment(
            name="cross",
            question="does the text run's state, written into the direct run here, restore the answer?",
            source=("item", "oracle"),
            target=("item", "direct"),
        ),
        Experiment(
            name="cross_control",
            question="the same with the partner's state: what any text state does to the answer",
            source=("partner", "oracle"),
            target=("item", "direct"),
        ),
        Experiment(
            name="cross_cascaded",
            question="does the state of the model's own second call, written into the direct run, restore the answer?",
            source=("item", "cascaded"),
            target=("item", "direct"),
        ),
        Experiment(
            name=BACK,
            question="does delivering the direct run's own later state earlier restore the answer?",
            source=("item", "direct"),
            target=("item", "direct"),
        ),
    )
}

# those that the locator weighs
LOCATING: Final = ("denoise", "noise", "text_noise", "cross", "cross_control", BACK)
