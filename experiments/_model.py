"""The model of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from seamscope.hooks import Vlm, load_vlm

from .organism._faults import PREFIX, find, plant

if TYPE_CHECKING:
    from ._run import Settings


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
