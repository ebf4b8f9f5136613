"""Path patching: what a change at one site does to a later one along the residual stream, and by no other way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from seamscope.hooks._capture import capture
from seamscope.hooks._cells import STREAMS, Edit, edits_before
from seamscope.hooks._editing import editing
from seamscope.hooks._errors import SiteError
from seamscope.hooks._site import Site

if TYPE_CHECKING:
    from seamscope.hooks._recording import Recording
    from seamscope.hooks._replay import Replay

WRITERS: Final = ("head_z", "attn_out", "cross_attn_out", "mlp_out")
ATTENDING: Final = ("head_z", "attn_out", "cross_attn_out")


def direct_path(run: Replay, sender: Edit, receiver: str) -> Edit:
    """The edit of `receiver` that stands for the path to it from `sender` through the residual stream alone.

    Everything between the two, attention and MLPs, stays as it is in the unpatched run (2304.05969). Score the edit,
    and beside it the sender's own: what one path does is no share of what all do together.

    Args:
        run: the run that is patched.
        sender: an edit of a decoder's `head_z, attn_out, cross_attn_out, mlp_out`, or of its residual stream.
        receiver: `head_z, attn_out, cross_attn_out` or `mlp_out` of a later layer; `mlp_out` also of the sender's own
            layer; or `resid_post` of the last layer, for what goes straight to the logits.

    Raises:
        SiteError, SpanError: where there is no such path, or the sender is no edit of this run.
    """
    run.check([sender])
    source, target = run.vlm.point(sender.site).site, run.vlm.point(receiver).site
    last = run.vlm.n_layers - 1
    begin, end = _leaves(source), _enters(target)
    if source.stack != "lm" or source.kind not in (*WRITERS, *STREAMS) or target.kind not in (*WRITERS, "resid_post"):
        raise SiteError(f"there is no path from {source} to {target}; see direct_path for the sites that it knows")
    if begin > end or (target.kind == "resid_post" and target.layer != last):
        raise SiteError(f"there is no direct path from {source} to {target}; the receiver must be a later layer's")
    record = run.recording
    (sender,) = edits_before([sender], record.stop) or [_nothing(run, sender)]
    change = _change(run, sender, source) * _scales(record, _closing(source), int(end))
    positions = sender.positions.cpu()
    if target.kind == "resid_post":
        return Edit(site=receiver, positions=positions, values=_at(record.posts[-1], positions) + change)
    layer = target.number
    if target.kind == "mlp_out":
        mid = f"lm.{layer}.resid_mid"
        (base,) = _inside(run, layer, positions, [], [mid])
        (values,) = _inside(
            run, layer, positions, [Edit(site=mid, positions=positions, values=base + change)], [receiver]
        )
        return Edit(site=receiver, positions=positions, values=values)
    start = record.firsts[int(positions.min())]
    stream = record.streams[layer][:, start : record.stop].clone()
    stream[0, (positions - start).to(stream.device)] += change.to(stream)
    with capture(run.vlm, receiver) as acts:
        record.one(layer, start, stream)
    return Edit(site=receiver, positions=torch.arange(start, record.stop), values=acts[receiver][0])


def _nothing(run: Replay, sender: Edit) -> Edit:
    """An edit that writes what is there: what comes after all that is read reaches nothing."""
    at = torch.tensor([run.recording.stop - 1])
    if sender.at.kind in STREAMS:
        return replace(sender, positions=at, values=_at(_stream(run.recording, sender.at), at))
    (values,) = _inside(run, sender.at.number, at, [], [sender.site])
    return replace(sender, positions=at, values=values)


def _leaves(site: Site) -> float:
    """From which layer's input on a change at a site is in the stream; half of one between attention and MLP."""
    behind = {"embed": 0, "resid_pre": 0, "mlp_out": 1, "resid_post": 1}.get(site.kind, 0.5)
    return site.number + behind


def _enters(site: Site) -> float:
    return site.number + {"mlp_out": 0.5, "resid_post": 1}.get(site.kind, 0)


def _closing(site: Site) -> int:
    """The first layer at whose end a change at a site is in the stream."""
    return site.number + (site.kind in ("resid_post", "mlp_out"))


def _change(run: Replay, sender: Edit, site: Site) -> Tensor:
    """By how much the stream changes at the sender's positions, (n, d_model)."""
    positions = sender.positions.cpu()
    if site.kind in STREAMS:
        base = _at(_stream(run.recording, site), positions)
        return sender.values.to(base) - base
    after = f"lm.{site.number}.{'resid_mid' if site.kind in ATTENDING else 'resid_post'}"
    (base,), (new,) = (_inside(run, site.number, positions, edits, [after]) for edits in ([], [sender]))
    return new - base


def _stream(record: Recording, site: Site) -> Tensor:
    """A residual stream of the recorded run, (1, pos, d_model)."""
    return record.posts[site.number] if site.kind == "resid_post" else record.streams[site.number]


def _inside(run: Replay, layer: int, positions: Tensor, edits: Sequence[Edit], sites: Sequence[str]) -> list[Tensor]:
    """What sites inside a layer hold at some positions, with edits of these; (n, *feature) each."""
    numbered = [replace(edit, positions=torch.arange(len(positions))) for edit in edits]
    with capture(run.vlm, sites) as acts, editing(run.vlm, run.batch, [numbered], len(positions)):
        run.recording.inside(layer, positions, None)
    return [acts[site][0] for site in sites]


def _scales(record: Recording, begin: int, end: int) -> Tensor | float:
    """By what the stream is multiplied on the way, in families that do so at the end of their layers."""
    found: Tensor | float = 1.0
    for layer in record.vlm.anatomy.layers[begin:end]:
        if layer.scale is not None:
            found = found * layer.scale
    return found


def _at(stream: Tensor, positions: Tensor) -> Tensor:
    return stream[0, positions.to(stream.device)]
