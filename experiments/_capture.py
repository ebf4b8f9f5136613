"""Run items under conditions and keep what flows through the model in a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from seamscope.activations import Schema, create_store
from seamscope.hooks import Activations, Vlm, capture

from ._align import expand
from ._conditions import hear
from ._identity import used_by
from ._run import Settings
from .tasks import Item, Task


def capture_items(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    path: Path,
    conditions: Iterable[str],
    sites: Sequence[str],
    spans: Sequence[str],
    settings: Settings,
    progress: bool = False,
) -> None:
    """Capture items and their counterfactual partners, each object and reading span pooled to its mean.

    One row per (item or partner, condition), also where the partner is an item itself; both share their group, so
    no split separates them.
    """
    conditions = tuple(conditions)
    pairs = list({member.id: member for item in items for member in (item, task.partner(item))}.values())
    schema = Schema(
        model=settings.model,
        task=task.name,
        conditions=conditions,
        provenance={**asdict(settings), "used": used_by(vlm), "pool": "mean", "sites": list(sites)},
    )
    size = settings.batch_size
    with (
        create_store(path, schema, replace_partial=True) as store,
        tqdm(total=len(pairs) * len(conditions), desc="capture", unit="run", disable=not progress) as bar,
    ):
        for start in range(0, len(pairs), size):
            batch = pairs[start : start + size]
            if "cascaded" in conditions:
                batch, _ = hear(vlm, task, batch, budget=task.budget[settings.profile])
            for condition in conditions:
                store.append(condition, describe_rows(task, batch), _run(vlm, batch, condition, sites, spans))
                bar.update(len(batch))


def _run(vlm: Vlm, items: Sequence[Item], condition: str, sites: Sequence[str], spans: Sequence[str]) -> Activations:
    """The pooled spans of one batch; a text run does not pass the tower."""
    batch = vlm.encode(items, condition=condition)
    objects = max(len(item.boxes) for item in items)
    wanted = [span for name in spans for span in expand(name, condition, objects=objects)]
    reached = [site for site in sites if condition == "direct" or site.startswith("lm.")]
    with capture(vlm, reached, spans=[s for s in wanted if s in batch.span_names], pool="mean") as acts:
        vlm.forward(batch)
    return acts


def describe_rows(task: Task, items: Sequence[Item]) -> pd.DataFrame:
    """What a store keeps of each item beside its activations: identity, labels, and control types."""
    return pd.DataFrame(
        [
            {
                "id": item.id,
                "group": item.group,
                "question": item.question,
                "intermediate": item.intermediate.text,
                "said": "" if item.said is None else item.said.text,
                "answer": item.answer,
                **{f"var:{name}": label for name, label in item.variables.items()},
                **{f"type:{name}": kind for name, kind in item.types.items()},
            }
            for item in items
        ]
    )
