"""Attribution patching: what patches would do, estimated for all of them from a few backward passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seamscope.hooks._attention import edit_attention
from seamscope.hooks._capture import capture
from seamscope.hooks._cells import begin
from seamscope.hooks._engine import require_here
from seamscope.hooks._errors import ModelError, SiteError, SpanError
from seamscope.hooks._site import Site
from seamscope.hooks._taps import Phase

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from seamscope.hooks._batch import Batch
    from seamscope.hooks._replay import Replay
    from seamscope.hooks._taps import Move
    from seamscope.hooks._vlm import Vlm

ENTRIES = ("resid_pre", "resid_post")  # sites whose change goes into a layer's own queries and keys


class Attribution:
    """Gradients of the answer's log-probability, or of a logit difference, in the run of one prompt.

    To first order, a patch adds the gradient times what it changes (Nanda 2023; Kramár et al. 2403.00745). Two things
    are mended as there (AtP*). A softmax that is saturated has no gradient, though a patch may move it far: of the
    layer that a patched stream goes into, the attention weights are made anew, with the model's own modules, so that
    shared keys are no special case (`exact_attention`). And where the effects of a change by two ways cancel in the
    gradient, they may not in truth: gradients are also taken without what each layer adds, one after the other
    (`dropping`).

    Args:
        vlm: the model.
        batch: one prompt with its answer.
        sites: decoder sites, not `pattern`.
        rival: the tokens of another answer, as they would stand after the prompt: then gradients are those of
            `Score.difference`, which does not saturate where the answer is all but certain.
        exact_attention: make those weights anew; needs eager attention.
        dropping: also take the gradients without each layer.

    Attributes:
        gradients: of every site, (tokens, *feature), float32.
    """

    def __init__(
        self,
        vlm: Vlm,
        batch: Batch,
        sites: Sequence[str],
        *,
        rival: Int[Tensor, " tokens"] | None = None,
        exact_attention: bool = False,
        dropping: bool = True,
    ) -> None:
        require_here(vlm.engine, "attribution")
        if len(batch) != 1 or "answer" not in batch.span_names:
            raise SpanError("attribution needs one prompt with an answer; encode([item], answers=[...])")
        for site in map(Site.parse, sites):
            if site.stack != "lm" or site.kind in ("pattern", "deepstack", "logits"):
                raise SiteError(f"{site} is not attributed; expected sites of the decoder, such as lm.*.resid_post")
        if exact_attention and vlm.attn_implementation != "eager":
            raise ModelError("exact_attention needs attention weights; load with attn_implementation='eager'")
        self.vlm, self.batch, self.sites, self._rival = vlm, batch, list(sites), rival
        self.gradients = self._gradients(self.sites)
        self._dropped = [self._gradients(self.sites, drop=layer) for layer in range(vlm.n_layers)] if dropping else []
        self._entering: dict[int, tuple[Tensor, Tensor]] = {}
        if exact_attention:
            layers = {begin(Site.parse(site)) for site in sites if Site.parse(site).kind in ENTRIES}
            layers = {layer for layer in layers if layer < vlm.n_layers and not vlm.anatomy.layers[layer].crossed}
            self._entering = {layer: self._around_attention(layer) for layer in sorted(layers)}

    def estimate(self, site: str, changes: Tensor) -> Tensor:
        """What changes of a site would do to what is measured, token by token: (tokens, *feature) -> (tokens,).

        For `head_z`, (tokens, heads).
        """
        return _product(self._linear(site), changes)

    def dropped(self, site: str, changes: Tensor) -> Tensor:
        """The same without each layer in turn: the mean size of the estimates, never below 0; `dropping` alone.

        What this says is not small is worth measuring, though `estimate` may say so (GradDrop).
        """
        if not self._dropped:
            raise SiteError("dropping=False: no gradients were taken without a layer")
        sizes = [_product(each[site], changes).abs() for each in self._dropped]
        return torch.stack(sizes).mean(0)

    def attention(self, run: Replay, site: str, changes: Tensor) -> Tensor:
        """What changes of the stream do by moving the weights of the layer they go into, exactly made; (tokens,).

        Belongs to `estimate`, whose gradient then leaves those weights as they are. 0 where it does not apply.
        """
        parsed = Site.parse(site)
        layer = begin(parsed)
        found = torch.zeros(len(changes))
        if parsed.kind not in ENTRIES or layer not in self._entering:
            return found
        weights, pattern = self._entering[layer][1], f"lm.{layer}.pattern"
        record = run.recording
        before = record.streams[layer]
        with capture(self.vlm, pattern) as acts:
            record.one(layer, 0, before[:, : record.stop])
        base = acts[pattern][0]
        for token in range(min(len(changes), record.stop)):
            if not changes[token].any():
                continue
            start = record.firsts[token]
            stream = before[:, start : record.stop].clone()
            stream[0, token - start] += changes[token].to(stream)
            with capture(self.vlm, pattern) as acts:
                record.one(layer, start, stream)
            moved = acts[pattern][0] - base[:, start:]
            found[token] = float((weights[:, start : record.stop, : moved.shape[-1]].to(moved) * moved).sum())
        return found

    def _linear(self, site: str) -> Tensor:
        """The gradient of a site; with the weights of the layer it goes into as they are, where those are made anew."""
        parsed = Site.parse(site)
        layer = begin(parsed)
        if parsed.kind in ENTRIES and layer in self._entering:
            return self._entering[layer][0]
        return self.gradients[site]

    def _around_attention(self, layer: int) -> tuple[Tensor, Tensor]:
        """The gradient of what goes into a layer past its attention weights, and that of the weights."""
        noted: dict[str, Tensor] = {}

        def fixed(weights: Tensor) -> Tensor:
            noted["weights"] = weights.detach().requires_grad_()
            return noted["weights"]

        site = f"lm.{layer}.resid_pre"
        with edit_attention(self.vlm.anatomy.layers[layer].attn, reweigh=fixed):
            found = self._gradients([site], also=noted)
        return found[site], found["weights"][0]

    def _measure(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What gradients are taken of, from the logits of the answer's tokens."""
        if self._rival is None:
            return logits.log_softmax(-1).gather(-1, targets[:, None]).sum()
        both = zip(self._rival.tolist(), targets.tolist(), strict=False)
        first = next((k for k, (other, own) in enumerate(both) if other != own), None)
        if first is None:
            raise SpanError("the rival answer begins as the answer does, to its end: there is no logit difference")
        return logits[first, targets[first]] - logits[first, int(self._rival[first])]

    def _gradients(
        self, sites: Sequence[str], *, drop: int | None = None, also: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Gradients of what is measured, by one pass forward and one back."""
        vlm, noted = self.vlm, {} if also is None else also
        points = [vlm.point(site) for site in sites]
        with ExitStack() as stack:
            stack.enter_context(_beginning(vlm))
            if drop is not None:
                stack.enter_context(_without(vlm, drop))
            for site, point in zip(sites, points, strict=True):
                stack.enter_context(vlm.wiring.taps.attach(point.place, Phase.READ, partial(_noting, noted, site)))
            logits = vlm.run(self.batch, pick="logits", grad=True)
        at = self.batch.positions("answer")[0].to(logits.device)
        targets = self.batch.inputs["input_ids"][0].to(logits.device)[at]
        with torch.enable_grad():
            measured = self._measure(logits[0, at - 1].float(), targets)
            found = torch.autograd.grad(measured, list(noted.values()), allow_unused=True)
        pairs = zip(noted.items(), found, strict=True)
        grads = {name: torch.zeros_like(value) if grad is None else grad for (name, value), grad in pairs}
        shaped = {name: grads[name].reshape(-1, *map(int, vlm.shape(Site.parse(name))[2:])) for name in sites}
        return {name: each.detach().float() for name, each in {**grads, **shaped}.items()}


def _noting(noted: dict[str, Tensor], name: str, _: Batch | None) -> list[Move]:
    """What notes the tensor of a site."""

    def note(passing: Tensor) -> None:
        noted[name] = passing

    return [note]


@contextmanager
def _beginning(vlm: Vlm) -> Iterator[None]:
    """Let gradients begin with what goes into the decoder: weights take none."""
    place = vlm.point("lm.embed").place

    def begin(_: Any) -> list[Move]:
        return [lambda stream: stream.detach().requires_grad_()]

    weights = [each for each in vlm.model.parameters() if each.requires_grad]
    for each in weights:
        each.requires_grad_(False)
    try:
        with vlm.wiring.taps.attach(place, Phase.EDIT, begin):
            yield
    finally:
        for each in weights:
            each.requires_grad_()


@contextmanager
def _without(vlm: Vlm, layer: int) -> Iterator[None]:
    """Let no gradient pass through what a layer adds to the stream."""
    notes: dict[str, Tensor] = {}
    block = vlm.anatomy.layers[layer].block

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        notes["stream"] = args[0] if args else kwargs["hidden_states"]

    def after(_: Any, __: Any, output: Any) -> Any:
        out = output[0] if isinstance(output, tuple) else output
        kept = notes["stream"] + (out - notes["stream"]).detach()
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    with ExitStack() as stack:
        stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(block.register_forward_hook(after).remove)
        yield


def _product(gradient: Tensor, changes: Tensor) -> Float[Tensor, tokens * heads]:
    """Gradient times change, summed over the features of each token, or of each of its heads."""
    return (gradient.to(changes.device) * changes.float()).sum(-1)
