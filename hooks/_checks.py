"""Cheap self-checks, run at load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seamscope.hooks._vlm import Vlm


@dataclass(frozen=True)
class Check:
    """The outcome of one self-check."""

    name: str
    passed: bool
    detail: str
    seconds: float


def run_checks(vlm: Vlm) -> list[Check]:
    """Placeholder until written."""
    return []
