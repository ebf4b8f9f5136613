"""What must hold of every site, patch, knockout, score and text, in every family of models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from seamscope.hooks import Patch, Prompt, RunError, SeamscopeError, Vlm, capture, knockout, patch

from .conftest import footprint
from .families_fixture import BOX, QUESTION, SIZES, families, load, rows_of, shown
from .families_oracle import PATHS, embed_by_hand, plain_logits, plain_score, plain_tokens, read_by_hand

PADDINGS = ("left", "right")
ATTENTIONS = pytest.mark.parametrize("attention", ["eager", "auto"])
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def near(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether tensors differ by no more than this share of the largest number wanted."""
    return bool((got - wanted).abs().max() <= tolerance * wanted.abs().max())


def require_own_tensors(name: str, vlm: Vlm, prompts: list[Prompt]) -> None:
    """Every site is what hooks written by hand see, and capture changes no logit."""
    batch = vlm.encode(prompts)
    wanted, logits = read_by_hand(name, vlm, batch)
    plain = vlm.forward(batch)
    with capture(vlm, "*") as acts:
        watched = vlm.forward(batch)
    assert torch.equal(plain, logits)
    assert torch.equal(watched, plain)
    assert set(acts) == set(wanted)
    for site in wanted:
        assert acts[site].dtype == wanted[site].dtype == vlm.dtype
        assert torch.equal(acts[site], wanted[site]), site
    with torch.inference_mode():
        assert torch.equal(acts["lm.embed"], embed_by_hand(name, vlm, batch))


@families
def test_every_site_is_the_models_own_tensor_bit_for_bit(name: str):
    vlm = load(name)
    for prompts in rows_of(vlm):
        require_own_tensors(name, vlm, prompts)


@HALVES
@families
def test_it_is_in_half_precision_too(name: str, dtype: torch.dtype):
    vlm = load(name, "auto", dtype)
    assert vlm.dtype == dtype
    require_own_tensors(name, vlm, rows_of(vlm)[0])


@families
def test_writing_a_sites_own_values_changes_nothing(name: str):
    vlm = load(name)
    batch = vlm.encode([shown(QUESTION, 1), shown("red ?", 2)])
    with capture(vlm, "*") as acts:
        plain = vlm.forward(batch)
    for site in vlm.sites:
        with patch(vlm, Patch(site, acts[site])):
            assert torch.equal(vlm.forward(batch), plain), site


def enters_past(name: str, layer: int, kind: str) -> bool:
    """Whether the image still comes to the decoder behind a site: by DeepStack or by cross-attention."""
    stacked = PATHS[name].deepstack is not None and layer < 3
    return stacked or any(each > layer or (each == layer and kind == "resid_pre") for each in PATHS[name].crossed)


@families
def test_another_runs_layer_gives_its_logits_unless_its_image_comes_in_past_the_layer(name: str):
    vlm = load(name)
    mine, other = (vlm.encode([shown(f"what is the sum of {word} ?", seed)]) for seed, word in ((1, "two"), (2, "one")))
    plain = vlm.forward(mine)
    with capture(vlm, "*") as acts:
        wanted = vlm.forward(other)
    assert not near(plain, wanted, 1e-2)
    for layer in range(vlm.n_layers):
        routes = [Patch(route, acts[route]) for route in vlm.entering(layer)]
        for kind in ("resid_pre", "resid_mid", "resid_post"):
            whole = Patch(f"lm.{layer}.{kind}", acts[f"lm.{layer}.{kind}"])
            with patch(vlm, [whole, *routes]):
                assert near(vlm.forward(mine), wanted), whole.site
            with patch(vlm, whole):
                assert near(vlm.forward(mine), wanted, 1e-3) != enters_past(name, layer, kind), whole.site


@ATTENTIONS
@families
def test_a_batch_is_what_the_model_alone_makes_of_each_prompt(name: str, attention: str):
    vlm = load(name, attention)
    for prompts in rows_of(vlm):
        alone = [plain_logits(name, vlm, prompt) for prompt in prompts]
        for padding in PADDINGS:
            batch = vlm.encode(prompts, padding=padding)
            real = batch.inputs["attention_mask"].bool()
            for logits, mask, wanted in zip(vlm.forward(batch), real, alone, strict=True):
                assert mask.sum() == len(wanted)
                assert near(logits[mask], wanted, 1e-4)


def test_rows_that_would_change_each_other_are_refused():
    vlm = load("mllama")
    with pytest.raises(RunError, match="encode prompts with 0 and 1 pictures apart"):
        vlm.encode([shown(QUESTION, 1), *rows_of(vlm)[-1]])


@families
def test_scores_are_those_of_the_model_alone(name: str):
    vlm = load(name)
    for prompts in rows_of(vlm):
        answers = ["seven", "red king", "two", "four", "ace"][: len(prompts)]
        told = [plain_score(name, vlm, *each) for each in zip(prompts, answers, strict=True)]
        logprob, first, greedy = (torch.tensor(column) for column in zip(*told, strict=True))
        for padding in PADDINGS:
            batch = vlm.encode(prompts, answers=answers, padding=padding)
            with capture(vlm, "lm.logits"):
                scores = [vlm.score(batch)]
            for score in (*scores, vlm.score(batch)):
                assert torch.allclose(score.logprob, logprob, rtol=1e-4)
                assert torch.equal(score.first, first)
                assert torch.equal(score.greedy, greedy)


@families
def test_texts_are_those_of_the_model_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    vlm = load(name)
    decode = vlm.processor.batch_decode
    for prompts in rows_of(vlm):
        batch, wanted = vlm.encode(prompts), [plain_tokens(name, vlm, prompt, 6) for prompt in prompts]
        texts = vlm.generate(batch, max_new_tokens=6)
        assert texts == [text.strip() for text in decode(wanted, skip_special_tokens=True)]
        with monkeypatch.context() as patched:  # texts of bytes may hide tokens
            patched.setattr(vlm.processor, "batch_decode", lambda made, **_: [str(row) for row in made.tolist()])
            made = vlm.generate(batch, max_new_tokens=6)
        for got, tokens in zip(made, wanted, strict=True):
            assert got.removesuffix("]").startswith(str(tokens).removesuffix("]"))


def runs_of(vlm: Vlm) -> list[Callable[[], Tensor | list[str]]]:
    """Forward passes, texts and scores of prompts with one picture, with two, and with none."""
    groups = [[each] for each in rows_of(vlm)[0][:3]] if vlm.family.mixed_rows else rows_of(vlm)
    batches = [vlm.encode(each) for each in groups]
    answered = [vlm.encode(each, answers=["seven"] * len(each)) for each in groups]
    return [
        *(partial(vlm.forward, batch) for batch in batches),
        *(partial(vlm.generate, batch, max_new_tokens=4) for batch in batches),
        *(lambda batch=batch: vlm.score(batch).logprob for batch in answered),
    ]


@families
def test_no_run_depends_on_those_before_it(name: str):
    vlm = load(name)
    runs = runs_of(vlm)
    first = [run() for run in runs]
    plain_tokens(name, vlm, shown(QUESTION, 7, SIZES[1]), 2)  # a Qwen now remembers this prompt's positions
    again = [run() for run in reversed(runs)][::-1]
    for got, wanted in zip(again, first, strict=True):
        assert got == wanted if isinstance(wanted, list) else torch.equal(got, wanted)


def remembered(vlm: Vlm) -> dict[str, dict[str, int]]:
    """What every module holds besides weights: tell it apart by identity."""
    modules = vlm.model.named_modules()
    return {
        name: {key: id(value) for key, value in vars(module).items() if not key.startswith("_")}
        for name, module in modules
    }


def explode(value: Tensor) -> Tensor:
    raise RuntimeError("inside the model")


@families
def test_nothing_stays_behind(name: str):
    vlm = load(name)
    prompts = [shown(QUESTION, 1, SIZES[0], BOX)]
    batch, answered = vlm.encode(prompts), vlm.encode(prompts, answers=["two"])
    vlm.forward(batch)
    settings = vlm.model.generation_config
    before = footprint(vlm), remembered(vlm), settings.to_dict()
    shift = Patch("lm.1.resid_mid", lambda there: there + 1)
    broken = [Patch(f"lm.{site}", explode) for site in ("1.pattern", "1.head_z", "2.resid_post", "logits")]
    wrong = [capture(vlm, "lm.9.resid_post"), capture(vlm, "lm.*", spans="nothing"), patch(vlm, Patch("lm", explode))]
    cut = partial(knockout, vlm, queries="last", keys="image")
    for run in (
        partial(vlm.forward, batch),
        partial(vlm.score, answered),
        partial(vlm.generate, batch, max_new_tokens=3),
    ):
        with capture(vlm, "*"), patch(vlm, shift), cut(layers=[0, 1]):
            run()
        for each in broken:
            with (
                pytest.raises(RuntimeError, match="inside"),
                capture(vlm, "*"),
                patch(vlm, [shift, each]),
                cut(layers=[0]),
            ):
                run()
    for context in wrong:
        with pytest.raises(SeamscopeError), capture(vlm, "*"), patch(vlm, shift), cut(layers=[1]), context:
            vlm.forward(batch)
    assert (footprint(vlm), remembered(vlm), vlm.model.generation_config.to_dict()) == before
    assert vlm.model.generation_config is settings


@ATTENTIONS
@families
def test_an_image_that_nothing_attends_to_makes_no_difference(name: str, attention: str):
    vlm = load(name, attention)
    batch = vlm.encode([shown(QUESTION, 1), shown(QUESTION, 2)])
    (last,) = batch.positions("last")[0]
    one, other = vlm.forward(batch)[:, last]
    assert not near(one, other, 1e-2)
    with knockout(vlm, queries="prompt", keys="image", layers=range(vlm.n_layers)):
        blind = vlm.forward(batch)[:, last]
    assert near(blind[0], blind[1])
    assert not near(blind[0], one, 1e-2)


@families
def test_an_object_is_cut_where_it_is_and_nowhere_else(name: str):
    vlm = load(name)
    batch = vlm.encode([shown(QUESTION, 1, SIZES[0], BOX), shown(QUESTION, 2)])
    cut = {"queries": "last", "keys": "image.object.0", "layers": range(vlm.n_layers)}
    with capture(vlm, "lm.*.pattern") as before:
        whole = vlm.forward(batch)
    with knockout(vlm, **cut), capture(vlm, "lm.*.pattern") as after:
        blind = vlm.forward(batch)
    (last,) = batch.positions("last")[0]
    assert not near(blind[0, last], whole[0, last], 1e-4)
    assert torch.equal(blind[1], whole[1])
    for layer in range(vlm.n_layers):
        spans = batch.visual.spans["projector"] if layer in PATHS[name].crossed else batch.spans
        keys = spans[0].get("image.object.0", torch.zeros(0, dtype=torch.long))
        seen, left = (acts[f"lm.{layer}.pattern"][0, :, last] for acts in (before, after))
        open_before = seen > 0
        open_before[:, keys] = False
        assert torch.equal(left > 0, open_before)
    other = load(name, "auto")
    with knockout(other, **cut):
        assert near(other.forward(batch)[:, last], blind[:, last], 1e-4)
