"""Read activations while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from seamscope.hooks._errors import SiteError, SpanError, choose
from seamscope.hooks._moves import read, read_step
from seamscope.hooks._points import Point
from seamscope.hooks._ragged import POOLS, Ragged
from seamscope.hooks._select import Selection, count_tokens, has_span, require_span
from seamscope.hooks._site import Site
from seamscope.hooks._steps import GENERATED, has_steps, require_steps
from seamscope.hooks._taps import Phase
from seamscope.hooks._wiring import require_batch

if TYPE_CHECKING:
    from seamscope.hooks._batch import Batch
    from seamscope.hooks._taps import Move
    from seamscope.hooks._vlm import Vlm


class Activations(Mapping[Any, Any]):
    """What was captured in the last forward pass.

    `acts[site]` is the site's whole tensor (captured without spans); `acts[site, span]` a `Ragged` with one
    entry for each item, empty for items that lack the span. As a mapping it goes over what was captured.
    `generated` are the tokens that belong to the span of that name, if it was captured.
    """

    def __init__(self, sites: Iterable[str], spans: Iterable[str] | None) -> None:
        self.sites = tuple(sites)
        self.spans = None if spans is None else tuple(spans)
        self.generated: Ragged | None = None
        self._held: dict[str | tuple[str, str], Tensor] = {}
        self._lengths: dict[tuple[str, str], Tensor] = {}

    @overload
    def __getitem__(self, key: str | Site) -> Tensor: ...
    @overload
    def __getitem__(self, key: tuple[str | Site, str]) -> Ragged: ...
    def __getitem__(self, key: str | Site | tuple[str | Site, str]) -> Tensor | Ragged:
        """Give what was captured at a site, or at a site and span; a clear error for anything else."""
        name = _key(key)
        if name not in self._held:
            return self._refuse(name)
        return self._held[name] if isinstance(name, str) else Ragged(self._held[name], self._lengths[name])

    def __contains__(self, key: object) -> bool:
        return (str(key) if isinstance(key, Site) else key) in self._held

    def __iter__(self) -> Iterator[str | tuple[str, str]]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def _clear(self) -> None:
        self._held.clear()
        self._lengths.clear()
        self.generated = None

    def _refuse(self, key: str | tuple[str, str]) -> Tensor | Ragged:
        site = choose("captured site", key if isinstance(key, str) else key[0], self.sites, SiteError)
        if isinstance(key, str) and self.spans is not None:
            raise SpanError(f"{site} was captured at spans; read acts[{site!r}, span] for one of: {self.spans}")
        if not isinstance(key, str):
            choose("captured span", key[1], self.spans or (), SpanError)
            require_span(Site.parse(site), key[1])
            if any(held[0] == site for held in self._held):
                raise SpanError(f"{site} has no tokens of {key[1]!r} in this batch")
        raise SiteError(f"{site} was not computed: no forward pass was run inside capture, or none with images")


@contextmanager
def capture(
    vlm: Vlm,
    sites: str | Site | Iterable[str | Site],
    spans: str | Iterable[str] | None = None,
    pool: str | None = None,
) -> Iterator[Activations]:
    """Capture sites (names or globs) during the forward passes run inside; each pass replaces the one before.

    Without `spans` whole tensors are copied. With `spans` only those tokens are, for every site that can
    have them (sites of the vision tower and the projector have `image` and `image.object.k`), each reduced
    to one vector by `pool` (`mean`, `last`) if given. Captured tensors are ordinary ones on the model's
    device. A capture sees patched values, whichever came first.

    Inside `vlm.generate` the pass over the prompt is captured, and the span `generated` has every generated token
    that the model read again: the k-th of a row is from step k, and neither a token that ends a row nor the last one
    before the limit is among them. `acts.generated` gives the tokens themselves.

    Raises `SiteError` or `SpanError` for unknown names before anything is hooked, and `SpanError` before the
    model runs if no item of the batch has a span.
    """
    points = [vlm.point(name) for name in vlm.expand(sites)]
    names = [spans] if isinstance(spans, str) else None if spans is None else list(dict.fromkeys(spans))
    _validate(points, names, pool)
    acts = Activations([str(point.site) for point in points], names)
    reader = _Reader(vlm, acts, pool)
    with ExitStack() as stack:
        stack.enter_context(vlm.wiring.listening(reader.begin, reader.end))
        for point in points:
            stack.enter_context(vlm.wiring.taps.attach(point.place, Phase.READ, partial(reader.prompt, point)))
            if GENERATED in (names or ()) and has_steps(point.site):
                stack.enter_context(vlm.wiring.taps.attach(point.place, Phase.STEP, partial(reader.step, point)))
        yield acts


def _validate(points: list[Point], spans: list[str] | None, pool: str | None) -> None:
    if pool is not None:
        choose("pooling", pool, POOLS, SpanError)
        if spans is None:
            raise SpanError(f"pool={pool!r} reduces spans, but no spans were given")
    for point in points:
        if spans and not any(has_span(point.site, span) for span in spans):
            require_span(point.site, spans[0])
    if spans and GENERATED in spans:
        require_steps([point.site for point in points])


class _Reader:
    """Says what of each point is copied into the activations."""

    def __init__(self, vlm: Vlm, acts: Activations, pool: str | None) -> None:
        self._vlm, self._wiring, self._acts, self._pool = vlm, vlm.wiring, acts, pool
        self._spans = [span for span in acts.spans or () if span != GENERATED]
        self._selections: list[Selection] = []
        self._takings: dict[str, _Taking] = {}
        self._steps: dict[str, list[Tensor]] = {}

    def begin(self, batch: Batch) -> None:
        if GENERATED in (self._acts.spans or ()) and not self._wiring.generating:
            raise SpanError(f"the span {GENERATED!r} exists inside vlm.generate only")
        self._acts._clear()
        self._steps.clear()
        self._takings.clear()
        self._selections = [Selection(batch, span) for span in self._spans]

    def end(self) -> None:
        """Put the steps together once the last one is over."""
        fed = self._wiring.fed
        if fed is None or GENERATED not in (self._acts.spans or ()):
            return
        with torch.inference_mode(False), torch.no_grad():
            for site, steps in self._steps.items():
                tokens = fed.join(steps)
                tokens = tokens.pool(self._pool) if self._pool else tokens
                self._acts._held[site, GENERATED] = tokens.values
                self._acts._lengths[site, GENERATED] = tokens.lengths
            self._acts.generated = fed.ragged()

    def prompt(self, point: Point, batch: Batch | None) -> list[Move]:
        """What is copied in the pass over the prompt."""
        name = str(point.site)
        copy = partial(read, into=self._acts._held, layout=point.layout)
        if self._acts.spans is None:
            return [partial(copy, keys=[name], index=None, sizes=[], n_tokens=0, pool=None)]
        batch = require_batch(batch)
        copy = partial(copy, n_tokens=count_tokens(point.site, batch))
        taking = self._taking(point.site, batch)
        made: list[Move] = []
        if taking.lengths:
            keys = [(name, span) for span in taking.lengths]
            self._acts._lengths.update(zip(keys, taking.lengths.values(), strict=True))
            made.append(partial(copy, keys=keys, index=taking.index, sizes=taking.sizes, pool=taking.pool))
        if GENERATED in self._acts.spans and has_steps(point.site):  # what there is if every row ends at once
            self._acts._lengths[name, GENERATED] = torch.zeros(len(batch), dtype=torch.long)
            nothing = torch.zeros(0, dtype=torch.long)
            made.append(partial(copy, keys=[(name, GENERATED)], index=nothing, sizes=[0], pool=None))
        return made

    def step(self, point: Point, batch: Batch | None) -> list[Move]:
        """What is copied in each later pass of `generate`."""
        n_rows = len(require_batch(batch))
        return [partial(read_step, into=self._steps, key=str(point.site), n_rows=n_rows, layout=point.layout)]

    def _taking(self, site: Site, batch: Batch) -> _Taking:
        """Sites that lay tokens out alike share it, so that a pass moves indices to the device once."""
        if site.tokens not in self._takings:
            held = [each for each in self._selections if batch.has(site, each.span)]
            self._takings[site.tokens] = _Taking.of(site, held, self._pool, self._vlm.device)
        return self._takings[site.tokens]


@dataclass(frozen=True)
class _Taking:
    """The tokens of all spans of a batch at one site, span after span, and how each row of a span is pooled.

    `lengths` are by span and row, after pooling, in which empty rows stay empty; `sizes` their sums.
    """

    index: Tensor
    pool: Callable[[Tensor], Tensor] | None
    lengths: dict[str, Tensor]
    sizes: list[int]

    @classmethod
    def of(cls, site: Site, held: list[Selection], pool: str | None, device: torch.device) -> _Taking:
        lengths = {each.span: each.lengths(site) for each in held}
        index = torch.cat([each.index(site) for each in held]) if held else torch.zeros(0, dtype=torch.long)
        reduce = None
        if pool is not None and held:
            rows = torch.cat(list(lengths.values()))
            reduce = partial(POOLS[pool], lengths=rows[rows > 0].to(device))
            lengths = {span: (each > 0).long() for span, each in lengths.items()}
        return cls(index.to(device), reduce, lengths, [int(each.sum()) for each in lengths.values()])


def _key(key: str | Site | tuple[str | Site, str]) -> str | tuple[str, str]:
    return (str(key[0]), key[1]) if isinstance(key, tuple) else str(key)
