"""How many items are patched."""

from __future__ import annotations

from typing import Final

PATCHED: Final = 100  # probes need all items, patches say more of each
