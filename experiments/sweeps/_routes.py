"""Cutting the routes by which positions read others: attention knockout, and the exit of the image's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from seamscope.hooks import Cut, Edit, RunError, Vlm, choose

from .._align import SPAN_SETS, expand
from ._experiment import Who
from ._runs import Runs
from ._sweep import Plan
from ._trials import Trial

KNOCKOUT: Final = "knockout"
SEVERED: Final = "severed"
CUT: Final[Who] = ("item", "direct")  # the run that is cut
PAIRS: Final = (("last", "objects"), ("question", "objects"), ("last", "question"), ("reading", "image"))


def knockouts(
    vlm: Vlm,
    *,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    window: int | None = None,
    run: Who = CUT,
    seed: int = 0,
    name: str = KNOCKOUT,
) -> Plan:
    """Attention from one span set to another, cut in every window of layers (2304.14767; in VLMs 2411.18620).

    The answer's change says whether it needs that route in those layers; that it does not change, nothing about
    routes by other positions or layers. Beside each stands `knockout_control`: as many other positions before the
    last query, drawn for every item, are cut from the same queries; of the image's other tokens, where what is cut is
    in the image. Where fewer are left, all of these.

    Args:
        vlm: the model, for the number of its layers.
        pairs: (queries, keys), names of span sets.
        window: layers that are cut together; a fifth of all, as in the paper, if not given, at least one.
        run: (item or partner, condition) of the run that is cut.
        seed: of the control's positions.
        name: of the experiment, in the table.
    """
    for each in (each for pair in pairs for each in pair):
        choose("span set", each, SPAN_SETS, RunError)
    size = max(1, round(vlm.n_layers / 5)) if window is None else window
    if not 1 <= size <= vlm.n_layers:
        raise RunError(f"a window has 1 to {vlm.n_layers} layers, not {size}")
    windows = [tuple(range(first, first + size)) for first in range(vlm.n_layers - size + 1)]

    def trials(runs: Runs) -> Iterator[Trial]:
        rng = torch.Generator().manual_seed(seed + sum(map(ord, runs.item.id)))
        for queries, keys in pairs:
            asked, seen = (positions(runs, run, each) for each in (queries, keys))
            if asked is None or seen is None:
                continue
            image = positions(runs, run, "image")
            others = _others(asked, seen, image, rng)
            for layers in windows:
                labels = {"queries": queries, "keys": keys, "first": layers[0], "last": layers[-1]}
                for label, cut in ((name, seen), (f"{name}_control", others)):
                    parts: list[Edit | Cut] = [Cut(layers=layers, queries=asked, keys=cut)] if len(cut) else []
                    yield Trial(labels={"experiment": label, **labels}, parts=parts, target=run)

    return trials


def severed(vlm: Vlm) -> Plan:
    """The reading positions attend to the objects' own tokens in no layer: a knockout of one window, that none chose.

    The objects can still be read from other tokens that have read them before.
    """
    return knockouts(vlm, pairs=(("reading", "objects"),), window=vlm.n_layers, name=SEVERED)


def exits(vlm: Vlm, *, keys: str = "image", run: Who = CUT) -> Plan:
    """From every layer on, no later position reads the image's tokens any more (visual-token exit, 2411.19628).

    Where the answer stays as it is, the image's tokens are no longer needed from that layer on. In families whose
    layers attend to the image from outside, its tokens are not in the prompt, and cannot leave it.
    """
    if any(layer.crossed for layer in vlm.anatomy.layers):
        raise RunError(f"the images of {vlm.name!r} are not in the prompt: cut those layers with knockout")

    def trials(runs: Runs) -> Iterator[Trial]:
        seen = positions(runs, run, keys)
        if seen is None:
            return
        later = torch.arange(int(seen.max()) + 1, runs.batch(run).width)
        for first in range(vlm.n_layers):
            layers = tuple(range(first, vlm.n_layers))
            labels = {"experiment": "exit", "queries": "later", "keys": keys, "first": first, "last": layers[-1]}
            yield Trial(labels=labels, parts=[Cut(layers=layers, queries=later, keys=seen)], target=run)

    return trials


def positions(runs: Runs, who: Who, name: str) -> Tensor | None:
    """The positions of a span set in a run, ascending, each once; None where there are none."""
    spans = runs.batch(who).spans[0]
    held = [spans[each] for each in expand(name, who[1], objects=runs.n_objects) if each in spans]
    found = torch.cat(held).unique() if held else torch.zeros(0, dtype=torch.long)  # type: ignore[no-untyped-call]
    return found if len(found) else None


def _others(queries: Tensor, keys: Tensor, image: Tensor | None, rng: torch.Generator) -> Tensor:
    """As many positions before the last query as there are keys before it, of those that are neither."""
    before = torch.arange(int(queries.max()))
    free = before[~torch.isin(before, torch.cat([queries, keys]))]
    shown = free[torch.isin(free, image)] if image is not None and torch.isin(keys, image).all() else free
    pool = shown if len(shown) else free
    count = int((keys < queries.max()).sum())
    return pool[torch.randperm(len(pool), generator=rng)[:count]].sort().values
