"""The organism: a small trained LLaVA that ships with the package, so that everything runs without downloads."""

from __future__ import annotations

from pathlib import Path

from ._faults import Fault, faults

__all__ = ["Fault", "composing", "faults", "natural"]


def natural() -> Path:
    """The checkpoint that names what it sees, reasons over text, and composes the two badly."""
    return Path(__file__).parent / "natural"


def composing() -> Path:
    """The checkpoint that was trained on composition as well, and composes."""
    return Path(__file__).parent / "composing"
