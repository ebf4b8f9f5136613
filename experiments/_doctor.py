"""A check-up of a model: can its sites be trusted, what are they, and where are the spans?"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from seamscope.hooks import Check, load_vlm, run_checks

from . import tasks


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What the check-up found; `spans` gives, for each condition, the token positions of every span."""

    model: str
    facts: dict[str, str]
    checks: tuple[Check, ...]
    sites: dict[str, tuple[int | str, ...]]
    spans: dict[str, dict[str, list[int]]]

    @property
    def healthy(self) -> bool:
        """Whether every self-check passed."""
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {**asdict(self), "healthy": self.healthy}

    def text(self) -> str:
        """For a reader."""
        lines = [f"{self.model}", *(f"  {name}: {value}" for name, value in self.facts.items())]
        lines += ["", "self-checks"]
        lines += [
            f"  {'pass' if c.passed else 'FAIL'}  {c.name} ({c.seconds:.2f} s)" + (f": {c.detail}" if c.detail else "")
            for c in self.checks
        ]
        lines += ["", "sites"] + [f"  {name}  ({', '.join(map(str, shape))})" for name, shape in self.sites.items()]
        for condition, spans in self.spans.items():
            lines += ["", f"spans of one item, {condition}"]
            lines += [f"  {name}: {_ranges(where)}" for name, where in spans.items()]
        return "\n".join(lines)


def examine(
    model: str,
    *,
    task: str = "cards.sum",
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
) -> Examination:
    """Load a model without refusing it, run every self-check, and encode one item of a task."""
    chosen = tasks.get(task)
    vlm = load_vlm(model, device=device, dtype=dtype, attn_implementation=attn_implementation, check=False)
    item = chosen.items(1)[0]
    spans = {}
    for condition in ("direct", "oracle"):
        batch = vlm.encode([item], condition=condition)
        spans[condition] = {name: where.tolist() for name, where in batch.spans[0].items()}
    facts = {
        "family": vlm.family,
        "layers": f"{vlm.n_vision_layers} vision, {vlm.n_layers} decoder of width {vlm.d_model}",
        "runs on": f"{vlm.device} in {vlm.dtype} with {vlm.attn_implementation} attention",
        "parameters": f"{sum(p.numel() for p in vlm.model.parameters()):,}",
    }
    return Examination(model=model, facts=facts, checks=tuple(run_checks(vlm)), sites=vlm.shapes(), spans=spans)


def _ranges(positions: list[int]) -> str:
    """Ascending positions as ranges, such as "3-6, 9"."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
