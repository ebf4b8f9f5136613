"""Where a result on the CPU was made, and with what."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any


def about(*packages: str) -> dict[str, Any]:
    """The device, and the versions of packages."""
    return {"device": f"cpu, {platform.machine()}", "versions": {name: version(name) for name in packages}}
