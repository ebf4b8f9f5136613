"""Cheap self-checks: whether a model's sites are what their names say, run at load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from seamscope.hooks._errors import SpanError
from seamscope.hooks._knockout import knockout
from seamscope.hooks._patch import Patch, patch
from seamscope.hooks._trial import Trial, prompt, run_trial

if TYPE_CHECKING:
    from torch import Tensor

    from seamscope.hooks._batch import Padding
    from seamscope.hooks._prompt import Prompt
    from seamscope.hooks._vlm import Vlm

# How far two runs of the same thing may differ, as a share of the largest number.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Check:
    """The outcome of one self-check; `detail` says what was found, `seconds` how long it took."""

    name: str
    passed: bool
    detail: str
    seconds: float


def run_checks(vlm: Vlm) -> list[Check]:
    """Run a model on noise and compare what its sites give with what they must give.

    About a dozen short forward passes. Nothing is raised: a check that cannot be run has failed.
    """
    trials: list[Trial] = []
    checks = [_timed("runs", lambda: trials.append(run_trial(vlm)))]
    for name, check in CHECKS.items():
        checks += [_timed(name, partial(check, trial)) for trial in trials]
    return checks


def _timed(name: str, check: Callable[[], str | None]) -> Check:
    start = perf_counter()
    try:
        with torch.inference_mode():
            problem = check()
    except Exception as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
    return Check(name, problem is None, problem or "as expected", perf_counter() - start)


def _spans(trial: Trial) -> str | None:
    """Every stack has the tokens that its layout says, and what enters the decoder is what the projector gave there."""
    visual = trial.batch.visual
    assert visual is not None  # both prompts have an image
    for site in trial.sites:
        point = trial.vlm.point(site)
        held = point.count(trial.acts[site])
        if point.site.visual and held != visual.sizes[point.site.tokens]:
            return f"{site} holds {held} tokens, its layout says {visual.sizes[point.site.tokens]}"
    ((geometry,), *_) = visual.geometries
    if isinstance(geometry.maps, SpanError):
        raise geometry.maps
    places = {tuple(place): number for number, place in enumerate(geometry.layout.projector)}
    pairs = [(k, places[tuple(place)]) for k, place in enumerate(geometry.layout.lm) if tuple(place) in places]
    if not pairs:  # no image token shows what one vector of the projector shows
        return None
    numbers, sources = torch.tensor(pairs).T
    embedded = trial.acts["lm.embed"][0, trial.batch.positions("image")[0][numbers]]
    features = trial.acts["projector.out"].reshape(-1, embedded.shape[-1])[sources]
    added = (embedded - features)[:1]  # zero, or what the model adds to every feature
    far = _apart(embedded - added, features)
    return f"lm.embed at the span image is not projector.out ({far})" if far else None


def _capture(trial: Trial) -> str | None:
    """Capture changes nothing, and gives the model's own hidden states (the last of which is normed)."""
    if far := _apart(trial.watched, trial.logits):
        return f"capture changes the logits by {far}"
    for layer in trial.layers:
        if 0 < layer <= len(trial.vlm.anatomy.deepstack):
            continue  # the model's hidden state is the one before DeepStack's features are added
        if not torch.equal(trial.acts[f"lm.{layer}.resid_pre"], trial.hidden[layer]):
            return f"lm.{layer}.resid_pre is not the model's hidden state {layer}"
    if far := _apart(trial.vlm.cap(trial.acts["lm.logits"]), trial.watched):
        return f"lm.logits miss the model's logits by {far}"
    return None


def _residual_stream(trial: Trial) -> str | None:
    """The sites of a layer add up as their names say."""
    (last,) = trial.batch.positions("last")[0]
    for layer in trial.layers:
        parts = trial.vlm.anatomy.layers[layer]
        attn_out = "cross_attn_out" if parts.crossed else "attn_out"
        kinds = ("resid_pre", "head_z", attn_out, "resid_mid", "mlp_out", "resid_post")
        pre, z, attn, mid, mlp, post = (trial.acts[f"lm.{layer}.{kind}"][:, last] for kind in kinds)
        mixed = parts.o_proj(z.flatten(-2))
        if far := _apart(mixed if parts.attn_out is parts.attn else parts.attn_out(mixed), attn):
            return f"lm.{layer}.head_z does not give {attn_out} ({far})"
        if far := _apart(pre + parts.added("attn_out", attn), mid):
            return f"lm.{layer}.resid_mid is not resid_pre + {attn_out} ({far})"
        if far := _apart(parts.close(mid, mlp), post):
            return f"lm.{layer}.resid_post is not resid_mid + mlp_out ({far})"
    return None


def _lens(trial: Trial) -> str | None:
    """The last residual stream, normed once and unembedded, is the logits."""
    far = _apart(trial.vlm.unembed(trial.acts[f"lm.{trial.vlm.n_layers - 1}.resid_post"]), trial.watched)
    return f"unembedding the last resid_post misses the logits by {far}" if far else None


def _self_patch(trial: Trial) -> str | None:
    """Writing a run's own activations back changes nothing: all at once, then, if need be, one by one."""
    if not _far_with(trial, [Patch(site, trial.acts[site]) for site in trial.sites], trial.logits):
        return None
    blamed = (site for site in trial.sites if _far_with(trial, [Patch(site, trial.acts[site])], trial.logits))
    return f"patching {next(blamed, 'all sites together')} with its own activations changes the logits"


def _layer_swap(trial: Trial) -> str | None:
    """Exchanging a whole layer, and what comes to later ones past it, exchanges the prompts' logits."""
    for layer in trial.layers[1:]:
        site = f"lm.{layer}.resid_pre"
        if far := _far_with(trial, _exchanged(trial, (site, *trial.vlm.entering(layer))), trial.logits.flip(0)):
            return f"patching {site} with the other prompt's misses the other prompt's logits by {far}"
    return None


def _visual_route(trial: Trial) -> str | None:
    """Exchanging the tower's layers, or what comes to the decoder, exchanges the images: there is no other way."""
    if torch.equal(trial.logits[0], trial.logits[1]):
        return "another image gives the same logits"
    tower = tuple(f"vision.{layer}.resid_post" for layer in range(trial.vlm.n_vision_layers))
    for route in (tower, trial.vlm.routes):
        if route and (far := _far_with(trial, _exchanged(trial, route), trial.logits.flip(0))):
            return f"patching {', '.join(route)} with the other image's misses its logits by {far}"
    return None


def _exchanged(trial: Trial, sites: Sequence[str]) -> list[Patch]:
    """Patches that give each of the two prompts the other's activations; a tower may put both into one sequence."""
    values = {site: trial.acts[site] for site in sites}
    halves = {site: (value if value.shape[0] > 1 else value[0]).chunk(2) for site, value in values.items()}
    return [Patch(site, torch.cat(halves[site][::-1]).view_as(value)) for site, value in values.items()]


def _knockout(trial: Trial) -> str | None:
    """With the image cut from everything in every layer, the image makes no difference to the last token."""
    with knockout(trial.vlm, queries="prompt", keys="image", layers=range(trial.vlm.n_layers)):
        logits = trial.vlm.forward(trial.batch)
    (last,) = trial.batch.positions("last")[0]
    far = _apart(logits[0, last], logits[1, last])
    return f"with the image cut off, it still changes the last logits by {far}" if far else None


def _positions(trial: Trial) -> str | None:
    """Where nothing is padded, the positions that the model counts by itself give the same logits as ours.

    In full precision only: a model that counts from 1 rounds its rotations otherwise.
    """
    if trial.vlm.dtype not in (torch.float32, torch.float64):
        return None
    given = {name: value for name, value in trial.batch.inputs.items() if name != "position_ids"}
    kept = {module: module.rope_deltas for module in trial.vlm.model.modules() if hasattr(module, "rope_deltas")}
    alone = trial.vlm.model(**given, **trial.batch.extra, use_cache=False).logits
    for module, deltas in kept.items():  # Qwen-VL remembers where it stopped counting
        module.rope_deltas = deltas
    far = _apart(alone, trial.logits, slack=5)
    return f"the model's own positions give other logits ({far})" if far else None


def _padding(trial: Trial) -> str | None:
    """A batch equals its items alone, whichever side is padded."""
    vlm = trial.vlm
    pictured, textual = [prompt(vlm, 5, image=0), prompt(vlm, 2, image=1)], [prompt(vlm, n, image=None) for n in (3, 5)]
    sides: tuple[Padding, ...] = ("left", "right")
    for prompts in [pictured + textual] if vlm.family.mixed_rows else [pictured, textual]:
        alone = torch.cat([_last_logits(vlm, [each]) for each in prompts])
        for side in sides:
            if far := _apart(_last_logits(vlm, prompts, side), alone):
                return f"padded on the {side}, a batch misses its items alone by {far}"
    return None


CHECKS: dict[str, Callable[[Trial], str | None]] = {
    "spans": _spans,
    "capture": _capture,
    "residual_stream": _residual_stream,
    "lens": _lens,
    "self_patch": _self_patch,
    "layer_swap": _layer_swap,
    "visual_route": _visual_route,
    "knockout": _knockout,
    "positions": _positions,
    "padding": _padding,
}


def _far_with(trial: Trial, patches: list[Patch], wanted: Tensor) -> str | None:
    with patch(trial.vlm, patches):
        return _apart(trial.vlm.forward(trial.batch), wanted)


def _last_logits(vlm: Vlm, prompts: list[Prompt], side: Padding = "left") -> Tensor:
    batch = vlm.encode(prompts, padding=side)
    last = torch.cat(batch.positions("last"))
    return vlm.forward(batch)[torch.arange(len(batch)), last]


def _apart(got: Tensor, wanted: Tensor, *, slack: float = 1) -> str | None:
    """Give the difference as a share of the largest number wanted, or None if it is within tolerance."""
    if got.shape != wanted.shape:
        return f"shapes {tuple(got.shape)} and {tuple(wanted.shape)}"
    far = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    return None if far <= slack * _TOLERANCE.get(wanted.dtype, 1e-4) else f"{far:.1e} of the largest"
