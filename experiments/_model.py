"""The model of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from seamscope.hooks import Vlm, load_vlm

from .organism._faults import PREFIX, find, plant

if TYPE_CHECKING:
    from ._run import Settings

SMALL: Final = 2**28  # bytes of a model that may be loaded several times


def task_of(model: str) -> str | None:
    """The task that a planted model belongs to; None for other models."""
    return find(model).task if model.startswith(PREFIX) else None


def load(settings: Settings, *, untrained: bool = False) -> Vlm:
    """Load the model that a run asks for, and check it: by a name of `load_vlm`, or a planted one by `fault:NAME`."""
    options: dict[str, Any] = {
        "device": settings.device,
        "dtype": settings.dtype,
        "attn_implementation": settings.attn_implementation,
        "engine": settings.engine,
        "untrained": untrained,
        "seed": settings.seed,
    }
    if settings.model.startswith(PREFIX):
        return plant(settings.model, **options)
    return load_vlm(settings.model, **options)


def is_small(vlm: Vlm) -> bool:
    """Whether other processes may have the model as well: it is on the CPU, and not large."""
    weights = sum(each.numel() * each.element_size() for each in vlm.model.parameters())
    return vlm.device.type == "cpu" and not vlm.engine.remote and weights <= SMALL
