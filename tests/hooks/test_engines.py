"""The engine nnsight gives what plain torch hooks give, bit for bit, in every family."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seamscope import hooks
from seamscope.hooks import (
    Activations,
    Batch,
    ModelError,
    Patch,
    Prompt,
    Ragged,
    Site,
    SiteError,
    SpanError,
    Vlm,
    capture,
    knockout,
    load_vlm,
    patch,
)
from seamscope.hooks._engine import TorchEngine

from .conftest import ask, footprint
from .families_fixture import BOX, QUESTION, SIZES, checkpoint, families, rows_of, shown
from .test_devices import spread

attentions = pytest.mark.parametrize("attention", ["eager", "auto"])
SPANS = ["image", "image.object.0", "question", "last", "generated"]


@cache
def pair(name: str, attention: str = "eager") -> tuple[Vlm, Vlm]:
    """The same weights in both engines; the self-checks have passed in nnsight."""
    settings: dict[str, Any] = {"device": "cpu", "attn_implementation": attention}
    plain = load_vlm(checkpoint(name), check=False, **settings)
    return plain, load_vlm(checkpoint(name), engine="nnsight", **settings)


def batches(vlm: Vlm) -> list[list[Prompt]]:
    return [*rows_of(vlm), [ask("what is three + four ?"), ask("king ?")]]


def asked() -> list[Prompt]:
    return [shown(QUESTION, 1, SIZES[0], BOX), shown("red card ?", 2, SIZES[1])]


def values(acts: Activations) -> dict[Any, Tensor]:
    return {key: held.values if isinstance(held := acts[key], Ragged) else held for key in acts}


def same(mine: dict[Any, Tensor], other: dict[Any, Tensor]) -> bool:
    return mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in mine)


@attentions
@families
def test_forward_passes_are_the_same_under_capture_of_every_site(name: str, attention: str):
    plain, traced = pair(name, attention)
    for prompts in batches(plain):
        batch, found, logits = plain.encode(prompts), [], []
        for vlm in (plain, traced):
            with capture(vlm, "*") as acts:
                logits.append(vlm.forward(batch))
            found.append(values(acts))
        assert torch.equal(*logits)
        assert torch.equal(logits[1], traced.forward(batch))
        assert same(*found)
        assert not any(held.is_inference() for held in found[1].values())


@families
def test_texts_scores_and_generated_tokens_are_the_same(name: str):
    plain, traced = pair(name)
    read_again = 0
    for prompts in batches(plain):
        batch, told, results = plain.encode(prompts), plain.encode(prompts, answers=["seven"] * len(prompts)), []
        for vlm in (plain, traced):
            with capture(vlm, ["lm.*.resid_post", "lm.*.head_z", "lm.logits"], ["question", "generated"]) as acts:
                text = vlm.generate(batch, max_new_tokens=4)
            with capture(vlm, ["lm.*.resid_post", "lm.*.pattern"], ["question"], pool="mean") as pooled:
                score = vlm.score(told)
            assert acts.generated is not None
            other = {("pooled", key): held for key, held in values(pooled).items()}
            other |= {"tokens": acts.generated.values, "score": score.logprob}
            results.append((text, values(acts) | other))
            read_again += sum(span == "generated" for _, span in acts)
        assert results[0][0] == results[1][0]
        assert same(results[0][1], results[1][1])
    assert read_again


def results(vlms: tuple[Vlm, Vlm], batch: Batch, change: Callable[[Vlm], Any]) -> list[Tensor]:
    """The logits of both engines inside a context manager."""
    found = []
    for vlm in vlms:
        with change(vlm):
            found.append(vlm.forward(batch))
    return found


@families
def test_patches_of_every_site_do_the_same_by_tensor_and_by_function(name: str):
    vlms = pair(name)
    batch = vlms[0].encode(asked())
    with capture(vlms[0], "*") as acts:
        logits = vlms[0].forward(batch)
    unread = {f"vision.{layer}.resid_post" for layer in range(vlms[0].n_vision_layers)}
    for site in (site for site in vlms[0].sites if Site.parse(site).layer in (None, 1, 2)):
        for value in (0.9 * acts[site], lambda there: 0.1 - there):
            mine, other = results(vlms, batch, lambda vlm, site=site, value=value: patch(vlm, Patch(site, value)))
            assert torch.equal(mine, other), site
            assert site in unread or not torch.equal(mine, logits), site


@families
def test_patches_at_spans_do_the_same(name: str):
    vlms = pair(name)
    batch = vlms[0].encode(asked())
    with capture(vlms[0], "lm.2.resid_post", "last") as acts:
        vlms[0].forward(batch)
    patches = [
        Patch("lm.1.resid_mid", torch.neg, span="question"),
        Patch("lm.1.head_z", torch.zeros_like, span="last", heads=[1]),
        Patch("lm.1.pattern", lambda there: there.flip(-1), span="last", heads=[0, 2]),
        Patch("lm.0.resid_post", acts["lm.2.resid_post", "last"], span="last"),
        Patch("projector.out", torch.tanh, span="image.object.0"),
    ]
    for each in [*([one] for one in patches), patches]:
        mine, other = results(vlms, batch, lambda vlm, each=each: patch(vlm, each))
        assert torch.equal(mine, other)
    texts = []
    for vlm in vlms:
        with patch(vlm, patches), capture(vlm, "*", SPANS) as acts:
            texts.append((vlm.generate(batch, max_new_tokens=4), values(acts)))
    assert texts[0][0] == texts[1][0]
    assert same(texts[0][1], texts[1][1])


@attentions
@families
def test_knockouts_do_the_same(name: str, attention: str):
    vlms = pair(name, attention)
    batch, layers = vlms[0].encode(asked()), range(vlms[0].n_layers)
    mine, other = results(vlms, batch, lambda vlm: knockout(vlm, queries="last", keys="image", layers=layers))
    assert torch.equal(mine, other)
    assert not torch.equal(other, vlms[1].forward(batch))
    texts = []
    for vlm in vlms:
        with knockout(vlm, queries="question", keys="image", layers=layers):
            texts.append(vlm.generate(batch, max_new_tokens=4))
    assert texts[0] == texts[1]


def test_an_error_in_a_patch_stays_what_it_is_and_nothing_stays_behind():
    plain, traced = pair("llava")
    before, batch = footprint(traced), traced.encode(asked())
    with (
        pytest.raises(SiteError, match="the value has shape"),
        patch(traced, Patch("lm.1.resid_post", lambda x: x[:1])),
    ):
        traced.forward(batch)
    with pytest.raises(ZeroDivisionError), capture(traced, "*"), patch(traced, Patch("lm.1.head_z", lambda _: 1 / 0)):
        traced.generate(batch, max_new_tokens=2)
    with pytest.raises(SpanError), capture(traced, "*", "image.object.7"):
        traced.forward(batch)
    assert footprint(traced) == before
    assert not traced.wiring.taps.places
    assert torch.equal(traced.forward(batch), plain.forward(batch))


def test_both_engines_may_stand_on_one_model():
    plain, traced = pair("qwen3_vl")
    also = Vlm(**{part: getattr(traced, part) for part in ("name", "model", "processor", "family")})
    assert isinstance(also.engine, TorchEngine)
    batch, found = plain.encode(asked()), []
    for vlm in (traced, also, plain):
        with capture(vlm, "*") as acts:
            vlm.forward(batch)
        found.append(values(acts))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@pytest.mark.filterwarnings("ignore:.*meta device.*")
def test_a_model_spread_over_places_gives_the_same_tensors():
    plain, _ = pair("mllama")
    apart = load_vlm(checkpoint("mllama"), device_map=spread(plain), attn_implementation="eager", engine="nnsight")
    assert apart.anatomy.layers[1].o_proj.weight.device.type == "meta", "one layer should not be in memory"
    found = []
    for vlm in (plain, apart):
        with capture(vlm, "*") as acts, patch(vlm, Patch("lm.1.resid_mid", torch.neg, span="last")):
            vlm.forward(vlm.encode(asked()))
        found.append(values(acts))
    assert same(*found)


def test_a_call_of_the_model_itself_is_not_traced():
    plain, traced = pair("llava")
    batch = plain.encode(asked())
    for vlm in (plain, traced):
        with capture(vlm, "lm.1.resid_post") as acts, torch.inference_mode():
            vlm.model(**batch.inputs)
        assert ("lm.1.resid_post" in acts) == (vlm is plain)


def test_a_module_whose_forward_is_replaced_after_loading_is_not_traced(monkeypatch: pytest.MonkeyPatch):
    _, traced = pair("llava")
    module = traced.anatomy.layers[1].block
    monkeypatch.setattr(module, "forward", type(module).forward.__get__(module))
    with capture(traced, ["lm.1.resid_post", "lm.2.resid_post"]) as acts:
        traced.forward(traced.encode(asked()))
    assert list(acts) == ["lm.2.resid_post"]


def test_engines_are_named_and_the_nearest_is_suggested():
    with pytest.raises(ModelError, match="unknown engine 'nnsigt'; nearest: nnsight; one of: torch, nnsight"):
        load_vlm(checkpoint("llava"), engine="nnsigt")


def test_nnsight_is_imported_for_its_own_engine_only():
    importing = {}
    for file in Path(hooks.__file__).parent.rglob("*.py"):
        nodes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) or node.names[0].name for node in nodes}
        importing[file.name] = any(name.split(".")[-1] in ("nnsight", "_nnsight") for name in names)
    assert [name for name, imports in importing.items() if imports] == ["_nnsight.py"]
