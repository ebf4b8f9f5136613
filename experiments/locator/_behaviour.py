"""What the answers say: do the skills work alone, what is lost, and is the form of the output to blame?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ._items import Floats

if TYPE_CHECKING:
    from ._evidence import Findings


def oracle(found: Findings) -> Floats:
    """Accuracy from the gold intermediate."""
    return found.note(
        "Does the textual skill work alone?",
        "behaviour",
        "accuracy from the gold intermediate",
        found.items.mean(found.answered("oracle", "correct")),
        "if not, the loss is the textual skill's own",
    )


def loss(found: Findings) -> Floats:
    """The share of the items right there that direct runs fail on."""
    lost = np.where(found.able, 1 - found.answered("direct", "correct"), np.nan)
    return found.note(
        "Do direct runs fail where the gold intermediate suffices?",
        "behaviour",
        "share of those items",
        found.items.mean(lost),
        "the loss that is to be explained",
    )


def seen(found: Findings) -> Floats:
    """The share of items whose objects call 1 names; nothing is decided by it."""
    return found.note(
        "Does the visual skill work alone?",
        "behaviour",
        "share of items in which call 1 names every object",
        found.items.mean(found.answered("cascaded", "saw")),
        "if not, it is lost before anything is to be composed",
    )


def unreadable(found: Findings) -> Floats:
    """The share of failed direct answers in which no answer can be read."""
    unread = np.where(found.failing, 1 - found.answered("direct", "parsed"), np.nan)
    share = found.note(
        "Is the form of the output to blame?",
        "behaviour",
        "unreadable share of failed direct answers",
        found.items.mean(unread),
        "if most are, a larger budget is tried",
    )
    return np.nan_to_num(share)


def longer(found: Findings) -> Floats:
    """Of the unreadable ones, the share that comes right with a larger budget."""
    right = np.where(found.failing, found.items.column(found.asking.longer(), "right"), np.nan)
    return found.note(
        "Does a larger budget help?",
        "behaviour",
        "share of unreadable direct answers that come right",
        found.items.mean(right),
        "if most do, format explains the loss",
    )
