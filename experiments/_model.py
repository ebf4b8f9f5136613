"""The model of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seamscope.hooks import Vlm, load_vlm

if TYPE_CHECKING:
    from ._run import Settings


def load(settings: Settings, *, untrained: bool = False) -> Vlm:
    """Load the model that a run asks for, and check it."""
    return load_vlm(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        engine=settings.engine,
        untrained=untrained,
        seed=settings.seed,
    )
