"""Conditions and the composition gap: what is asked, what is counted, and by whom it is checked."""

from __future__ import annotations

import pandas as pd
import pytest

from seamscope.experiments import both_steps_pass, composition_gap, run_conditions
from seamscope.experiments.tasks import CONDITIONS, DATA_SETS, get
from seamscope.hooks import TaskError, Vlm


@pytest.mark.parametrize("name", DATA_SETS)
def test_the_cascade_is_two_calls_of_the_same_model(organism: Vlm, name: str) -> None:
    """By hand: call 1 on the picture, its words into call 2, which sees text only."""
    task = get(name)
    items = task.items(6)
    table = run_conditions(organism, task, items, batch_size=4)
    assert list(table.condition.drop_duplicates()) == list(CONDITIONS)
    assert len(table) == len(items) * len(CONDITIONS)
    for item in items:
        (row,) = table[(table.id == item.id) & (table.condition == "cascaded")].to_dict("records")
        first = organism.encode([item], condition="perceive")
        (said,) = organism.generate(first, max_new_tokens=task.budget["small"])
        assert row["said"] == said
        second = organism.encode([item.saying(task.hand_over(item, said))], condition="cascaded")
        assert "pixel_values" not in second.inputs
        assert organism.generate(second, max_new_tokens=task.budget["small"]) == [row["output"]]
        assert row["correct"] == task.score(item, row["output"], condition="cascaded")


def test_every_condition_has_the_same_budget(organism: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = set()
    generate = Vlm.generate

    def spy(self: Vlm, batch: object, *, max_new_tokens: int) -> list[str]:
        budgets.add(max_new_tokens)
        return generate(self, batch, max_new_tokens=max_new_tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(Vlm, "generate", spy)
    task = get("cards.sort")
    run_conditions(organism, task, task.items(2))
    assert budgets == {task.budget["small"]}


def test_an_unknown_condition_is_refused_before_the_model_runs(organism: Vlm) -> None:
    task = get("cards.sort")
    with pytest.raises(TaskError, match=r"unknown condition 'directt'; nearest: direct"):
        run_conditions(organism, task, task.items(2), conditions=["directt"])


def made(rows: dict[str, list[bool]], saw: list[bool]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "id": str(k),
                "group": str(k),
                "task": "t",
                "condition": condition,
                "correct": right,
                "saw": condition == "cascaded" and saw[k],
            }
            for condition, column in rows.items()
            for k, right in enumerate(column)
        ]
    )


def test_the_gap_is_paired_and_the_subset_is_that_whose_steps_both_pass() -> None:
    table = made(
        {
            "direct": [True, False, False, False],
            "cascaded": [True, True, True, False],
            "oracle": [True, True, True, False],
            "cot": [True, True, False, False],
        },
        saw=[True, True, False, True],
    )
    assert both_steps_pass(table) == {"0", "1"}
    gap = composition_gap(table).set_index(["subset", "condition"])
    assert gap.estimate["all", "gap"] == pytest.approx(0.5)
    assert gap.estimate["both steps pass", "gap"] == pytest.approx(0.5)
    assert gap.n["both steps pass", "gap"] == 2
    assert (gap.low <= gap.estimate).all()
    assert (gap.estimate <= gap.high).all()


def test_a_pairing_that_cancels_noise_gives_a_narrower_interval_than_two_samples() -> None:
    """Direct and cascaded right on the same half: the gap is zero without doubt, though each alone is uncertain."""
    right = [k % 2 == 0 for k in range(40)]
    table = made({"direct": right, "cascaded": right, "oracle": right}, saw=[True] * 40)
    gap = composition_gap(table)
    (row,) = gap[(gap.subset == "all") & (gap.condition == "gap")].to_dict("records")
    assert (row["low"], row["estimate"], row["high"]) == (0, 0, 0)
    (alone,) = gap[(gap.subset == "all") & (gap.condition == "direct")].to_dict("records")
    assert alone["high"] - alone["low"] > 0.2


def test_nothing_passing_is_said_and_not_hidden() -> None:
    table = made({"direct": [False] * 3, "cascaded": [False] * 3, "oracle": [False] * 3}, saw=[False] * 3)
    rows = composition_gap(table)
    none = rows[rows.subset == "both steps pass"]
    assert (none.n == 0).all()
    assert none.estimate.isna().all()
