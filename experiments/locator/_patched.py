"""What patches say: is it used, up to which layer, and does holding or giving it bring answers back?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from ..sweeps import SEVERED
from ._asking import layer_of
from ._items import Floats

if TYPE_CHECKING:
    from ._evidence import Findings

NEARLY: Final = 0.8
HALF: Final = 0.5


def needs(found: Findings) -> Floats:
    """The share of the text answer that is lost when the words are exchanged behind each layer."""
    rows = found.asking.needs()
    rows = rows.assign(layer=rows.target_site.map(layer_of), lost=rows.base - rows.patched)
    lost, _ = found.items.align(rows, "lost", places="layer")
    whole = found.items.column(rows.assign(whole=rows.base - rows.ceiling), "whole")
    share: Floats = found.items.mean(lost) / np.maximum(found.items.mean(whole), 1e-6)[:, None]
    half = np.flatnonzero(share[0] >= HALF)
    behind = int(half[-1]) if len(half) else 0
    return found.note(
        "Up to which layer do text runs read the intermediate's words?",
        "patch",
        "share of the answer's log-probability that is lost when they are exchanged behind the layer",
        share,
        f"behind layer {behind} at least half is lost, and behind no later one"
        if len(half)
        else "behind none is half lost",
        at=behind,
        site=f"lm.{behind}.resid_post",
        span="objects",
    )


def hold(found: Findings) -> Floats:
    """What holding brings back beyond what holding the partner's states does."""
    share, control = _restored(found, found.asking.hold(), "hold")
    net: Floats = share - control
    _brought_back(
        found,
        "Does holding what the image positions held bring answers back?",
        "at the layer with most beyond the control",
        (share, control),
        "if so, it was overwritten there",
        at=int(np.nanargmax(net[0])),
        span="image",
    )
    return net


def held(found: Findings) -> tuple[Floats, Floats]:
    """Which failed answers come right when the image positions are held from each layer on; and the control's."""
    return _right(found, found.asking.hold(), "hold")


def given(found: Findings) -> Floats:
    """What the text run's own state at the reading positions brings back, by layer."""
    return _brought_back(
        found,
        "Does the text run's own state at the reading positions bring the answer?",
        "at the first layer that does nearly as well as any early one",
        _restored(found, found.asking.given(), "cross"),
        "if so, the rest of the model could use it, had it this form",
        at=usable(found),
        span="reading",
    )


def severed(found: Findings) -> Floats:
    """What the right answer loses of its lead over the partner's when no layer attends from there to the objects."""
    rows = found.asking.severed()
    if rows.empty:  # no token of an object enters the decoder
        return np.full(len(found.items.weights), np.nan)
    rows = rows.assign(lost=rows.base_difference - rows.difference)
    own, control = (
        found.items.mean(found.items.column(rows[rows.experiment == name], "lost"))
        for name in (SEVERED, f"{SEVERED}_control")
    )
    return found.note(
        "Does cutting the route from the objects to the reading positions hurt?",
        "patch",
        "logits of the right answer's lead over the partner's that are lost beyond the control, of all items",
        own - control,
        "if not, the answer has nothing of what is read there from the objects' own tokens; the control, by itself, "
        "cuts other tokens of the picture, fewer where fewer are left",
        control=float(control[0]),
        span="reading",
    )


def usable(found: Findings) -> int:
    """The layer at whose reading positions the text run's own state does nearly as well as in any early layer."""
    share, control = _restored(found, found.asking.given(), "cross")
    net = (share - control)[0]
    early = net[: max(1, len(net) // 2)]
    return int(np.flatnonzero(early >= NEARLY * early.max())[0])


def _brought_back(
    found: Findings, question: str, where: str, shares: tuple[Floats, Floats], finding: str, *, at: int, span: str
) -> Floats:
    share, control = shares
    measure, site = f"share of failed answers that come right, {where}", f"lm.{at}.resid_post"
    beside = float(control[0, at])
    return found.note(question, "patch", measure, share, finding, at=at, control=beside, site=site, span=span)


def _right(found: Findings, rows: pd.DataFrame, experiment: str) -> tuple[Floats, Floats]:
    """Whether failed answers come right, (items, layers); and the control's."""
    failed = dict(zip(found.items.groups, found.failing, strict=True))
    rows = rows.assign(layer=rows.target_site.map(layer_of))
    count = 1 + int(rows.layer.max())
    rows = rows[rows.group.map(failed).astype(bool) & ~rows.base_right.astype(bool)]
    wide = []
    for name in (experiment, f"{experiment}_control"):
        values, layers = found.items.align(rows[rows.experiment == name], "right", places="layer")
        by_layer = np.full((len(found.items.groups), count), np.nan)
        by_layer[:, list(layers)] = values
        wide.append(by_layer)
    return wide[0], wide[1]


def _restored(found: Findings, rows: pd.DataFrame, experiment: str) -> tuple[Floats, Floats]:
    """By layer, the share of failed answers that come right; and the control's."""
    own, control = _right(found, rows, experiment)
    return np.nan_to_num(found.items.mean(own)), np.nan_to_num(found.items.mean(control))
