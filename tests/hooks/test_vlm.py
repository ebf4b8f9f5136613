from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import GenerationConfig

from seamscope.hooks import Patch, RunError, Score, Site, SpanError, Vlm, capture, patch
from seamscope.hooks.families._llava import LLAVA

from .conftest import ask, held, picture

PADDINGS = pytest.mark.parametrize("padding", ["left", "right"])
ANSWERS = ["9", "ace", "4 2"]


@PADDINGS
def test_a_batch_equals_its_items_run_one_by_one(each: Vlm, prompts, padding):
    batch = each.encode(prompts, padding=padding)
    together = each.forward(batch)
    for row, prompt in enumerate(prompts):
        alone = each.forward(each.encode([prompt]))[0]
        real = batch.inputs["attention_mask"][row].bool()
        assert torch.allclose(together[row][real], alone, atol=1e-5)


@PADDINGS
def test_every_site_of_a_batch_equals_that_of_its_items(each: Vlm, prompts, padding):
    batch = each.encode(prompts, padding=padding)
    sites = [site for site in each.sites if site.startswith("lm") and not site.endswith("pattern")]
    with capture(each, sites, spans="prompt") as together:
        each.forward(batch)
    for row, prompt in enumerate(prompts):
        with capture(each, sites, spans="prompt") as alone:
            each.forward(each.encode([prompt]))
        for key in alone:
            assert torch.allclose(together[key][row].values, alone[key].values, atol=1e-5), key


def test_forward_is_the_models_own(each: Vlm, prompts):
    batch = each.encode(prompts)
    with torch.no_grad():
        assert torch.equal(each.forward(batch), each.model(**batch.inputs).logits)


@PADDINGS
def test_score_by_hand(each: Vlm, prompts, padding):
    """Row by row and token by token, from the logits of every position."""
    batch = each.encode(prompts, answers=ANSWERS, padding=padding)
    logits, ids = each.forward(batch).double(), batch.inputs["input_ids"]
    score = each.score(batch)
    assert score.logprob.dtype == torch.float32
    for row in range(3):
        total, hits = 0.0, []
        for position in batch.positions("answer")[row].tolist():
            chances = logits[row, position - 1].softmax(-1)
            total += float(chances[ids[row, position]].log())
            hits.append(int(chances.argmax()) == int(ids[row, position]))
        assert float(score.logprob[row]) == pytest.approx(total, abs=1e-4)
        assert bool(score.first[row]) == hits[0]
        assert bool(score.greedy[row]) == all(hits)


def test_the_answer_is_all_of_its_tokens_and_the_end(vlm: Vlm, prompts):
    batch = vlm.encode(prompts, answers=ANSWERS)
    assert [len(each) for each in batch.positions("answer")] == [2, 2, 3]
    for row, positions in enumerate(batch.positions("answer")):
        text = vlm.processor.tokenizer.decode(batch.inputs["input_ids"][row][positions])
        assert text.split() == [*ANSWERS[row].split(), "</s>"]


@pytest.fixture
def endless(each: Vlm) -> Iterator[Vlm]:
    """A model whose answers are encoded without an end, which is found once for each model."""
    tokenizer = each.processor.tokenizer
    end, tokenizer.eos_token = tokenizer.eos_token, None
    yield Vlm(name="endless", model=each.model, processor=each.processor, family=each.family)
    tokenizer.eos_token = end


def test_what_is_generated_is_the_greedy_answer(endless: Vlm, prompts):
    """What the model says, scored as an answer without its end, is its first choice at every token."""
    no_specials = lambda module, args, logits: logits.index_fill(-1, torch.arange(5), -99)  # noqa: E731
    with held(endless.anatomy.head.register_forward_hook(no_specials)):
        said = endless.generate(endless.encode(prompts), max_new_tokens=3)
        score = endless.score(endless.encode(prompts, answers=said))
        other = endless.score(endless.encode(prompts, answers=["green " + text for text in said]))
    assert score.first.all()
    assert score.greedy.all()
    assert not other.greedy.any()


def test_only_answers_are_unembedded_unless_a_hook_wants_all(vlm: Vlm, prompts):
    batch, seen = vlm.encode(prompts, answers=ANSWERS), []
    with held(vlm.anatomy.head.register_forward_pre_hook(lambda m, a: seen.append(a[0].shape[1]))):
        plain = vlm.score(batch)
        with capture(vlm, "lm.logits", spans="answer") as acts:
            watched = vlm.score(batch)
    assert seen == [3, batch.width]
    assert torch.allclose(plain.logprob, watched.logprob, atol=1e-5)
    assert acts["lm.logits", "answer"].lengths.tolist() == [2, 2, 3]


def test_a_patch_of_the_logits_changes_the_score(vlm: Vlm, prompts):
    batch = vlm.encode(prompts, answers=ANSWERS)
    with patch(vlm, Patch("lm.logits", torch.zeros_like)):
        score = vlm.score(batch)
    sizes = torch.tensor([2.0, 2.0, 3.0])
    assert torch.allclose(score.logprob, -sizes * torch.tensor(38.0).log())


def test_scores_of_several_tokens_stay_with_their_rows():
    logits = torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
    score = Score.of(logits, torch.tensor([1, 1, 0]), torch.tensor([0, 0, 1]), 2)
    assert score.first.tolist() == [True, False]
    assert score.greedy.tolist() == [False, False]
    assert torch.allclose(score.logprob, torch.tensor([-9.0002, -9.0001]), atol=1e-3)


def test_a_batch_without_answers_cannot_be_scored(vlm: Vlm, prompts):
    with pytest.raises(SpanError, match=r"no answers to score; encode\(..., answers=\[...\]\)"):
        vlm.score(vlm.encode(prompts))


def test_generation_of_a_batch_equals_that_of_its_items(each: Vlm, prompts):
    together = each.generate(each.encode(prompts), max_new_tokens=6)
    alone = [each.generate(each.encode([prompt]), max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone


def test_generation_stops_at_the_end_of_the_sequence(vlm: Vlm, prompts):
    """With the end the likeliest token everywhere, nothing is said."""
    weight = vlm.anatomy.head.weight
    batch = vlm.encode(prompts)
    ending = torch.zeros(38).index_fill_(0, torch.tensor([2]), 99.0)
    with patch(vlm, Patch("lm.logits", lambda logits: ending.expand_as(logits))):
        assert vlm.generate(batch, max_new_tokens=5) == ["", "", ""]
    assert weight is vlm.anatomy.head.weight


def test_rows_that_cannot_be_continued_are_refused(vlm: Vlm, prompts):
    with pytest.raises(RunError, match=r"rows padded on the right cannot be continued; encode\(..., padding='left'\)"):
        vlm.generate(vlm.encode(prompts, padding="right"), max_new_tokens=1)
    with pytest.raises(RunError, match="this batch already holds answers"):
        vlm.generate(vlm.encode(prompts, answers=ANSWERS), max_new_tokens=1)
    assert len(vlm.generate(vlm.encode(prompts[:1], padding="right"), max_new_tokens=1)) == 1


def test_shapes_are_those_of_the_tensors(each: Vlm, prompts):
    batch = each.encode(prompts)
    with capture(each, "*") as acts:
        each.forward(batch)
    assert list(each.shapes()) == list(each.sites)
    for site, shape in each.shapes().items():
        sizes = {"batch": 3, "pos": batch.width, "query": batch.width, "key": batch.width}
        sizes["patches"] = batch.visual.sizes[site.split(".")[0]]  # of all pictures, one after another
        held = acts[site].flatten(0, -2) if Site.parse(site).visual else acts[site]
        assert tuple(sizes.get(size, size) for size in shape) == tuple(held.shape), site


def test_a_model_tells_what_it_is(vlm: Vlm, clip: Vlm):
    assert vlm.family is LLAVA
    assert (vlm.family.name, vlm.n_layers, vlm.n_vision_layers, vlm.d_model, vlm.n_heads) == ("LLaVA 1.5", 4, 3, 32, 4)
    assert (vlm.attn_implementation, vlm.dtype, vlm.device) == ("sdpa", torch.float32, torch.device("cpu"))
    assert repr(vlm).endswith("LLaVA 1.5, 3 vision and 4 decoder layers of width 32, torch.float32, cpu)")
    assert "lm.0.pattern" in clip.sites
    assert "lm.0.pattern" not in vlm.sites


def test_alternating_runs_with_and_without_images_do_not_touch_each_other(each: Vlm):
    direct, cascaded = each.encode([ask("red ?", picture(1))]), each.encode([ask("red ?")])
    first, second = each.forward(direct), each.forward(cascaded)
    each.generate(direct, max_new_tokens=2)
    assert torch.equal(each.forward(direct), first)
    assert torch.equal(each.forward(cascaded), second)


REQUESTS = {
    "sampling": {"do_sample": True, "temperature": 50.0, "top_k": 3},
    "beams": {"num_beams": 3, "length_penalty": -2.0},
    "penalties": {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
    "tokens": {"forced_eos_token_id": 7, "suppress_tokens": [4, 9, 12], "min_new_tokens": 4, "bad_words_ids": [[9]]},
    "a short limit": {"max_length": 3, "use_cache": False},
    "an early end": {"exponential_decay_length_penalty": (1, 99.0)},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_decoding_is_greedy_whatever_the_checkpoint_asks_for(vlm: Vlm, prompts, monkeypatch, request_):
    """Against the likeliest token of each full forward pass, over more than one prompt's length."""
    batch = vlm.encode(prompts)
    wanted = greedy_by_hand(vlm, batch, 6)
    settings = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, **request_)
    monkeypatch.setattr(vlm.model, "generation_config", settings)
    before = settings.to_dict()
    assert vlm.generate(batch, max_new_tokens=6) == wanted
    assert vlm.model.generation_config is settings
    assert settings.to_dict() == before


@pytest.mark.parametrize("name", ["sampling", "beams", "penalties", "tokens", "a short limit"])
def test_a_model_that_keeps_its_settings_is_told_to_be_greedy(vlm: Vlm, prompts, monkeypatch, name: str):
    """One on another machine gets keywords only."""
    batch = vlm.encode(prompts)
    settings = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, **REQUESTS[name])
    with vlm._greedy() as told:
        monkeypatch.setattr(vlm.model, "generation_config", settings)
        tokens = vlm.model.generate(**batch.inputs, **told, max_new_tokens=6)
        texts = vlm.processor.batch_decode(tokens[:, batch.width :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == greedy_by_hand(vlm, batch, 6)


def test_the_requests_would_be_heeded_otherwise(vlm: Vlm, prompts):
    """The control: transformers alone gives other texts under some of them."""
    batch = vlm.encode(prompts)
    wanted = greedy_by_hand(vlm, batch, 6)
    for name in ("sampling", "penalties", "tokens", "an early end"):
        torch.manual_seed(0)
        settings = GenerationConfig(eos_token_id=2, pad_token_id=0, **REQUESTS[name])
        tokens = vlm.model.generate(**batch.inputs, generation_config=settings, max_new_tokens=6)
        assert vlm.processor.batch_decode(tokens[:, batch.width :], skip_special_tokens=True) != wanted, name


def greedy_by_hand(vlm: Vlm, batch, n: int) -> list[str]:
    inputs, done = dict(batch.inputs), torch.zeros(len(batch), dtype=torch.bool)
    with torch.inference_mode():
        for _ in range(n):
            token = vlm.model(**inputs, use_cache=False).logits[:, -1].argmax(-1).masked_fill(done, 0)
            done |= token == 2
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token[:, None]], 1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(len(batch), 1).long()], 1)
            inputs["position_ids"] = torch.cat([inputs["position_ids"], inputs["position_ids"][:, -1:] + 1], 1)
    new = inputs["input_ids"][:, batch.width :]
    return [text.strip() for text in vlm.processor.batch_decode(new, skip_special_tokens=True)]


def test_an_error_while_generating_leaves_the_settings_as_they_were(vlm: Vlm, prompts):
    settings, batch = vlm.model.generation_config, vlm.encode(prompts)
    with held(vlm.anatomy.norm.register_forward_pre_hook(lambda *_: 1 / 0)), pytest.raises(ZeroDivisionError):
        vlm.generate(batch, max_new_tokens=2)
    assert vlm.model.generation_config is settings


def test_unembedding_gives_the_models_logits(each: Vlm, prompts):
    batch = each.encode(prompts)
    with capture(each, ["lm.3.resid_post", "lm.logits"]) as acts:
        logits = each.forward(batch)
    assert torch.equal(each.unembed(acts["lm.3.resid_post"]), logits)
    assert torch.equal(each.cap(acts["lm.logits"]), logits)


def test_logits_that_a_model_bounds_are_bounded(vlm: Vlm, monkeypatch):
    """30 · tanh(x / 30), as Gemma 2 has it."""
    monkeypatch.setattr(vlm.model.config.text_config, "final_logit_softcapping", 30.0, raising=False)
    given = torch.tensor([-1e9, -30.0, 0.0, 1.0, 1e9])
    assert vlm.cap(given).tolist() == pytest.approx([-30, -22.84782, 0, 0.99963, 30], abs=1e-4)
