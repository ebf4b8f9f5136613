"""What a model would say if it stopped at a layer: the logit lens, and the tuned lens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import kl_div, linear
from tqdm import tqdm

from seamscope.hooks import Batch, RunError, Site, SiteError, SpanError, StoreError, Vlm, capture, choose

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Logits = Float[Tensor, "*any vocab"]
    Stream = Float[Tensor, "*any d_model"]

STREAMS: Final = ("embed", "resid_pre", "resid_mid", "resid_post")
PARTS: Final = ("weight", "bias")
LOSSES: Final = ("before", "after", "held_out_before", "held_out_after")
FORMAT: Final = "seamscope tuned lens 1"
NUMBERS: Final = 2**26  # logits that are held at once
ANOTHER: Final = 0.1  # share of the largest logit by which a head may miss another that differs in precision only
_TOKENS: Final = "read by a lens"  # the span of all tokens that a lens is fitted on


class Lens(Protocol):
    """Reads residual streams as logits."""

    @property
    def vlm(self) -> Vlm:
        """The model whose streams it reads."""

    def require(self, site: str | Site) -> Site:
        """Raise `SiteError` for a site that it cannot read."""

    def __call__(self, site: str | Site, stream: Stream) -> Logits:
        """Give the logits that a stream has at a site."""


@dataclass(frozen=True)
class LogitLens:
    """The logit lens (nostalgebraist 2020): a residual stream through the model's own final norm and head.

    It reads every residual stream of the decoder: `lm.embed` and `lm.L.resid_pre | resid_mid | resid_post`. At the last
    `resid_post` its logits are the model's.
    """

    vlm: Vlm

    def require(self, site: str | Site) -> Site:
        """Raise `SiteError` for what is no residual stream of the decoder, such as `lm.final_norm`: it is normed."""
        return _require_stream(self.vlm, site, STREAMS)

    def __call__(self, site: str | Site, stream: Stream) -> Logits:
        """Give logits in the model's dtype and on its device, without gradients; `stream` may be anywhere."""
        self.require(site)
        with torch.no_grad():
            return self.vlm.unembed(_at_home(self.vlm, site, stream))


@dataclass(frozen=True, eq=False)
class TunedLens:
    """The tuned lens (Belrose et al., 2303.08112): a stream x is read as x + A x + b by the model's norm and head.

    `weights` and `biases` are A and b in float32, one for each decoder layer but the last, whose logits are the model's
    own. `losses` has one row for each `layer`: the mean KL(final || lens) in nats, `before` and `after` fitting, on the
    tokens that it was fitted on and on `held_out` ones. `fitted` says what it was fitted with. Made by
    `fit_tuned_lens` or `load_tuned_lens`.
    """

    vlm: Vlm
    weights: tuple[Float[Tensor, "d_model d_model"], ...]
    biases: tuple[Float[Tensor, " d_model"], ...]
    losses: pd.DataFrame
    fitted: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"TunedLens({self.vlm.name!r}, {len(self.weights)} translators of width {self.vlm.d_model})"

    def require(self, site: str | Site) -> Site:
        """Raise `SiteError` for everything but `lm.L.resid_post`, where the translators were fitted."""
        return _require_stream(self.vlm, site, ("resid_post",))

    def __call__(self, site: str | Site, stream: Stream) -> Logits:
        """Give logits in the model's dtype and on its device, without gradients; `stream` may be anywhere."""
        layer = self.require(site).layer or 0
        home = _at_home(self.vlm, site, stream)
        with torch.no_grad():
            if layer < len(self.weights):
                home = _translated(home, self.weights[layer], self.biases[layer])
            return self.vlm.unembed(home)

    def save(self, path: str | Path) -> None:
        """Write the lens as safetensors, whole or not at all; `StoreError` if that fails."""
        place = Path(path)
        partial = place.with_name(f".{place.name}.partial")
        losses = torch.tensor(self.losses[list(LOSSES)].to_numpy()).contiguous()
        held = [(weight.cpu(), bias.cpu()) for weight, bias in zip(self.weights, self.biases, strict=True)]
        tensors = _tensors(held, losses, _head(self.vlm))
        try:
            save_file(tensors, partial, _identity(self.vlm) | _sealed(tensors, self.fitted))
            os.replace(partial, place)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot write {place}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)


def load_tuned_lens(path: str | Path, vlm: Vlm) -> TunedLens:
    """Read what `TunedLens.save` wrote, for the same model.

    Raises `RunError` for the lens of another model, width or number of layers, and `StoreError` for a file that is
    damaged, not there, or no tuned lens.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise StoreError(f"{path} is not a tuned lens of seamscope")
            _require_same(path, about, _identity(vlm))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        fitted = json.loads(about.get("fitted", ""))
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"cannot read {path} as a tuned lens: {error}") from error
    if about != _identity(vlm) | _sealed(tensors, fitted):
        raise StoreError(f"{path} is damaged: its content differs from its checksum")
    _require_translators(path, tensors, vlm)
    layers = range(vlm.n_layers - 1)
    return TunedLens(
        vlm,
        weights=tuple(tensors[f"{layer}.weight"].to(vlm.device) for layer in layers),
        biases=tuple(tensors[f"{layer}.bias"].to(vlm.device) for layer in layers),
        losses=_losses_table(tensors["losses"]),
        fitted=fitted,
    )


def fit_tuned_lens(
    vlm: Vlm,
    batches: Sequence[Batch],
    *,
    held_out: Sequence[Batch],
    spans: str | Sequence[str] | None = None,
    steps: int = 500,
    learning_rate: float = 1e-3,
    batch_size: int = 512,
    seed: int = 0,
    progress: bool = False,
) -> TunedLens:
    """Fit the translators of all layers at once, by Adam with a rate that falls to zero, starting from identity.

    The model runs once over each batch; its streams are kept in memory, `n_layers * d_model` numbers for each token.

    Args:
        vlm: the model, which stays as it is.
        batches: what it is fitted on.
        held_out: what it is only tried on; no image or question of it should be in `batches`.
        spans: names of the spans whose tokens count, each token once; None: every token but padding.
        steps: number of steps; with 0 it is the logit lens.
        learning_rate: the rate of the first step.
        batch_size: tokens of a step, drawn with replacement.
        seed: of these draws.
        progress: show a progress bar.

    Raises:
        SpanError: for spans that no batch has.
        RunError: for numbers out of range, no batches, or a fit that diverges.
    """
    if steps < 0 or learning_rate <= 0 or batch_size < 1:
        raise RunError(f"{steps=}, {learning_rate=}, {batch_size=}; expected at least 0, above 0, at least 1")
    names = [spans] if isinstance(spans, str) else spans
    seen, unseen = (_streams(vlm, each, names) for each in (batches, held_out))
    start = _begun(vlm, vlm.device)
    made = _trained(vlm, seen, start, steps=steps, rate=learning_rate, size=batch_size, seed=seed, progress=progress)
    columns = [_divergences(vlm, streams, each) for streams in (seen, unseen) for each in (start, made)]
    losses = torch.stack(columns, dim=1)
    if not losses.isfinite().all() or losses[:, 1].sum() > losses[:, 0].sum():
        raise RunError(f"the fit diverges: it ends farther from the model than it began; lower {learning_rate=}")
    fitted = {"spans": None if names is None else list(names), "steps": steps, "learning_rate": learning_rate}
    sizes = {"batch_size": batch_size, "seed": seed, "tokens": seen.shape[1], "held_out_tokens": unseen.shape[1]}
    weights, biases = zip(*made, strict=True) if made else ((), ())
    return TunedLens(vlm, weights, biases, losses=_losses_table(losses), fitted=fitted | sizes)


class TokenRanks(NamedTuple):
    """Of some tokens in logits: `rank` (0 is the likeliest) and `logprob` (float32, nats)."""

    rank: Int[Tensor, "*any k"]
    logprob: Float[Tensor, "*any k"]


def token_ranks(logits: Logits, tokens: Int[Tensor, "*any k"]) -> TokenRanks:
    """Rank `k` tokens at each place among the whole vocabulary; ties, and what is no number, count against them.

    Raises `RunError` for shapes that do not go together, or tokens outside the vocabulary.
    """
    if logits.shape[:-1] != tokens.shape[:-1]:
        raise RunError(
            f"logits {tuple(logits.shape)} and tokens {tuple(tokens.shape)} differ before the last dimension"
        )
    tokens = tokens.to(logits.device)
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < logits.shape[-1]:
        raise RunError(
            f"tokens go from {int(tokens.min())} to {int(tokens.max())}; the vocabulary has {logits.shape[-1]}"
        )
    own = logits.gather(-1, tokens)
    rank = torch.empty_like(tokens)
    for k in range(tokens.shape[-1]):  # all at once would take k times the memory of the logits
        rank[..., k] = (~(logits < own[..., k, None])).sum(-1) - 1
    return TokenRanks(rank, own.float() - logits.float().logsumexp(-1, keepdim=True))


def lens_ranks(
    lens: Lens, site: str | Site, stream: Float[Tensor, "tokens d_model"], tokens: Int[Tensor, "tokens k"]
) -> TokenRanks:
    """Rank `k` tokens at each token of a stream, on the CPU, without ever holding the logits of many."""
    size = _at_once(lens.vlm)
    parts = zip(torch.split(stream, size), torch.split(tokens, size), strict=True)
    found = [token_ranks(lens(site, here), sought) for here, sought in parts]
    return TokenRanks(*(torch.cat([each.cpu() for each in column]) for column in zip(*found, strict=True)))


Translator = tuple[Tensor, Tensor]


def _require_stream(vlm: Vlm, site: str | Site, kinds: Sequence[str]) -> Site:
    found = vlm.point(site).site
    if found.stack != "lm" or found.kind not in kinds:
        known = ", ".join("lm.embed" if kind == "embed" else f"lm.L.{kind}" for kind in kinds)
        raise SiteError(f"this lens cannot read {found}: it norms and unembeds the residual stream, so one of {known}")
    return found


def _at_home(vlm: Vlm, site: str | Site, stream: Tensor) -> Tensor:
    """A stream where the model takes it; `SiteError` for one of another width."""
    if stream.ndim < 1 or stream.shape[-1] != vlm.d_model:
        raise SiteError(f"{site}: the stream has shape {tuple(stream.shape)}, but its last size must be {vlm.d_model}")
    return stream.to(vlm.device, vlm.dtype)


def _translated(stream: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x + A x + b, in float32 at least, and in the stream's dtype again."""
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return (wide + linear(wide, weight.to(wide), bias.to(wide))).to(stream.dtype)


def _streams(vlm: Vlm, batches: Sequence[Batch], spans: Sequence[str] | None) -> Float[Tensor, "layers tokens d_model"]:
    """The output of every layer at the chosen tokens of all batches, each token once."""
    if not batches:
        raise RunError("nothing to fit or to try a lens on: an empty list of batches")
    known = dict.fromkeys(name for batch in batches for row in batch.spans for name in row)
    for name in spans or ():
        choose("span", name, known, SpanError)
    chosen = [replace(batch, spans=_marked(batch, spans)) for batch in batches]
    total = sum(len(row[_TOKENS]) for batch in chosen for row in batch.spans)
    if not total:
        raise SpanError(f"the batches have no tokens of the spans {spans}")
    sites = [f"lm.{layer}.resid_post" for layer in range(vlm.n_layers)]
    held = torch.empty(len(sites), total, vlm.d_model, dtype=vlm.dtype)
    start = 0
    for batch in chosen:
        with capture(vlm, sites, spans=_TOKENS) as acts:
            vlm.forward(batch, logits_to_keep=1)
        count = acts[sites[0], _TOKENS].values.shape[0]
        for layer, site in enumerate(sites):
            held[layer, start : start + count] = acts[site, _TOKENS].values
        start += count
    return held


def _marked(batch: Batch, spans: Sequence[str] | None) -> tuple[dict[str, Tensor], ...]:
    """One span for each row: all its tokens of some spans, or all but padding."""
    if spans is None:
        return tuple({_TOKENS: mask.nonzero().flatten().cpu()} for mask in batch.inputs["attention_mask"])
    return tuple({_TOKENS: _union([row[name] for name in spans if name in row])} for row in batch.spans)


def _union(positions: list[Tensor]) -> Tensor:
    return torch.unique(torch.cat([torch.zeros(0, dtype=torch.long), *positions]))  # type: ignore[no-any-return]


def _begun(vlm: Vlm, device: torch.device) -> list[Translator]:
    size = vlm.d_model
    return [(torch.zeros(size, size, device=device), torch.zeros(size, device=device)) for _ in range(vlm.n_layers - 1)]


def _trained(
    vlm: Vlm,
    streams: Tensor,
    start: list[Translator],
    *,
    steps: int,
    rate: float,
    size: int,
    seed: int,
    progress: bool,
) -> list[Translator]:
    """Take all steps; only the translators get gradients, one layer's logits are held at a time."""
    made = [(weight.clone().requires_grad_(), bias.clone().requires_grad_()) for weight, bias in start]
    if not made or not steps:
        return start
    optimizer = torch.optim.Adam([each for pair in made for each in pair], lr=rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    draw = torch.Generator().manual_seed(seed)
    for _ in tqdm(range(steps), desc="tuned lens", unit="step", disable=not progress):
        tokens = torch.randint(streams.shape[1], (size,), generator=draw)
        here = streams[:, tokens].to(vlm.device)
        final = _final(vlm, here[-1])
        for pair, stream in zip(made, here, strict=False):  # the last layer has no translator
            torch.autograd.backward(_divergence(vlm, final, _translated(stream, *pair)), inputs=pair)
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    return [(weight.detach(), bias.detach()) for weight, bias in made]


def _divergences(vlm: Vlm, streams: Tensor, made: list[Translator]) -> Float[Tensor, " layers"]:
    """Mean KL(final || lens) of every layer, in nats; the last one's is 0."""
    sums = torch.zeros(len(streams), dtype=torch.float64)
    with torch.no_grad():
        for part in torch.split(streams, _at_once(vlm), dim=1):
            here = part.to(vlm.device)
            final = _final(vlm, here[-1])
            for layer, stream in enumerate(here):
                read = _translated(stream, *made[layer]) if layer < len(made) else stream
                sums[layer] += _divergence(vlm, final, read).cpu()
    return sums / streams.shape[1]


def _at_once(vlm: Vlm) -> int:
    """How many tokens' logits are held at once."""
    return max(1, NUMBERS // int(vlm.shapes()["lm.logits"][-1]))


def _final(vlm: Vlm, stream: Tensor) -> Tensor:
    with torch.no_grad():
        return vlm.unembed(stream).float().log_softmax(-1)


def _divergence(vlm: Vlm, final: Tensor, stream: Tensor) -> Tensor:
    """KL(final || lens), summed over tokens: means would underflow as gradients of float16."""
    return kl_div(vlm.unembed(stream).float().log_softmax(-1), final, reduction="sum", log_target=True)


def _losses_table(losses: Tensor) -> pd.DataFrame:
    table = pd.DataFrame(losses.numpy(), columns=list(LOSSES))
    table.insert(0, "layer", range(len(table)))
    return table


def _identity(vlm: Vlm) -> dict[str, str]:
    """What a lens belongs to, as a file says it."""
    return {"format": FORMAT, "model": vlm.name, "d_model": str(vlm.d_model), "n_layers": str(vlm.n_layers)}


def _sealed(tensors: Mapping[str, Tensor], fitted: Mapping[str, Any]) -> dict[str, str]:
    """How a lens was fitted, and a checksum of that and of all tensors, their names and shapes."""
    told = json.dumps(fitted, sort_keys=True)
    digest = sha256(told.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"fitted": told, "sha256": digest.hexdigest()}


def _tensors(made: Sequence[Translator], losses: Tensor, head: Tensor) -> dict[str, Tensor]:
    """What a file holds, by name."""
    named = {f"{layer}.{what}": each for layer, pair in enumerate(made) for what, each in zip(PARTS, pair, strict=True)}
    return named | {"losses": losses, "head": head}


def _require_same(path: str | Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    other = [f"{name} {theirs.get(name)}, not {value}" for name, value in ours.items() if theirs.get(name) != value]
    if other:
        raise RunError(f"{path} is a lens of another model: {'; '.join(other)}; load that one, or fit a lens of this")


def _head(vlm: Vlm) -> Float[Tensor, " vocab"]:
    """What the model's head makes of one fixed stream: it tells models of one name apart."""
    stream = torch.linspace(-1, 1, vlm.d_model).to(vlm.device, vlm.dtype)
    with torch.no_grad():
        return vlm.unembed(stream).float().cpu()


def _require_translators(path: str | Path, tensors: Mapping[str, Tensor], vlm: Vlm) -> None:
    """Refuse a file without all that a lens of this model has, or made for a model of the same name only."""
    head = _head(vlm)
    losses = torch.zeros(vlm.n_layers, len(LOSSES), dtype=torch.float64)
    wanted = _tensors(_begun(vlm, torch.device("meta")), losses, head)
    forms, ours = ({name: (each.dtype, each.shape) for name, each in held.items()} for held in (tensors, wanted))
    if forms != ours:
        raise StoreError(f"{path} does not hold what a lens of {vlm.name!r} has: {len(ours)} tensors of its sizes")
    if (tensors["head"] - head).abs().max() > ANOTHER * head.abs().max():
        raise RunError(f"{path} is a lens of other weights than those of {vlm.name!r}; fit a lens of this model")
