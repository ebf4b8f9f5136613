"""Write activations while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seamscope.hooks._align import RULES, align
from seamscope.hooks._attention import edit_attention
from seamscope.hooks._engine import require_here
from seamscope.hooks._errors import SiteError, SpanError, choose
from seamscope.hooks._moves import join, keep, write
from seamscope.hooks._points import Point, point_of
from seamscope.hooks._ragged import Ragged
from seamscope.hooks._select import Selection, count_tokens, require_span
from seamscope.hooks._site import Site
from seamscope.hooks._taps import Phase, Place
from seamscope.hooks._wiring import require_batch

if TYPE_CHECKING:
    from seamscope.hooks._batch import Batch
    from seamscope.hooks._taps import Move
    from seamscope.hooks._vlm import Vlm


@dataclass(frozen=True, eq=False)
class Patch:
    """A value for a site.

    `value` is a tensor for the whole site (then `span` is None), a `Ragged` with one entry for each item of
    the batch that will run, or a function from what is there, the whole tensor or the span's tokens (n,
    *feature), to a replacement of the same shape. `rule` says what happens in rows whose token numbers
    differ: `exact` (an error), `mean`, `last`, `stretch` (nearest by relative place). `heads` limits
    `head_z` and `pattern` to some heads; values still have all of them.
    """

    site: str | Site
    value: Tensor | Ragged | Callable[[Tensor], Tensor]
    _: KW_ONLY
    span: str | None = None
    rule: str = "exact"
    heads: Sequence[int] | None = None


@contextmanager
def patch(vlm: Vlm, patches: Patch | Iterable[Patch]) -> Iterator[None]:
    """Replace activations in the forward passes run inside; patches of one site apply in the order given.

    A patch of `resid_mid` reaches both the MLP and the residual stream; one of `pattern` mixes the values
    anew. Inside `vlm.generate` the pass over the prompt is patched, later ones only see its effect. Values
    are moved to the device and dtype of what they replace, which is never written in place.

    Raises `SiteError` or `SpanError` for unknown names and values that cannot fit before anything is
    hooked, and `SpanError` before the model runs if no item has a span or token numbers differ under
    `exact`.
    """
    writers = [_Writer(vlm, each) for each in ([patches] if isinstance(patches, Patch) else patches)]
    with ExitStack() as stack:
        for writer in writers:
            writer.enter(stack)
        yield


class _Writer:
    """One patch on one model."""

    def __init__(self, vlm: Vlm, patch: Patch) -> None:
        self._vlm, self._patch = vlm, patch
        self._point: Point = vlm.point(patch.site)
        _validate(patch, self._point, vlm)

    def enter(self, stack: ExitStack) -> None:
        site, wiring = self._point.site, self._vlm.wiring
        if site.kind == "pattern":
            require_here(self._vlm.engine, "patch of lm.L.pattern")
            stack.enter_context(wiring.listening(self._moves))  # refuses a batch before the model runs
            stack.enter_context(edit_attention(self._point.place.module, reweigh=self._reweigh))
            return
        stack.enter_context(wiring.taps.attach(self._point.place, Phase.EDIT, self._moves))
        if site.kind == "resid_mid":
            _complete_layer(self._vlm, site, self._point.place, stack)

    def _moves(self, batch: Batch | None) -> list[Move]:
        """Find the tokens of the span in a batch, and the values for them."""
        patch, site = self._patch, self._point.site
        new: Any = patch.value
        index, n_tokens = None, 0
        if batch is not None and site.visual and batch.visual is None:
            raise SiteError(f"{patch.site} cannot be patched: no item of the batch has an image")
        if patch.span is not None:
            batch, where = require_batch(batch), f"patch of {patch.site} at {patch.span!r}"
            selection = Selection(batch, patch.span)
            if not batch.has(site, patch.span):
                raise SpanError(f"{where}: no item of the batch has tokens of it there")
            index, n_tokens = selection.index(site), count_tokens(site, batch)
            if isinstance(new, Ragged):
                lengths = selection.lengths(site).tolist()
                new = align(new, lengths, rule=patch.rule, where=where, ids=batch.ids)
        only = None if patch.heads is None else list(patch.heads)
        return [partial(write, new=new, index=index, n_tokens=n_tokens, only=only, layout=self._point.layout)]

    def _reweigh(self, weights: Tensor) -> Tensor | None:
        if not self._vlm.wiring.reading:
            return None
        (move,) = self._moves(self._vlm.wiring.current)
        return move(weights)


def _validate(patch: Patch, point: Point, vlm: Vlm) -> None:
    site, span, value = point.site, patch.span, patch.value
    choose("rule", patch.rule, RULES, SpanError)
    if span is not None:
        require_span(site, span)
    if isinstance(value, Tensor) and span is not None:
        raise SpanError(f"{site} at {span!r} needs a Ragged or a function; a tensor replaces a whole site (span=None)")
    if isinstance(value, Ragged) and span is None:
        raise SpanError(f"{site} is given a Ragged, so it needs the span whose tokens those are")
    if not isinstance(value, Tensor | Ragged) and not callable(value):
        raise SiteError(f"{site}: a value is a tensor, a Ragged or a function, not a {type(value).__name__}")
    if patch.heads is not None:
        _validate_heads(patch.heads, site, vlm.n_heads)


def _validate_heads(heads: Sequence[int], site: Site, n_heads: int) -> None:
    if site.kind not in ("head_z", "pattern"):
        raise SiteError(f"{site} has no heads; heads=... goes with head_z and pattern")
    unknown = [head for head in heads if not 0 <= head < n_heads]
    if unknown:
        raise SiteError(f"{site} has heads 0 to {n_heads - 1}, not {unknown}")


def _complete_layer(vlm: Vlm, site: Site, mid: Place, stack: ExitStack) -> None:
    """Carry a patched `resid_mid` into the residual stream: the layer's output is made of it and what the MLP gives.

    The layer itself adds the MLP's output to the unpatched stream, which a hook on the norm cannot reach.
    """
    notes: dict[str, Tensor] = {}
    layer = site.layer
    assert layer is not None  # resid_mid is a site of layers
    mlp_out, out = (_place(vlm, layer, kind) for kind in ("mlp_out", "resid_post"))
    parts = vlm.anatomy.layers[layer]
    # A layer of cross-attention adds nothing where no image can be seen, so only the difference is carried on.
    closing = None if parts.crossed else torch.add if parts.plain else parts.close
    if closing == parts.close:
        require_here(vlm.engine, "patch of lm.L.resid_mid in this family")

    def taps(place: Place, phase: Phase, move: Move) -> None:
        stack.enter_context(vlm.wiring.taps.attach(place, phase, lambda _: [move]))

    taps(mid, Phase.COMPLETE, partial(keep, notes=notes, key="old"))
    taps(mid, Phase.READ, partial(keep, notes=notes, key="mid"))
    taps(mlp_out, Phase.READ, partial(keep, notes=notes, key="mlp_out"))
    taps(out, Phase.COMPLETE, partial(join, notes=notes, closing=closing))


def _place(vlm: Vlm, layer: int, kind: str) -> Place:
    return point_of(vlm.anatomy, Site("lm", kind, layer), vlm.n_heads).place
