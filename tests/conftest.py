"""For all tests: their order."""

from __future__ import annotations

import pytest

LONGEST = ("test_notebooks.py", "test_readme.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that at the end no worker is alone with it."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
