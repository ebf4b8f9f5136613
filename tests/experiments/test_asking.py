"""Tables that the locator asks for are kept, and those of other plans are others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from seamscope.experiments import Run, Settings
from seamscope.experiments.locator import _asking
from seamscope.experiments.locator._asking import Asking
from seamscope.experiments.locator._hand_over import Spot
from seamscope.experiments.locator._tried import BEHIND, TOGETHER

BEFORE, BEHIND_IT = (Spot(site=f"lm.{k}.resid_post") for k in range(2))


def test_tables_of_other_plans_are_other_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What was handed over to confirm a loss is not what repairs of another verdict hand over."""
    made = list[Mapping[str, Any]]()

    def handed(_: Any, plans: Mapping[str, Any]) -> pd.DataFrame:
        made.append(plans)
        return pd.DataFrame({"name": list(plans), "group": "g", "right": True, "control": False})

    monkeypatch.setattr(_asking, "hand_over", handed)
    study = SimpleNamespace(run=Run(tmp_path / "run", Settings()))
    asking = Asking(study, there=0.5)  # type: ignore[arg-type]
    both, one = (
        {TOGETHER: (BEFORE, BEFORE), BEHIND: (BEHIND_IT, BEHIND_IT)},
        {TOGETHER: (BEFORE, BEFORE), BEHIND: (BEFORE, BEHIND_IT)},
    )
    for plans in (both, one, both):
        assert list(asking.handed(plans).name) == [TOGETHER, BEHIND]
    assert made == [both, one]
