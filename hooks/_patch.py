"""Write activations while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from seamscope.hooks._align import RULES, align
from seamscope.hooks._attention import edit_attention
from seamscope.hooks._errors import SiteError, SpanError, choose
from seamscope.hooks._points import Point, point_of
from seamscope.hooks._ragged import Ragged
from seamscope.hooks._select import Selection, require_layout, require_span
from seamscope.hooks._site import Site
from seamscope.hooks._taps import Phase, Place

if TYPE_CHECKING:
    from seamscope.hooks._batch import Batch
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
        self._selection: Selection | None = None
        self._tokens: Tensor | None = None
        _validate(patch, self._point, vlm)

    def enter(self, stack: ExitStack) -> None:
        site, taps = self._point.site, self._vlm.wiring.taps
        stack.enter_context(self._vlm.wiring.listening(self.begin))
        if site.kind == "pattern":
            stack.enter_context(edit_attention(self._point.place.module, reweigh=self.edit))
            return
        stack.enter_context(taps.attach(self._point.place, Phase.EDIT, self.edit))
        if site.kind == "resid_mid":
            _complete_layer(self._vlm, site, self._point.place, stack)

    def begin(self, batch: Batch) -> None:
        """Find the tokens of the span in a batch, and the values for them."""
        patch, where = self._patch, f"patch of {self._patch.site} at {self._patch.span!r}"
        if self._point.site.visual and batch.visual is None:
            raise SiteError(f"{patch.site} cannot be patched: no item of the batch has an image")
        if patch.span is None:
            return
        self._selection = Selection(batch, patch.span)
        if isinstance(patch.value, Ragged):
            lengths = self._selection.lengths.tolist()
            self._tokens = align(patch.value, lengths, rule=patch.rule, where=where, ids=batch.ids)

    def edit(self, passing: Tensor) -> Tensor | None:
        """Give the tensor that takes the place of the one passing, or None where it stays."""
        if not self._vlm.wiring.reading:
            return None
        value = self._point.view(passing)
        new = self._whole(value) if self._patch.span is None else self._at_span(value)
        if self._patch.heads is not None:
            new = _only_heads(new, value, self._patch.heads, self._point.head_axis)
        return self._point.unview(new)

    def _whole(self, value: Tensor) -> Tensor:
        given = self._patch.value
        assert not isinstance(given, Ragged)  # refused by _validate
        return self._fitted(given(value.clone()) if callable(given) else given, value)

    def _at_span(self, value: Tensor) -> Tensor:
        batch, given = self._vlm.wiring.batch, self._patch.value
        assert self._selection is not None  # set by begin, which the running batch has called
        require_layout(self._point.site, value, batch)
        index = self._selection.index(self._point.site)
        there = self._point.take(value, index)
        tokens = self._fitted(given(there) if callable(given) else self._tokens, there)
        return self._point.put(value, index, tokens)

    def _fitted(self, new: Tensor | None, there: Tensor) -> Tensor:
        if new is None or new.shape != there.shape:
            got = None if new is None else tuple(new.shape)
            raise SiteError(f"{self._patch.site}: the value has shape {got}, but {tuple(there.shape)} is needed")
        return new.to(there.device, there.dtype)


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


def _only_heads(new: Tensor, value: Tensor, heads: Sequence[int], axis: int) -> Tensor:
    out, chosen = value.clone(), (slice(None),) * axis + (list(heads),)
    out[chosen] = new[chosen]
    return out


def _complete_layer(vlm: Vlm, site: Site, mid: Place, stack: ExitStack) -> None:
    """Carry a patched `resid_mid` into the residual stream: the layer's output is it plus what the MLP adds.

    The layer itself adds the MLP's output to the unpatched stream, which a hook on the norm cannot reach.
    """
    seen: dict[str, Tensor] = {}
    layer = site.layer
    assert layer is not None  # resid_mid is a site of layers
    mlp_out, out = (_place(vlm, layer, kind) for kind in ("mlp_out", "resid_post"))

    def complete(passing: Tensor) -> Tensor:
        return seen.pop("mid") + seen.pop("mlp_out")

    taps = vlm.wiring.taps
    stack.enter_context(taps.attach(mid, Phase.READ, lambda value: seen.update(mid=value)))
    stack.enter_context(taps.attach(mlp_out, Phase.READ, lambda value: seen.update(mlp_out=value)))
    stack.enter_context(taps.attach(out, Phase.COMPLETE, complete))


def _place(vlm: Vlm, layer: int, kind: str) -> Place:
    return point_of(vlm.anatomy, Site("lm", kind, layer), vlm.n_heads).place
