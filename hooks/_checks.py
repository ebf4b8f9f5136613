"""Cheap self-checks: whether a model's sites are what their names say, run at load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from seamscope.hooks._knockout import knockout
from seamscope.hooks._patch import Patch, patch
from seamscope.hooks._select import Selection
from seamscope.hooks._trial import Trial, prompt, run_trial

if TYPE_CHECKING:
    from torch import Tensor

    from seamscope.hooks._batch import Padding
    from seamscope.hooks._prompt import Prompt
    from seamscope.hooks._vlm import Vlm

# How far two runs of the same thing may differ, as a share of the largest number.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 2e-2, torch.bfloat16: 5e-2}


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
    """Placeholders, the span and the features are equally many, and what enters the decoder are the features."""
    placeholders = int((trial.batch.inputs["input_ids"] == trial.vlm.model.config.image_token_id).sum())
    named = sum(len(each) for each in trial.batch.positions("image"))
    features = trial.acts["projector.out"].shape[:-1].numel()
    if not placeholders == named == features:
        return f"{placeholders} placeholders, {named} positions in the span image, {features} image features"
    embed = trial.vlm.point("lm.embed")
    index = Selection(trial.batch, "image").index(embed.site)
    embedded = embed.take(trial.acts["lm.embed"], index)
    far = _apart(embedded, trial.acts["projector.out"].reshape(embedded.shape))
    return f"lm.embed at the span image is not projector.out ({far})" if far else None


def _capture(trial: Trial) -> str | None:
    """Capture changes nothing, and gives the model's own hidden states (the last of which is normed)."""
    if far := _apart(trial.watched, trial.logits):
        return f"capture changes the logits by {far}"
    for layer in trial.layers:
        if not torch.equal(trial.acts[f"lm.{layer}.resid_pre"], trial.hidden[layer]):
            return f"lm.{layer}.resid_pre is not the model's hidden state {layer}"
    if not torch.equal(trial.acts["lm.logits"], trial.watched):
        return "lm.logits are not the model's logits"
    return None


def _residual_stream(trial: Trial) -> str | None:
    """The sites of a layer add up as their names say."""
    acts = trial.acts
    for layer in trial.layers:
        kinds = ("resid_pre", "attn_out", "resid_mid", "mlp_out")
        at = {kind: acts[f"lm.{layer}.{kind}"] for kind in kinds}
        project = trial.vlm.anatomy.part(layer, "o_proj")
        if far := _apart(project(acts[f"lm.{layer}.head_z"].flatten(-2)), at["attn_out"]):
            return f"lm.{layer}.head_z does not give attn_out ({far})"
        if far := _apart(at["resid_pre"] + at["attn_out"], at["resid_mid"]):
            return f"lm.{layer}.resid_mid is not resid_pre + attn_out ({far})"
        if far := _apart(at["resid_mid"] + at["mlp_out"], acts[f"lm.{layer}.resid_post"]):
            return f"lm.{layer}.resid_post is not resid_mid + mlp_out ({far})"
    return None


def _lens(trial: Trial) -> str | None:
    """The last residual stream, normed once and unembedded, is the logits."""
    anatomy, last = trial.vlm.anatomy, trial.acts[f"lm.{trial.vlm.n_layers - 1}.resid_post"]
    far = _apart(anatomy.head(anatomy.norm(last)), trial.watched)
    return f"unembedding the last resid_post misses the logits by {far}" if far else None


def _self_patch(trial: Trial) -> str | None:
    """Writing a run's own activations back changes nothing: all at once, then, if need be, one by one."""
    if not _far_with(trial, [Patch(site, trial.acts[site]) for site in trial.sites], trial.logits):
        return None
    blamed = (site for site in trial.sites if _far_with(trial, [Patch(site, trial.acts[site])], trial.logits))
    return f"patching {next(blamed, 'all sites together')} with its own activations changes the logits"


def _layer_swap(trial: Trial) -> str | None:
    """Exchanging a whole layer between the two prompts exchanges their logits."""
    for layer in trial.layers[1:]:
        site = f"lm.{layer}.resid_pre"
        if far := _far_with(trial, [Patch(site, trial.acts[site].flip(0))], trial.logits.flip(0)):
            return f"patching {site} with the other prompt's misses the other prompt's logits by {far}"
    return None


def _visual_route(trial: Trial) -> str | None:
    """Exchanging what the projector reads, or gives, exchanges the images: there is no other way."""
    if torch.equal(trial.logits[0], trial.logits[1]):
        return "another image gives the same logits"
    read = [f"vision.{layer}.resid_post" for layer in trial.vlm.vision_read_layers if layer >= 0]
    for route in (read, ["projector.out"]):
        swapped = [Patch(site, trial.acts[site].flip(0)) for site in route]
        if route and (far := _far_with(trial, swapped, trial.logits.flip(0))):
            return f"patching {', '.join(route)} with the other image's misses its logits by {far}"
    return None


def _knockout(trial: Trial) -> str | None:
    """With the image cut from everything in every layer, the image makes no difference to the last token."""
    with knockout(trial.vlm, queries="prompt", keys="image", layers=range(trial.vlm.n_layers)):
        logits = trial.vlm.forward(trial.batch)
    (last,) = trial.batch.positions("last")[0]
    far = _apart(logits[0, last], logits[1, last])
    return f"with the image cut off, it still changes the last logits by {far}" if far else None


def _padding(trial: Trial) -> str | None:
    """A batch equals its items alone, whichever side is padded."""
    vlm = trial.vlm
    prompts = [prompt(vlm, 5, image=0), prompt(vlm, 2, image=1), prompt(vlm, 3, image=None)]
    alone = [_last_logits(vlm, [each]) for each in prompts]
    sides: tuple[Padding, ...] = ("left", "right")
    for side in sides:
        if far := _apart(_last_logits(vlm, prompts, side), torch.cat(alone)):
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
    "padding": _padding,
}


def _far_with(trial: Trial, patches: list[Patch], wanted: Tensor) -> str | None:
    with patch(trial.vlm, patches):
        return _apart(trial.vlm.forward(trial.batch), wanted)


def _last_logits(vlm: Vlm, prompts: list[Prompt], side: Padding = "left") -> Tensor:
    batch = vlm.encode(prompts, padding=side)
    last = torch.cat(batch.positions("last"))
    return vlm.forward(batch)[torch.arange(len(batch)), last]


def _apart(got: Tensor, wanted: Tensor) -> str | None:
    """Give the difference as a share of the largest number wanted, or None if it is within tolerance."""
    if got.shape != wanted.shape:
        return f"shapes {tuple(got.shape)} and {tuple(wanted.shape)}"
    far = float((got - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    return None if far <= _TOLERANCE.get(wanted.dtype, 1e-4) else f"{far:.1e} of the largest"
