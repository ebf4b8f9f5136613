"""A check-up of a model: can its sites be trusted, what are they, where are the spans, and what will it cost?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from seamscope.hooks import Batch, Check, Site, Vlm, load_vlm, run_checks

from . import tasks
from ._amounts import ranges, size_text, time_text
from ._costs import Cost, Memory, captured_shapes, estimate, measure_memory, timed_forward
from ._files import replacing
from ._overlay import STACKS, draw_overlay, token_table
from ._sample import sample_item
from .tasks import Item

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the check-up found on one item.

    `sites` have the shapes that were captured. `spans` gives, for each condition, the positions of every span in the
    prompt, `tokens` the numbers of the picture's tokens in the tower and the projector, `seconds` how long a forward
    pass takes, `overlay` the file with the picture. What could not be found out is None or empty, and `troubles` say
    why.
    """

    model: str
    facts: dict[str, str]
    lacks: tuple[str, ...]
    checks: tuple[Check, ...]
    spans: dict[str, dict[str, list[int]]]
    troubles: tuple[str, ...]
    sites: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    seconds: float | None = None
    memory: Memory | None = None
    cost: Cost | None = None
    overlay: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether every self-check passed, and everything could be found out."""
        return not self.troubles and all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the self-checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        total = {} if self.cost is None else {"bytes": self.cost.bytes, "seconds": self.cost.seconds}
        cost = self.cost and {**asdict(self.cost), **total}
        return {**asdict(self), "cost": cost, "healthy": self.healthy, "failed": self.failed}

    def text(self) -> str:
        """For a reader."""
        parts = [[self.model, *(f"  {name}: {value}" for name, value in self.facts.items())]]
        parts[0] += [f"  lacks: {what}" for what in self.lacks]
        parts.append(["self-checks", *map(_check_line, self.checks)])
        parts.append(["sites, with the shapes captured for one item", *_site_lines(self.sites)] if self.sites else [])
        named = {f"spans of one item, {condition}": spans for condition, spans in self.spans.items()}
        named |= {f"its tokens in the {STACKS[stack]}": spans for stack, spans in self.tokens.items() if spans}
        for title, spans in named.items():
            parts.append([title, *(f"  {name}: {ranges(sorted(where))}" for name, where in spans.items())])
        parts.append(_memory_lines(self.memory, self.seconds) if self.memory else [])
        parts.append(_cost_lines(self.cost) if self.cost else [])
        parts.append([f"overlay: {self.overlay}"] if self.overlay else [])
        parts.append(
            ["could not be found out", *(f"  {trouble}" for trouble in self.troubles)] if self.troubles else []
        )
        parts.append([f"FAILED: {', '.join(self.failed)}"] if self.failed else [])
        return "\n\n".join("\n".join(lines) for lines in parts if lines)


def examine(
    model: str,
    *,
    task: str = "cards.sum",
    profile: str | None = None,
    image: Path | None = None,
    boxes: tuple[str, ...] = (),
    items: int = 200,
    overlay: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str = "auto",
    engine: str = "torch",
) -> Examination:
    """Load a model without refusing it, run every self-check, and try one item of a task, or a picture of the user's.

    `profile` is by default `small` for the models that come with this package and `full` for others. The cost is
    estimated for `items` items; the overlay is drawn into the file `overlay`, or not at all.
    """
    chosen = tasks.get(task)
    profile = profile or ("full" if Path(model).exists() or "/" in model else "small")
    item = sample_item(chosen, profile=profile, image=image, boxes=boxes)
    place = {"device": device, "dtype": dtype, "attn_implementation": attn_implementation, "engine": engine}
    vlm = load_vlm(model, **place, check=False)  # type: ignore[arg-type]
    checks = tuple(run_checks(vlm))
    attempts = _Attempts()
    batch = attempts("spans", lambda: vlm.encode([item], condition="direct"))
    text = attempts("spans of a text", lambda: vlm.encode([item], condition="oracle"))
    found: dict[str, Any] = {} if batch is None else _measured(vlm, batch, attempts)
    if batch is not None:
        found["cost"] = attempts("cost", lambda: estimate(vlm, item, budget=chosen.budget[profile], items=items))
    if batch is not None and overlay is not None:
        found["overlay"] = attempts("overlay", lambda: _write_overlay(vlm, item, batch, overlay))
    return Examination(
        model=model,
        facts=_facts(vlm, item) | ({} if batch is None else _cut_away(batch, item)),
        lacks=vlm.family.lacks,
        checks=checks,
        spans={str(each.condition): _plain(each.spans[0]) for each in (batch, text) if each is not None},
        troubles=tuple(attempts.troubles),
        **found,
    )


class _Attempts:
    """Tries one thing after another on a model that may be broken, and keeps what went wrong."""

    def __init__(self) -> None:
        self.troubles: list[str] = []

    def __call__(self, what: str, act: Callable[[], T]) -> T | None:
        try:
            return act()
        except Exception as error:
            self.troubles.append(" ".join(f"{what}: {type(error).__name__}: {error}".split()))
            return None


def _measured(vlm: Vlm, batch: Batch, attempts: _Attempts) -> dict[str, Any]:
    assert batch.visual is not None  # the item has a picture
    return {
        "tokens": {stack: _plain(batch.visual.spans[stack][0]) for stack in ("vision", "projector")},
        "sites": attempts("sites", lambda: captured_shapes(vlm, batch)) or {},
        "seconds": attempts("time", lambda: timed_forward(vlm, batch)),
        "memory": attempts("memory", lambda: measure_memory(vlm, batch)),
    }


def _facts(vlm: Vlm, item: Item) -> dict[str, str]:
    return {
        "family": vlm.family.name,
        "layers": f"{vlm.n_vision_layers} vision, {vlm.n_layers} decoder of width {vlm.d_model}",
        "images come in by": ", ".join(vlm.routes),
        "runs on": f"{vlm.device} in {vlm.dtype} with {vlm.attn_implementation} attention",
        "parameters": f"{sum(p.numel() for p in vlm.model.parameters()):,}",
        "looked at": f"{item.id}, {item.image.width} x {item.image.height} pixels, {len(item.boxes)} objects",
    }


def _cut_away(batch: Batch, item: Item) -> dict[str, str]:
    """Objects that no token shows: some processors keep the middle of a picture only."""
    lost = [f"image.object.{k}" for k in range(len(item.boxes)) if f"image.object.{k}" not in batch.span_names]
    return {"shown by no token": ", ".join(lost)} if lost else {}


def _plain(spans: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: where.tolist() for name, where in spans.items()}


def _write_overlay(vlm: Vlm, item: Item, batch: Batch, file: Path) -> str:
    title = f"{Path(vlm.name).name} · {vlm.family.name} · {item.id}, {item.image.width} x {item.image.height} pixels"
    figure = draw_overlay(item.image, item.boxes, token_table(batch), title=title)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=200, format=file.suffix[1:])
    return str(file)


def _check_line(check: Check) -> str:
    told = f": {check.detail}" if check.detail else ""
    return f"  {'pass' if check.passed else 'FAIL'}  {check.name} ({check.seconds:.2f} s){told}"


def _site_lines(sites: Mapping[str, tuple[int, ...]]) -> list[str]:
    """One line for the layers that have a kind of site with the same shape, such as `lm.L.head_z  L = 0-31  ...`."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in sites.items():
        site = Site.parse(name)
        form = name if site.layer is None else f"{site.stack}.L.{site.kind}"
        groups.setdefault((form, shape), []).extend([] if site.layer is None else [site.layer])
    layers = [f"L = {ranges(held)}" if held else "" for held in groups.values()]
    wide = [max(map(len, column)) for column in ([form for form, _ in groups], layers)]
    return [
        f"  {form:{wide[0]}}  {where:{wide[1]}}  ({', '.join(map(str, shape))})"
        for (form, shape), where in zip(groups, layers, strict=True)
    ]


def _memory_lines(memory: Memory, seconds: float | None) -> list[str]:
    lines = ["memory", f"  weights: {size_text(memory.weights)}"]
    if memory.peak is not None:
        whose = "the whole process" if memory.total is None else "on the accelerator"
        took = "" if seconds is None else f", which takes {seconds:.2f} s"
        lines.append(f"  peak of one forward pass{took}: {size_text(memory.peak)} ({whose})")
    if memory.total is not None and memory.free is not None:
        lines.append(f"  accelerator: {size_text(memory.total)}, of which {size_text(memory.free)} are free")
    return lines


def _cost_lines(cost: Cost) -> list[str]:
    wide = max(map(len, cost.per_item))
    return [
        f"what `seamscope capture --n {cost.items}` would cost, an item and its partner in two conditions each",
        *(f"  {pattern:{wide}}  {size_text(held)} per item" for pattern, held in cost.per_item.items()),
        f"  altogether {size_text(cost.bytes)}, and {time_text(cost.seconds)} one item at a time (batches are faster)",
        f"  lm.*.resid_post at every token would be {size_text(cost.items * cost.every_token)}; pooled spans are kept",
    ]
