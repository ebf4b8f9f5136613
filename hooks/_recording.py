"""One prompt's run, recorded so that patched runs can go on from any of its layers.

In a causal decoder, a patch at a layer and a position changes later layers at that position and after it, and nothing
else. So a run is recorded once: the stream before every layer, keys and values, and what else each layer was given. It
goes on from a layer, for the tokens from the first changed one on, with the recorded keys and values before them. The
layers' own modules do the work, with their own rotary embeddings, masks and windows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from seamscope.hooks._attention import allowed, without
from seamscope.hooks._capture import capture
from seamscope.hooks._errors import RunError
from seamscope.hooks._shared_prefix import sharing

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._vlm import Vlm

SHARED: Final = 0.25  # own tokens over those of the prefix, up to which the prefix is not copied for each cell
OUTSIDE: Final = ("cross_attention_states",)  # what a layer is given of the image, and makes keys and values of
LAST: Final = ("position_ids", "cache_position")  # what has positions in its last dimension; else in the one before


class Cache:
    """Stands in for the cache that attention modules expect.

    While `recording` it notes keys and values, (1, heads, pos, head_dim) for each layer. Afterwards it puts those of
    the tokens before `start` in front of new ones, which are the module's own, or `new`; layers that attend to the
    image from `outside` get theirs whole. While `noting`, a module ends where it has made its keys and values.
    """

    def __init__(self, outside: Collection[int]) -> None:
        self.recording, self.noting, self.start = True, False, 0
        self.new: tuple[Tensor, Tensor] | None = None
        self._outside = outside
        self._held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Give the keys and values that a layer attends to."""
        if self.recording:
            self._held[layer] = keys, values
            return keys, values
        if self.noting and layer not in self._outside:
            raise _NotedError(keys, values)
        keys, values = self.new or (keys, values)
        old_keys, old_values = (each.expand(len(keys), -1, -1, -1) for each in self._held[layer])
        if layer in self._outside:
            return old_keys, old_values
        before = slice(0, self.start)
        return torch.cat([old_keys[:, :, before], keys], 2), torch.cat([old_values[:, :, before], values], 2)

    def prefix(self, layer: int, start: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the tokens before `start`, (heads, start, head_dim)."""
        keys, values = (each[0, :, :start] for each in self._held[layer])
        return keys, values


class _NotedError(Exception):
    """Carries a module's keys and values out of it."""


@dataclass(frozen=True, eq=False)
class _Given:
    """What a layer was given beside the stream."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Recording:
    """The run of a batch of one prompt.

    Attributes:
        streams: what goes into each layer, (1, pos, d_model) each.
        posts: what each layer gives; that of the last goes into the norm.
        stop: the first position that no run goes on to: no position up to `upto` sees it or any after it.
        held: what was captured of it, at `sites`.
    """

    def __init__(self, vlm: Vlm, batch: Batch, *, upto: int | None = None, sites: Iterable[str] = ()) -> None:
        if len(batch) != 1:
            raise RunError(f"a run is recorded of one prompt at a time, not of {len(batch)}")
        self.vlm, self.batch = vlm, batch
        self.stop = batch.width
        self.streams: list[Tensor] = []
        self.posts: list[Tensor] = []
        self._given: list[_Given] = []
        self._cache = Cache([k for k, layer in enumerate(vlm.anatomy.layers) if layer.crossed])
        with self._caching(), ExitStack() as stack:
            for layer in vlm.anatomy.layers:
                stack.callback(layer.block.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                stack.callback(layer.block.register_forward_hook(self._after).remove)
            self.held = stack.enter_context(capture(vlm, sites))
            vlm.forward(batch, logits_to_keep=1)
        self._cache.recording = False
        if upto is not None and not self._sees[: upto + 1, upto + 1 :].any():
            self.stop = upto + 1

    def _before(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stream, *rest = args or (kwargs["hidden_states"],)
        self.streams.append(stream)
        self._given.append(
            _Given(tuple(rest), {name: each for name, each in kwargs.items() if name != "hidden_states"})
        )

    def _after(self, _: Any, __: Any, output: Any) -> None:
        self.posts.append(_stream(output))

    @cached_property
    def _sees(self) -> Bool[Tensor, "query key"]:
        """Which positions see which, in any layer that has a mask; others are causal."""
        sees = torch.eye(self.batch.width, dtype=torch.bool)
        for given, layer in zip(self._given, self.vlm.anatomy.layers, strict=True):
            mask = given.kwargs.get("attention_mask")
            if mask is not None and not layer.crossed:
                sees |= allowed(mask)[0, 0].cpu()
        return sees

    @cached_property
    def firsts(self) -> list[int]:
        """For a patch at each position, the first token that any later layer may change, (pos,).

        That is the position itself, but in a block of tokens that see one another: no token before the first one sees
        any token from it on.
        """
        sees = self._sees
        earliest = sees.int().argmax(0).tolist()  # the first token that sees each one
        found, lowest = [0] * len(earliest), len(earliest)
        uncut: list[int] = []  # positions that wait for the next cut
        for position in reversed(range(len(earliest))):
            lowest = min(lowest, earliest[position])
            uncut.append(position)
            if lowest >= position:
                for each in uncut:
                    found[each] = position
                uncut = []
        return found

    def go_on(
        self,
        start: int,
        joining: Mapping[int, Float[Tensor, "cells tokens d_model"]],
        *,
        reading: Int[Tensor, " read"],
        closed: Mapping[int, Bool[Tensor, "cells tokens pos"]] | None = None,
        trim: bool = True,
    ) -> Float[Tensor, "cells read d_model"]:
        """What the last layer gives at the positions `reading`, for cells that join the run at some layers.

        `joining` is what goes into these layers from position `start` on; behind the last one, what that gives. Cells
        come out in the order in which they join. `closed` says which attention is cut in some layers. With `trim`, the
        last layer makes keys and values of all tokens, and nothing else but of those that are read.
        """
        last = self.vlm.n_layers - 1
        stream = next(iter(joining.values()))[:0]
        with torch.inference_mode(), self._caching():
            for number in range(min(joining), self.vlm.n_layers):
                if number in joining:
                    stream = torch.cat([stream, joining[number]])
                cut = None if closed is None else closed.get(number)
                if number == last and trim and len(reading) < stream.shape[1]:
                    stream = self._trimmed(number, start, stream, reading, cut)
                    break
                stream = self._layer(number, start, stream, slice(start, self.stop), cut)
                stream = self.between(number, start, stream)
            else:
                stream = stream[:, reading - start]
        behind = joining.get(self.vlm.n_layers)
        return stream if behind is None else torch.cat([stream, behind[:, reading - start]])

    def one(self, number: int, start: int, stream: Tensor) -> Tensor:
        """What one layer gives for the tokens from `start` on, from what goes into it there; its weights are seen."""
        with torch.inference_mode(), self._caching():
            return self._layer(number, start, stream, slice(start, self.stop), None, share=False)

    def _layer(
        self,
        number: int,
        start: int,
        stream: Tensor,
        positions: slice | Tensor,
        closed: Tensor | None,
        *,
        share: bool = True,
    ) -> Tensor:
        """What a layer gives at some positions, from what goes into it there."""
        given, parts = self._given_at(number, positions, closed, len(stream)), self.vlm.anatomy.layers[number]
        shared = share and (self.stop - start) <= SHARED * start and closed is None
        self._cache.start = 0 if shared else start
        with ExitStack() as stack:
            stack.enter_context(self.vlm.wiring.giving(self.batch, positions))
            if shared and not parts.crossed:
                stack.enter_context(sharing(parts.attn, *self._cache.prefix(number, start)))
            return _stream(parts.block(stream, *given.args, **given.kwargs))

    def _trimmed(self, number: int, start: int, stream: Tensor, reading: Tensor, closed: Tensor | None) -> Tensor:
        """What a layer gives at the positions that are read, from what goes into it from `start` on."""
        if not self.vlm.anatomy.layers[number].crossed:
            self._cache.noting = True
            try:
                return self._layer(number, start, stream, slice(start, self.stop), closed)[:, reading - start]
            except _NotedError as noted:
                keys, values = noted.args
                self._cache.new = keys, values
            finally:
                self._cache.noting = False
        try:
            closed = None if closed is None else closed[:, reading.cpu() - start]
            return self._layer(number, start, stream[:, reading - start], reading, closed)
        finally:
            self._cache.new = None

    def inside(
        self, number: int, positions: Int[Tensor, " tokens"], closed: Bool[Tensor, "1 tokens pos"] | None
    ) -> Float[Tensor, "1 tokens d_model"]:
        """What a layer gives at some positions, when what goes into it is as recorded; a position may come twice.

        What is edited or cut inside a layer changes nothing that it gives elsewhere.
        """
        keys, values = self._cache.prefix(number, self.stop)
        self._cache.new = keys[None], values[None]
        try:
            with torch.inference_mode(), self._caching():
                return self._layer(number, 0, self.streams[number][:, positions], positions, closed, share=False)
        finally:
            self._cache.new = None

    def values(self, number: int) -> Float[Tensor, "heads pos width"]:
        """The values that each query head of a layer mixes; heads that share them have the same."""
        values = self._cache.prefix(number, self.batch.width)[1]
        return values.repeat_interleave(self.vlm.n_heads // len(values), 0)

    def between(self, number: int, start: int, stream: Tensor) -> Tensor:
        """What goes into the next layer: what a layer gives, and what the model adds there, as DeepStack does."""
        added = self.added[number]
        return stream if added is None else stream + added[:, start : self.stop]

    @cached_property
    def added(self) -> list[Tensor | None]:
        """What the model adds to the stream after each layer, (1, pos, d_model), or None."""
        pairs = zip(self.posts[:-1], self.streams[1:], strict=True)
        return [*(None if torch.equal(gave, next_) else next_ - gave for gave, next_ in pairs), None]

    def _given_at(self, number: int, positions: slice | Tensor, closed: Tensor | None, n_cells: int) -> _Given:
        """What a layer is given for some positions; where attention is cut, with a mask for each cell.

        Of what stands outside the prompt one token is enough: the keys and values are those that were recorded.
        """
        given, crossed = self._given[number], self.vlm.anatomy.layers[number].crossed
        kwargs = {name: self._part(name, each, positions) for name, each in given.kwargs.items()}
        if crossed:
            for name in OUTSIDE:
                if kwargs.get(name) is not None:
                    kwargs[name] = kwargs[name].flatten(0, -2)[:1].expand(n_cells, 1, -1)
            return _Given(given.args, kwargs)
        mask: Tensor | None = kwargs.get("attention_mask")
        whole = isinstance(positions, slice) and positions.start == 0
        if mask is None and not (whole and closed is None):  # as many queries as keys are causal without one
            mask = self._causal(positions)
        if mask is not None:
            mask = mask[..., : self.stop]
        if closed is not None and mask is not None:
            every = torch.arange(self.stop, device=mask.device)
            itself = every[positions][:, None] == every
            kept = without(allowed(mask), closed.to(mask.device)[:, None], itself)
            mask = kept if mask.dtype == torch.bool else torch.where(kept, mask, torch.finfo(mask.dtype).min)
        return _Given(given.args, {**kwargs, "attention_mask": mask})

    def _part(self, name: str, value: Any, positions: slice | Tensor) -> Any:
        """Of what a layer was given, what belongs to some positions."""
        if isinstance(value, tuple | list):
            return type(value)(self._part(name, each, positions) for each in value)
        if not isinstance(value, Tensor) or name in OUTSIDE:
            return value
        if name in LAST:
            return value[..., positions]
        return value[..., positions, :] if value.ndim > 1 and value.shape[-2] == self.batch.width else value

    def _causal(self, positions: slice | Tensor) -> Tensor:
        """Every token sees itself and those before it; for the tokens at some positions."""
        every = torch.arange(self.batch.width, device=self.streams[0].device)
        seen = (every <= every[positions][:, None])[None, None]
        if self.vlm.attn_implementation != "eager":
            return seen
        return torch.zeros_like(seen, dtype=self.vlm.dtype).masked_fill(~seen, torch.finfo(self.vlm.dtype).min)

    @contextmanager
    def _caching(self) -> Iterator[None]:
        """Give the decoder's attention modules the cache."""

        def give(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "past_key_values": self._cache}

        with ExitStack() as stack:
            for layer in self.vlm.anatomy.layers:
                stack.callback(layer.attn.register_forward_pre_hook(give, with_kwargs=True).remove)
            yield


def _stream(output: Any) -> Tensor:
    """A layer's output, which may be a tuple."""
    stream: Tensor = output[0] if isinstance(output, tuple) else output
    return stream
