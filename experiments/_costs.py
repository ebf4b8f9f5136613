"""What running a model takes: memory, and what a capture would cost."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import torch

from seamscope.hooks import Batch, Site, Vlm, capture

from ._capture import kept
from ._run import Settings
from .tasks import Item

CONDITIONS: Final = ("direct", "oracle")  # the text of an oracle run is as long as that of a cascaded one
RUNS: Final = 2  # `seamscope capture` runs an item and its counterfactual partner


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a model takes; None is what a system does not tell.

    `peak` is the most in one forward pass of one item: what torch holds on the accelerators, or, where there are none,
    what the whole process holds. `total` and `free` are the accelerators' own.
    """

    weights: int
    peak: int | None
    total: int | None
    free: int | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What `seamscope capture` takes for `items` items, by one item run alone.

    `per_item` are the bytes that the store keeps, by site pattern, of an item and its partner in direct and cascaded
    runs; `every_token` what `lm.*.resid_post` alone would take if all tokens were kept in place of pooled spans.
    """

    items: int
    per_item: dict[str, int]
    every_token: int
    seconds_per_item: float

    @property
    def bytes(self) -> int:
        """What the store would hold."""
        return self.items * sum(self.per_item.values())

    @property
    def seconds(self) -> float:
        """How long it would take, one item at a time; batches are faster."""
        return self.items * self.seconds_per_item


def measure_memory(vlm: Vlm, batch: Batch) -> Memory:
    """Run one forward pass and see what it takes."""
    held = {id(each): each for each in (*vlm.model.parameters(), *vlm.model.buffers())}.values()
    weights = sum(each.numel() * each.element_size() for each in held)
    gpus = sorted({each.device.index or 0 for each in held if each.device.type == "cuda"})
    if not gpus:
        return Memory(weights=weights, peak=_process_peak(lambda: vlm.forward(batch)), total=None, free=None)
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    vlm.forward(batch)
    rooms = [torch.cuda.mem_get_info(gpu) for gpu in gpus]
    return Memory(
        weights=weights,
        peak=sum(torch.cuda.max_memory_allocated(gpu) for gpu in gpus),
        total=sum(total for _, total in rooms),
        free=sum(free for free, _ in rooms),
    )


def _process_peak(run: Callable[[], Any]) -> int | None:
    """The most that this process holds while something runs; Linux tells, others do not."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    except OSError:
        run()
        return None
    run()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def captured_shapes(vlm: Vlm, batch: Batch, *, room: int = 2**30) -> dict[str, tuple[int, ...]]:
    """Capture every site in whole tensors and give their shapes; `room` bounds the bytes that are held at a time.

    A site that no value passed, such as one of the tower in a run of text, is missing.
    """
    found: dict[str, tuple[int, ...]] = {}
    for sites in _portions(vlm, batch, room):
        with capture(vlm, sites) as acts:
            vlm.forward(batch)
        found |= {site: tuple(acts[site].shape) for site in sites if site in acts}
    return found


def _portions(vlm: Vlm, batch: Batch, room: int) -> list[list[str]]:
    """Sites in forward order, cut so that each portion's tensors fit into `room`, as far as one site does."""
    sizes = {"batch": len(batch), **dict.fromkeys(("pos", "query", "key"), batch.width)}
    portions: list[list[str]] = [[]]
    taken = 0
    for site, shape in vlm.shapes().items():
        patches = batch.visual.sizes[Site.parse(site).tokens] if batch.visual is not None else 0
        size = vlm.dtype.itemsize
        for axis in shape:
            size *= axis if isinstance(axis, int) else sizes.get(axis, patches)
        if portions[-1] and taken + size > room:
            portions.append([])
            taken = 0
        portions[-1].append(site)
        taken += size
    return portions


def estimate(vlm: Vlm, item: Item, *, budget: int, items: int) -> Cost:
    """Run an item as `seamscope capture` does, and count what is kept and how long it takes."""
    usual = Settings()
    sizes, width = {pattern: 0 for pattern in usual.sites if fnmatch.filter(vlm.sites, pattern)}, 0
    sites = vlm.expand(list(sizes))
    _settle(vlm)
    start = perf_counter()
    vlm.generate(vlm.encode([item], condition="perceive"), max_new_tokens=budget)
    for condition in CONDITIONS:
        batch = vlm.encode([item], condition=condition)
        width += batch.width
        for (site, _), held in kept(
            vlm, batch, sites=sites, spans=usual.spans, pool=usual.pool, objects=len(item.boxes)
        ).items():
            (pattern,) = (each for each in sizes if fnmatch.fnmatch(site, each))
            sizes[pattern] += RUNS * held.values.numel() * held.values.element_size()
    _settle(vlm)
    seconds = perf_counter() - start
    every = RUNS * width * vlm.n_layers * vlm.d_model * vlm.dtype.itemsize
    return Cost(items=items, per_item=sizes, every_token=every, seconds_per_item=RUNS * seconds)


def timed_forward(vlm: Vlm, batch: Batch) -> float:
    """How many seconds one forward pass takes."""
    _settle(vlm)
    start = perf_counter()
    vlm.forward(batch)
    _settle(vlm)
    return perf_counter() - start


def _settle(vlm: Vlm) -> None:
    """Wait for the accelerator, which works on while Python goes ahead."""
    if vlm.device.type == "cuda":
        torch.cuda.synchronize(vlm.device)
