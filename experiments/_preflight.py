"""What must hold before a run begins, so that nothing is written and no model runs for what cannot work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import pandas as pd

from seamscope.hooks import RunError, Site, SpanError, TaskError, Vlm, choose

from ._align import SPAN_SETS
from ._probing import FOLDS, object_of
from .sweeps import BACK, EXPERIMENTS
from .tasks import Item, Task

VISUAL: Final = {"objects", "image"}
FEWEST: Final = 20


def check_span_sets(names: Iterable[str]) -> None:
    """Refuse what is no span set, nor several joined by "+", with `SpanError`."""
    for part in _parts(names):
        choose("span set", part, SPAN_SETS, SpanError)


def check_sites(vlm: Vlm, sites: Iterable[str], spans: Iterable[str]) -> None:
    """Refuse sites that the model has not, and sites of the image without a span that they have."""
    visual = [site for site in vlm.expand(list(sites)) if Site.parse(site).visual]
    if visual and not VISUAL & set(_parts(spans)):
        raise SpanError(
            f"{visual[0]} holds image patches only; add the span set objects or image, or leave such sites out"
        )


def check_pairs(task: Task, items: Sequence[Item]) -> None:
    """Refuse records of the user's own that have no counterfactual partner, with `TaskError`."""
    if task.size is not None:
        for item in items:
            task.partner(item)


def check_probing(items: Sequence[Item]) -> None:
    """Refuse too few items for the folds of the probes, and items without a variable to predict."""
    groups = len({item.group for item in items})
    if groups < FOLDS:
        raise RunError(f"probes are fitted in {FOLDS} folds; {groups} groups of items are too few, raise --n")
    if not any(item.variables for item in items):
        raise TaskError("there is nothing to probe: the records have no field 'variables' (name to label)")


def check_locating(items: Sequence[Item]) -> None:
    """Refuse items whose objects have no known place in the picture, and too few items to tell partners apart."""
    if not all(item.boxes for item in items):
        raise TaskError("to locate, every record needs the field 'boxes': where its objects are in the image")
    if len({item.group for item in items}) < FEWEST:
        raise RunError(f"to locate, at least {FEWEST} items with a partner are needed; raise --n")
    labels = pd.DataFrame([dict(item.variables) for item in items]).nunique()
    if not any(object_of(str(name)) is not None for name in labels[labels > 1].index):
        raise TaskError(
            "to locate, a variable of an object has to differ between records; its name has the object's number, "
            "as in card.0.rank"
        )


def check_divided(experiments: Iterable[str], by: str) -> None:
    """Refuse what cannot be divided: whole spans are written back, and tokens of two prompts have no pair."""
    for plan in (EXPERIMENTS[name] for name in experiments):
        if plan.name == BACK and by != "span":
            raise RunError(f"{BACK} writes whole spans; leave out --by {by}")
        if by == "token" and plan.source[1] != plan.target[1]:
            raise RunError(
                f"{plan.name} patches a {plan.target[1]} run with {plan.source[1]} ones, whose tokens are others; "
                "use --by span or --by object"
            )


def _parts(names: Iterable[str]) -> list[str]:
    return [part for name in names for part in name.split("+")]
