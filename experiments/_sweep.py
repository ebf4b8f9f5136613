"""Patching experiments: run a source, write its state into a target, and see what becomes of the answer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd
from tqdm import tqdm

from seamscope.hooks import Patch, RunError, Vlm, capture, choose, patch

from ._align import aligned, expand
from .tasks import Item, Task


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Which run is patched with which: (item or partner, condition) of the source and of the target.

    Whatever is patched, the score is that of the *item's* answer.
    """

    name: str
    question: str
    source: tuple[str, str]
    target: tuple[str, str]


EXPERIMENTS: Final = {
    e.name: e
    for e in (
        Experiment(
            name="denoise",
            question="is the item's state here enough to bring its answer into its partner's run?",
            source=("item", "direct"),
            target=("partner", "direct"),
        ),
        Experiment(
            name="noise",
            question="is the item's state here needed for its answer?",
            source=("partner", "direct"),
            target=("item", "direct"),
        ),
        Experiment(
            name="text_noise",
            question="in the text run, up to which layer is the intermediate still read from here?",
            source=("partner", "oracle"),
            target=("item", "oracle"),
        ),
        Experiment(
            name="cross",
            question="does the text run's state, written into the direct run here, restore the answer?",
            source=("item", "oracle"),
            target=("item", "direct"),
        ),
        Experiment(
            name="cross_control",
            question="the same with the partner's state: what any text state does to the answer",
            source=("partner", "oracle"),
            target=("item", "direct"),
        ),
        Experiment(
            name="backpatch",
            question="does delivering the direct run's own later state earlier restore the answer?",
            source=("item", "direct"),
            target=("item", "direct"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One patch: what is read where, and what is written where."""

    source_site: str
    target_site: str
    span: str


BACK_SPANS: Final = ("objects", "reading")


def decoder_sites(vlm: Vlm, sites: Iterable[str]) -> list[str]:
    """Those of the sites that a text run has too: the layers of the decoder."""
    return [site for site in vlm.expand(list(sites)) if site.startswith("lm.")]


def layer_cells(vlm: Vlm, *, sites: Iterable[str], spans: Iterable[str]) -> list[Cell]:
    """The same site in both runs, for every site and span set; sites before the decoder know the image only."""
    spans = list(spans)
    return [
        Cell(source_site=site, target_site=site, span=span)
        for site in vlm.expand(list(sites))
        for span in spans
        if site.startswith("lm.") or span in ("image", "objects")
    ]


def back_cells(vlm: Vlm, *, spans: Iterable[str]) -> list[Cell]:
    """Every later layer into every earlier one (2406.12775)."""
    spans = list(spans)
    return [
        Cell(source_site=f"lm.{s}.resid_post", target_site=f"lm.{t}.resid_post", span=span)
        for span in spans
        for s in range(1, vlm.n_layers)
        for t in range(s)
    ]


def sweep(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    experiment: str,
    cells: Sequence[Cell],
    rule: str = "stretch",
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """Patch every cell for every item.

    Returns one row per (item, cell): `id, group, experiment, source_site, target_site, layer, span, base,
    ceiling, patched` (log-probability in nats of the item's whole answer in the unpatched target, in the
    unpatched source, and in the patched target) and `base_right, ceiling_right, right` (greedy decoding would
    give exactly the answer), `first_right` (its first token). `rule` says what is done when spans differ in
    size: see `Patch`.
    """
    plan = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS, RunError)]
    if not cells:
        raise RunError(f"{experiment}: there is no cell to patch")
    rows: list[dict[str, object]] = []
    with tqdm(total=len(items) * len(cells), desc=experiment, unit="cell", disable=not progress) as bar:
        for start in range(0, len(items), batch_size):
            for row in _sweep_batch(vlm, task, items[start : start + batch_size], plan=plan, cells=cells, rule=rule):
                rows += row
                bar.update(len(row))
    return pd.DataFrame(rows)


def _sweep_batch(
    vlm: Vlm, task: Task, items: Sequence[Item], *, plan: Experiment, cells: Sequence[Cell], rule: str
) -> Iterator[list[dict[str, object]]]:
    cast = {"item": list(items), "partner": [task.partner(item) for item in items]}
    answers = [item.answer for item in items]
    source = vlm.encode(cast[plan.source[0]], condition=plan.source[1], answers=answers)
    target = vlm.encode(cast[plan.target[0]], condition=plan.target[1], answers=answers)
    objects = max(len(item.boxes) for item in items)
    sites = sorted({cell.source_site for cell in cells})
    spans = sorted({s for c in cells for s in expand(c.span, plan.source[1], objects=objects)})
    with capture(vlm, sites, spans=spans) as acts:
        ceiling = vlm.score(source)
    base = vlm.score(target)
    for cell in cells:
        pairs = aligned(cell.span, plan.source[1], plan.target[1], objects=objects)
        if not all((cell.source_site, mine) in acts and target.has(cell.target_site, theirs) for mine, theirs in pairs):
            continue  # a decoder that attends to the image from outside has no tokens of its objects
        patches = [
            Patch(cell.target_site, acts[cell.source_site, mine], span=theirs, rule=rule) for mine, theirs in pairs
        ]
        with patch(vlm, patches):
            patched = vlm.score(target)
        yield [
            {
                "id": item.id,
                "group": item.group,
                "experiment": plan.name,
                "source_site": cell.source_site,
                "target_site": cell.target_site,
                "span": cell.span,
                "base": float(base.logprob[k]),
                "ceiling": float(ceiling.logprob[k]),
                "patched": float(patched.logprob[k]),
                "base_right": bool(base.greedy[k]),
                "ceiling_right": bool(ceiling.greedy[k]),
                "right": bool(patched.greedy[k]),
                "first_right": bool(patched.first[k]),
            }
            for k, item in enumerate(items)
        ]
