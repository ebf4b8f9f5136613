"""What a run erases and pushes: variables that the answer depends on, where they stand and where it is made."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from seamscope.hooks import RunError, TaskError

from ._align import expand
from ._erasing import erase_sweep, push_sweep
from ._erasing_effects import summarise_erasing, summarise_pushes
from ._halves import Sample
from ._preflight import check_pairs, check_probing
from ._probing import object_of

if TYPE_CHECKING:
    from ._study import Study

SPANS: Final = ("objects", "last")
NONE: Final = ["condition", "site", "span", "variable", "effect", "random_effect", "difference", "p", "q"]


def erased(study: Study) -> pd.DataFrame:
    """What erasing each variable does to the answers of direct runs, at the sites of a run.

    Raises `RunError` or `TaskError` where there is nothing to erase, before any model runs.
    """
    return summarise_erasing(erase_sweep(**_asked(study, _sample(study))), seed=study.settings.seed)


def pushed(study: Study) -> pd.DataFrame:
    """What pushing does, of the variables that can be pushed; an empty table where there is none."""
    sample = _sample(study)
    asked = _asked(study, sample)
    asked["variables"] = [name for name in asked["variables"] if _can_be_pushed(sample, name)]
    if not asked["variables"]:
        return pd.DataFrame(columns=NONE)
    return summarise_pushes(push_sweep(**asked), seed=study.settings.seed)


def _sample(study: Study) -> Sample:
    check_pairs(study.task, study.items)
    check_probing(study.items)
    return Sample(study.vlm, study.task, study.items, seed=study.settings.seed)


def _asked(study: Study, sample: Sample) -> dict[str, Any]:
    """What both sweeps are asked for."""
    asked, variables = study.settings, _variables(sample, study.task.needs)
    return {
        "vlm": study.vlm,
        "task": study.task,
        "items": study.items,
        "variables": variables,
        "sites": study.sites,
        "spans": _spans(asked.spans, boxed=_boxed(sample, variables)),
        "seed": asked.seed,
        "batch_size": asked.batch_size,
        "progress": study.progress,
    }


def _variables(sample: Sample, needs: Sequence[str]) -> list[str]:
    """Those that the answer depends on, that every item and partner has, and that have two labels at least."""
    names = dict.fromkeys(name for member in sample.members for name in member.variables)
    needed = {name: set(sample.labels(name)) for name in names if any(fnmatchcase(name, glob) for glob in needs)}
    usable = [name for name, labels in needed.items() if len(labels) > 1 and not labels & {None, ""}]
    if not usable:
        raise TaskError("there is nothing to erase: no variable has a label in every item, and two different ones")
    return usable


def _boxed(sample: Sample, variables: Sequence[str]) -> bool:
    """Whether it is known where the objects of all variables are."""
    count = max(len(member.boxes) for member in sample.members)
    return all((object_of(name) or 0) < count for name in variables)


def _spans(asked: Sequence[str], *, boxed: bool) -> list[str]:
    """Those of `SPANS` that the span sets of a run hold."""
    held = {span for name in asked for span in expand(name, "direct", objects=1)}
    known = [name for name in SPANS if boxed or name != "objects"]
    found = [name for name in known if held.issuperset(expand(name, "direct", objects=1))]
    if not found:
        raise RunError(f"there is nothing to erase; --spans must name {' or '.join(known)}, where variables stand")
    return found


def _can_be_pushed(sample: Sample, variable: str) -> bool:
    """Whether an item's partner has another label, and the other half of the items has both."""
    labels = sample.labels(variable)
    known = [set(labels[sample.half != half]) for half in (0, 1)]
    pairs = zip(labels[: sample.size], labels[sample.size :], sample.half[: sample.size], strict=True)
    return any(own != partner and {own, partner} <= known[half] for own, partner, half in pairs)
