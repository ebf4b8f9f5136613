"""What a data set may be drawn like, and runs whose items are drawn so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

from seamscope.experiments.tasks import RENDERINGS, Look, generated

WORDLESS: Final = ("counting",)  # fonts change nothing there


def looks(task: str) -> dict[str, Look]:
    """Every look of a data set that fixes one thing, and leaves the others as they are usually drawn."""
    fonts = () if task in WORDLESS else RENDERINGS
    return {
        **{f"font {name}": Look(fonts=(name,)) for name in fonts},
        "smallest": Look(size=(0.0, 0.0)),
        "largest": Look(size=(1.0, 1.0)),
        "no jitter": Look(jitter=0.0),
        **{f"layout {name}": Look(layouts=(name,)) for name in generated(task).layouts},
    }


@contextmanager
def drawn(task: str, *, sample: int, look: Look) -> Iterator[None]:
    """While it lasts, a data set gives the items of this seed, drawn like this, in this process.

    The settings of a run know one seed, of its items and of the locator's resamples and folds, and no look. All that
    a run shows to a model comes from `items` and `item` of its task, and from `partner`, which keeps an item's style.
    """
    made = generated(task)

    def fixed(make: Callable[..., Any]) -> Callable[..., Any]:
        return lambda number, **asked: make(number, **{**asked, "seed": sample, "look": look})

    with patch.object(made, "items", fixed(made.items)), patch.object(made, "item", fixed(made.item)):
        yield
