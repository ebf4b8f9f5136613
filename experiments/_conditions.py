"""Put every item to a model under each condition, and measure the composition gap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import pandas as pd
from tqdm import tqdm

from seamscope.hooks import TaskError, Vlm, choose
from seamscope.probes import bootstrap_interval

from .tasks import CONDITIONS, Item, Task

SUBSETS: Final = ("all", "both steps pass")


def run_conditions(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    conditions: Iterable[str] = CONDITIONS,
    profile: str = "small",
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """Answers under each condition, all with the same token budget (the task's, for its profile).

    Returns one row per (item, condition): `id, group, task, condition, said, output, answer, correct, parsed,
    saw`. For `cascaded`, `said` is what call 1 said and `saw` whether it named every object.
    """
    names = [choose("condition", name, CONDITIONS, TaskError) for name in conditions]
    budget = task.budget[profile]
    starts = range(0, len(items), batch_size)
    rows: list[dict[str, object]] = []
    with tqdm(total=len(names) * len(items), desc=task.name, unit="answer", disable=not progress) as bar:
        for start in starts:
            batch = items[start : start + batch_size]
            for name in names:
                rows += _answer(vlm, task, batch, condition=name, budget=budget)
                bar.update(len(batch))
    return pd.DataFrame(rows)


def hear(vlm: Vlm, task: Task, items: Sequence[Item], *, budget: int) -> tuple[list[Item], list[str]]:
    """Call 1 of the cascade: the items remembering what was said, and the raw texts."""
    texts = vlm.generate(vlm.encode(items, condition="perceive"), max_new_tokens=budget)
    heard = [item.saying(task.hand_over(item, text)) for item, text in zip(items, texts, strict=True)]
    return heard, texts


def _answer(vlm: Vlm, task: Task, items: Sequence[Item], *, condition: str, budget: int) -> list[dict[str, object]]:
    said: Sequence[str | None] = [None] * len(items)
    if condition == "cascaded":
        items, said = hear(vlm, task, items, budget=budget)
    outputs = vlm.generate(vlm.encode(items, condition=condition), max_new_tokens=budget)
    return [
        {
            "id": item.id,
            "group": item.group,
            "task": task.name,
            "condition": condition,
            "said": words,
            "output": output,
            "answer": item.answer,
            "correct": task.score(item, output, condition=condition),
            "parsed": task.read_answer(output) is not None,
            "saw": words is not None and task.saw(item, words),
        }
        for item, words, output in zip(items, said, outputs, strict=True)
    ]


def both_steps_pass(answers: pd.DataFrame) -> set[str]:
    """Items whose call 1 named every object and whose oracle answer is right: each skill passes alone."""
    cascaded = answers[answers.condition == "cascaded"]
    oracle = answers[answers.condition == "oracle"]
    return set(cascaded[cascaded.saw].id) & set(oracle[oracle.correct].id)


def composition_gap(answers: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Accuracy by condition and the gap (cascaded − direct, paired by item), with 95 % bootstrap intervals.

    Rows: `task, subset, condition, n, estimate, low, high`; the gap is the condition named `gap`. Subsets: all
    items, and those whose two steps both pass alone (Composition Collapse, 2605.26789).
    """
    rows: list[dict[str, object]] = []
    for name, table in answers.groupby("task", sort=False):
        passing = both_steps_pass(table)
        for subset in SUBSETS:
            kept = table if subset == "all" else table[table.id.isin(passing)]
            wide = kept.pivot(index=["id", "group"], columns="condition", values="correct").astype(float)
            series = {condition: wide[condition] for condition in CONDITIONS if condition in wide}
            if {"cascaded", "direct"} <= set(series):
                series["gap"] = wide["cascaded"] - wide["direct"]
            for condition, values in series.items():
                rows.append({"task": name, "subset": subset, "condition": condition, **_estimate(values, seed=seed)})
    return pd.DataFrame(rows)


def _estimate(values: pd.Series[float], *, seed: int) -> dict[str, float]:
    if values.empty:
        return {"n": 0, "estimate": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = bootstrap_interval(values.to_numpy(), values.index.get_level_values("group"), seed=seed)
    return {"n": len(values), "estimate": float(values.mean()), "low": low, "high": high}
