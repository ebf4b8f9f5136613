"""Read activations while the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from seamscope.hooks._errors import SiteError, SpanError, choose
from seamscope.hooks._points import Point
from seamscope.hooks._ragged import POOLS, Ragged
from seamscope.hooks._select import Selection, has_span, require_layout, require_span
from seamscope.hooks._site import Site
from seamscope.hooks._taps import Phase

if TYPE_CHECKING:
    from seamscope.hooks._batch import Batch
    from seamscope.hooks._vlm import Vlm


class Activations(Mapping[Any, Any]):
    """What was captured in the last forward pass.

    `acts[site]` is the site's whole tensor (captured without spans); `acts[site, span]` a `Ragged` with one
    entry for each item, empty for items that lack the span. As a mapping it goes over what was captured.
    """

    def __init__(self, sites: Iterable[str], spans: Iterable[str] | None) -> None:
        self.sites = tuple(sites)
        self.spans = None if spans is None else tuple(spans)
        self._held: dict[str | tuple[str, str], Tensor | Ragged] = {}

    @overload
    def __getitem__(self, key: str | Site) -> Tensor: ...
    @overload
    def __getitem__(self, key: tuple[str | Site, str]) -> Ragged: ...
    def __getitem__(self, key: str | Site | tuple[str | Site, str]) -> Tensor | Ragged:
        """Give what was captured at a site, or at a site and span; a clear error for anything else."""
        found = self._held.get(_key(key))
        return found if found is not None else self._refuse(_key(key))

    def __contains__(self, key: object) -> bool:
        return (str(key) if isinstance(key, Site) else key) in self._held

    def __iter__(self) -> Iterator[str | tuple[str, str]]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def _refuse(self, key: str | tuple[str, str]) -> Tensor | Ragged:
        site = choose("captured site", key if isinstance(key, str) else key[0], self.sites, SiteError)
        if isinstance(key, str) and self.spans is not None:
            raise SpanError(f"{site} was captured at spans; read acts[{site!r}, span] for one of: {self.spans}")
        if not isinstance(key, str):
            choose("captured span", key[1], self.spans or (), SpanError)
            require_span(Site.parse(site), key[1])
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
    device. Inside `vlm.generate` the pass over the prompt is captured. A capture sees patched values,
    whichever came first.

    Raises `SiteError` or `SpanError` for unknown names before anything is hooked, and `SpanError` before the
    model runs if no item of the batch has a span.
    """
    points = [vlm.point(name) for name in vlm.expand(sites)]
    names = [spans] if isinstance(spans, str) else None if spans is None else list(dict.fromkeys(spans))
    _validate(points, names, pool)
    acts = Activations([str(point.site) for point in points], names)
    reader = _Reader(vlm, acts, pool)
    with ExitStack() as stack:
        stack.enter_context(vlm.wiring.listening(reader.begin))
        for point in points:
            stack.enter_context(vlm.wiring.taps.attach(point.place, Phase.READ, reader.reads(point)))
        yield acts


def _validate(points: list[Point], spans: list[str] | None, pool: str | None) -> None:
    if pool is not None:
        choose("pooling", pool, POOLS, SpanError)
        if spans is None:
            raise SpanError(f"pool={pool!r} reduces spans, but no spans were given")
    for point in points:
        if spans and not any(has_span(point.site, span) for span in spans):
            require_span(point.site, spans[0])


class _Reader:
    """Copies what passes at each point into the activations."""

    def __init__(self, vlm: Vlm, acts: Activations, pool: str | None) -> None:
        self._vlm, self._acts, self._pool = vlm, acts, pool
        self._selections: list[Selection] = []

    def begin(self, batch: Batch) -> None:
        self._acts._held.clear()
        self._selections = [Selection(batch, span) for span in self._acts.spans or ()]

    def reads(self, point: Point) -> Any:
        def read(passing: Tensor) -> None:
            if self._vlm.wiring.reading:
                # Leaving inference mode makes the copies ordinary tensors, which autograd accepts.
                with torch.inference_mode(False), torch.no_grad():
                    self._read(point, point.view(passing))

        return read

    def _read(self, point: Point, value: Tensor) -> None:
        name = str(point.site)
        if self._acts.spans is None:
            self._acts._held[name] = value.clone()
            return
        require_layout(point.site, value, self._vlm.wiring.batch)
        for selection in self._selections:
            if has_span(point.site, selection.span):
                taken = Ragged(point.take(value, selection.index(point.site)), selection.lengths)
                self._acts._held[name, selection.span] = taken.pool(self._pool) if self._pool else taken


def _key(key: str | Site | tuple[str | Site, str]) -> str | tuple[str, str]:
    return (str(key[0]), key[1]) if isinstance(key, tuple) else str(key)
