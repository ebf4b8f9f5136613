"""Composing organisms with alterations, and what stands in them at a place, for tests of alterations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import pytest
from torch import Tensor

from seamscope.experiments.organism._alter import Alteration, Altered
from seamscope.experiments.tasks import Item, get
from seamscope.hooks import Batch, Vlm, load_vlm

SIDE = 6  # patches
TASK = get("cards.sum")
ITEMS = TASK.items(8, seed=2)
DONORS = [item.prompt("perceive") for item in TASK.items(8, seed=77, split="train")]


def reading(layers: Sequence[int], how: str) -> tuple[Alteration, ...]:
    """Keys and values of some layers; values alone where they are turned."""
    kinds = ("value",) if how == "rotate" else ("key", "value")
    return tuple(Alteration(place=f"lm.{k}.{kind}", how=how) for k in layers for kind in kinds)


EVERY = {
    "tower": (Alteration(place="vision.1.resid_post"),),
    "projector": (Alteration(place="projector.out", how="rotate", part="left"),),
    "stream": (Alteration(place="lm.2.resid_post"),),
    "third": (Alteration(place="lm.1.resid_post", part="top"), Alteration(place="lm.3.resid_post", how="rotate")),
    "unrouted": reading(range(8), "resample"),
    "late": reading(range(3), "blank"),
    "unread": reading(range(8), "rotate"),
}
KINDS = pytest.mark.parametrize("kind", EVERY)


@cache
def altered(*alterations: Alteration) -> Vlm:
    """A composing organism with alterations, loaded once for each of them."""
    vlm = load_vlm("organism-composing", check=False)
    Altered(vlm, alterations, DONORS)
    return vlm


@contextmanager
def output_of(vlm: Vlm, place: str) -> Iterator[list[Tensor]]:
    """What the module at a place gives, by a hook written by hand."""
    model, (*_, number, kind) = vlm.model.model, ("", *place.split("."))
    if place.startswith("vision"):
        module = model.vision_tower.encoder.layers[int(place.split(".")[1])]
    elif place == "projector.out":
        module = model.multi_modal_projector
    else:
        layer = model.language_model.layers[int(number)]
        module = {"key": layer.self_attn.k_proj, "value": layer.self_attn.v_proj}.get(kind, layer)
    found: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda _, __, output: found.append((output[0] if isinstance(output, tuple) else output).clone())
    )
    try:
        yield found
    finally:
        handle.remove()


def shown(vlm: Vlm, batch: Batch, place: str) -> Tensor:
    """What stands at a place at the patches of every row that has a picture, (pictures, patches, width)."""
    with output_of(vlm, place) as found:
        vlm.forward(batch)
    (state,) = found
    state = state[batch.inputs["input_ids"] == vlm.model.config.image_token_id] if place.startswith("lm") else state
    return state.reshape(-1, SIDE**2, state.shape[-1])


def direct(vlm: Vlm, items: Sequence[Item] = ITEMS, condition: str = "direct") -> Batch:
    return vlm.encode(items, condition=condition)
