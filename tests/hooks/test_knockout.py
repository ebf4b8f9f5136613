from __future__ import annotations

import pytest
import torch

from seamscope.hooks import ModelError, Patch, SiteError, SpanError, Vlm, capture, knockout, patch
from seamscope.hooks._attention import _restrict, edit_attention

from .conftest import ask, footprint, held, picture

PADDINGS = pytest.mark.parametrize("padding", ["left", "right"])
WINDOWS = pytest.mark.parametrize("layers", [[0], [1, 2], range(4)])


def cut_run(vlm: Vlm, batch, queries: str, keys: str, layers, sites="*"):
    with knockout(vlm, queries=queries, keys=keys, layers=layers), capture(vlm, sites) as acts:
        logits = vlm.forward(batch)
    return acts, logits


@PADDINGS
@WINDOWS
def test_cut_weights_are_exactly_zero_and_the_others_take_their_place(eager: Vlm, prompts, padding, layers):
    batch = eager.encode(prompts, padding=padding)
    with capture(eager, "*") as plain:
        eager.forward(batch)
    acts, _ = cut_run(eager, batch, "question", "image", layers)
    for layer in range(4):
        weights = acts[f"lm.{layer}.pattern"]
        for row in range(3):
            queries, keys = batch.positions("question")[row], batch.positions("image")[row]
            block = weights[row][:, queries][:, :, keys]
            if layer in layers:
                assert (block == 0).all()
            elif row < 2:
                assert (block > 0).all()
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
    first = min(layers)
    wanted = plain[f"lm.{first}.pattern"].clone()
    for row in range(3):
        for query in batch.positions("question")[row]:
            wanted[row, :, query, batch.positions("image")[row]] = 0
            wanted[row, :, query] /= wanted[row, :, query].sum(-1, keepdim=True)
    assert torch.allclose(acts[f"lm.{first}.pattern"], wanted, atol=1e-6)


@PADDINGS
@WINDOWS
@pytest.mark.parametrize(("queries", "keys"), [("last", "image"), ("question", "question"), ("prompt", "image")])
def test_eager_and_sdpa_agree(vlm: Vlm, eager: Vlm, prompts, padding, layers, queries, keys):
    batch = vlm.encode(prompts, padding=padding)
    real = batch.inputs["attention_mask"].bool()
    _, by_eager = cut_run(eager, batch, queries, keys, layers)
    _, by_sdpa = cut_run(vlm, batch, queries, keys, layers)
    assert torch.allclose(by_eager[real], by_sdpa[real], atol=1e-5)
    assert not torch.allclose(by_eager[real], vlm.forward(batch)[real], atol=1e-3)


def test_without_padding_sdpa_has_no_mask_and_is_cut_all_the_same(vlm: Vlm, eager: Vlm, prompts):
    batch, masks = vlm.encode(prompts[:1]), []
    attn = vlm.anatomy.layers[0].attn
    hook = attn.register_forward_pre_hook(lambda m, a, k: masks.append(k["attention_mask"]), with_kwargs=True)
    with held(hook):
        plain = vlm.forward(batch)
    assert masks == [None]
    _, by_sdpa = cut_run(vlm, batch, "last", "image", range(4))
    _, by_eager = cut_run(eager, batch, "last", "image", range(4))
    assert torch.allclose(by_sdpa, by_eager, atol=1e-5)
    assert not torch.allclose(by_sdpa[:, -1], plain[:, -1], atol=1e-3)
    assert torch.allclose(by_sdpa[:, :-1], plain[:, :-1], atol=1e-5)


def test_the_image_cut_from_everything_makes_no_difference(each: Vlm):
    batch = each.encode([ask("what is the sum ?", picture(1)), ask("what is the sum ?", picture(2))])
    _, logits = cut_run(each, batch, "prompt", "image", range(4))
    assert torch.allclose(logits[0, -1], logits[1, -1], atol=1e-5)
    _, logits = cut_run(each, batch, "prompt", "image", range(3))
    assert not torch.allclose(logits[0, -1], logits[1, -1], atol=1e-3)


def test_a_query_that_would_see_nothing_keeps_itself(eager: Vlm, vlm: Vlm):
    batch = eager.encode([ask("red card", picture(1)), ask("ace ?")])
    acts, logits = cut_run(eager, batch, "prompt", "prompt", [1])
    for row, positions in enumerate(batch.positions("prompt")):
        weights = acts["lm.1.pattern"][row][:, positions][:, :, positions]
        assert torch.equal(weights, torch.eye(len(positions)).expand_as(weights))
    _, by_sdpa = cut_run(vlm, batch, "prompt", "prompt", [1])
    assert torch.allclose(by_sdpa[0], logits[0], atol=1e-5)


def test_two_cuts_add_up(each: Vlm, prompts):
    batch = each.encode(prompts)
    real = batch.inputs["attention_mask"].bool()
    with (
        knockout(each, queries="last", keys="image", layers=[1, 2]),
        knockout(each, queries="last", keys="question", layers=[2, 3]),
    ):
        both = each.forward(batch)
    with (
        knockout(each, queries="last", keys="question", layers=[2, 3]),
        knockout(each, queries="last", keys="image", layers=[1, 2]),
    ):
        assert torch.allclose(each.forward(batch)[real], both[real], atol=1e-6)
    _, one = cut_run(each, batch, "last", "image", [1, 2])
    assert not torch.allclose(one[real], both[real], atol=1e-4)


def test_rows_that_lack_a_span_are_as_they_were(each: Vlm, prompts):
    batch = each.encode(prompts)
    plain = each.forward(batch)
    _, logits = cut_run(each, batch, "last", "image", range(4))
    assert torch.allclose(logits[2], plain[2], atol=1e-5)
    assert not torch.allclose(logits[0, -1], plain[0, -1], atol=1e-3)


def test_no_layers_means_no_cut(each: Vlm, prompts):
    batch = each.encode(prompts)
    _, logits = cut_run(each, batch, "last", "image", [])
    assert torch.equal(logits, each.forward(batch))


def test_a_cut_and_a_patched_pattern_go_together(eager: Vlm, prompts):
    batch = eager.encode(prompts)
    acts, wanted = cut_run(eager, batch, "last", "image", [1])
    with (
        knockout(eager, queries="last", keys="image", layers=[1]),
        patch(eager, Patch("lm.1.pattern", acts["lm.1.pattern"])),
    ):
        assert torch.equal(eager.forward(batch), wanted)


def test_generation_is_cut_in_the_pass_over_the_prompt(each: Vlm, prompts):
    """The first token is that of the cut forward pass."""
    batch = each.encode(prompts)
    _, logits = cut_run(each, batch, "last", "image", range(4))
    with knockout(each, queries="last", keys="image", layers=range(4)), capture(each, "lm.logits") as acts:
        each.generate(batch, max_new_tokens=3)
    assert torch.allclose(acts["lm.logits"][:, -1], logits[:, -1], atol=1e-5)


def test_configurations_and_hooks_are_put_back(each: Vlm, prompts):
    batch = each.encode(prompts)
    each.forward(batch)
    before, shared = footprint(each), each.model.config.text_config
    with knockout(each, queries="last", keys="image", layers=[1]):
        assert each.anatomy.layers[0].attn.config is shared
        assert each.anatomy.layers[1].attn.config._attn_implementation == "seamscope"
        assert shared._attn_implementation == each.attn_implementation != "seamscope"
        each.forward(batch)
    assert footprint(each) == before
    hook = each.anatomy.layers[2].block.register_forward_pre_hook(lambda *_: 1 / 0)
    with held(hook), pytest.raises(ZeroDivisionError):
        cut_run(each, batch, "last", "image", range(4))
    assert footprint(each) == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queries": "last", "keys": "image", "layers": [0, 4]}, SiteError, r"layers 0 to 3, not \[4\]"),
        ({"queries": "last", "keys": "image", "layers": [-1]}, SiteError, r"layers 0 to 3, not \[-1\]"),
        (
            {"queries": "lsat", "keys": "image", "layers": [0]},
            SpanError,
            "unknown span 'lsat'; nearest: last",
        ),
        (
            {"queries": "last", "keys": "imag", "layers": [0]},
            SpanError,
            "unknown span 'imag'; nearest: image",
        ),
    ],
)
def test_bad_names_are_refused_and_nothing_remains(vlm: Vlm, prompts, arguments, error, message):
    before, batch, ran = footprint(vlm), vlm.encode(prompts), []
    hook = vlm.model.register_forward_pre_hook(lambda *_: ran.append(True))
    with held(hook), pytest.raises(error, match=message), knockout(vlm, **arguments):
        vlm.forward(batch)
    assert not ran
    assert footprint(vlm) == before


def test_other_attention_implementations_are_refused(vlm: Vlm, monkeypatch):
    monkeypatch.setattr(vlm.model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with (
        pytest.raises(ModelError, match="under eager and sdpa attention, not under 'flash_attention_2'"),
        knockout(vlm, queries="last", keys="image", layers=[0]),
    ):
        pass


def test_a_cut_needs_a_batch_that_is_running(vlm: Vlm, prompts):
    batch = vlm.encode(prompts)
    with (
        pytest.raises(SpanError, match="spans need a batch"),
        knockout(vlm, queries="last", keys="image", layers=[0]),
    ):
        vlm.model(**batch.inputs)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["absent", "boolean", "additive"])
def test_every_kind_of_mask_is_cut_the_same(implementation: str, kind: str):
    """Writing False into an additive mask would mean: allowed."""
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    lowest = torch.finfo(torch.float32).min
    masks = {
        "absent": None,
        "boolean": allowed,
        "additive": torch.zeros(2, 1, 5, 5).masked_fill(~allowed, lowest),
    }
    closed = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    closed[1, 0, 3, :2] = True
    eager = implementation == "eager"
    got, blind = _restrict(lambda mask: mask & ~closed, masks[kind], query, key, eager=eager, causal=True)
    assert not blind.any()
    wanted = (allowed & ~closed).expand(2, 1, 5, 5)
    if eager or kind == "additive":
        assert torch.equal(got.expand(2, 1, 5, 5), torch.zeros(2, 1, 5, 5).masked_fill(~wanted, lowest))
    else:
        assert torch.equal(got.expand(2, 1, 5, 5), wanted)


def test_a_mask_that_carries_a_bias_keeps_it():
    query, key = torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2)
    bias = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    closed = torch.eye(3, dtype=torch.bool)[None, None]
    for eager in (True, False):
        got, blind = _restrict(lambda allowed: allowed & ~closed, bias, query, key, eager=eager, causal=True)
        assert torch.equal(got, bias.masked_fill(closed, torch.finfo(torch.float32).min))
        assert not blind.any()


def test_an_absent_mask_lets_a_single_new_token_see_everything():
    query, key = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 4, 2)
    seen = []
    _restrict(lambda allowed: seen.append(allowed), None, query, key, eager=False, causal=True)
    assert seen[0].all()
    assert seen[0].shape == (1, 1, 1, 4)


def test_an_edit_that_changes_nothing_is_exactly_nothing(each: Vlm, prompts):
    batch = each.encode(prompts)
    plain = each.forward(batch)
    with edit_attention(each.anatomy.layers[1].attn, cut=lambda allowed: None, reweigh=lambda weights: None):
        assert torch.equal(each.forward(batch), plain)


@pytest.mark.parametrize("kind", ["absent", "boolean", "additive"])
def test_queries_that_see_nothing_any_more_are_told_from_those_that_never_did(kind: str):
    """Row 1 has two positions of padding, which may see nothing to begin with."""
    allowed = torch.ones(4, 4, dtype=torch.bool).tril().repeat(2, 1, 1, 1)
    wanted = torch.tensor([[False, False, True, False]] * 2)
    if kind != "absent":
        allowed[1, 0, :, :2] = False
        wanted = torch.tensor([[False, False, True, False], [False, False, True, False]])
    additive = torch.zeros(2, 1, 4, 4).masked_fill(~allowed, torch.finfo(torch.float32).min)
    mask = {"absent": None, "boolean": allowed, "additive": additive}[kind]
    closed = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    closed[:, 0, 2] = True
    query = torch.zeros(2, 1, 4, 2)
    for eager in (True, False):
        _, blind = _restrict(lambda allowed: allowed & ~closed, mask, query, query, eager=eager, causal=True)
        assert torch.equal(blind.expand(2, 1, 4)[:, 0], wanted)


def test_a_query_that_is_left_nothing_to_see_mixes_in_nothing(each: Vlm):
    """The softmax alone would spread its weight over all keys; `knockout` itself lets queries keep themselves."""
    batch = each.encode([ask("red card ?", picture(1)), ask("ace")])
    last, sites = batch.width - 1, [site for site in each.sites if site.startswith("lm.1.")]
    closed = torch.zeros(1, 1, batch.width, 1, dtype=torch.bool)
    closed[:, :, last] = True
    with capture(each, sites) as plain:
        each.forward(batch)
    with (
        edit_attention(each.anatomy.layers[1].attn, cut=lambda allowed: allowed & ~closed),
        capture(each, sites) as acts,
    ):
        each.forward(batch)
    assert plain["lm.1.head_z"][:, last].abs().max() > 0
    assert (acts["lm.1.head_z"][:, last] == 0).all()
    real = batch.inputs["attention_mask"][:, :last].bool()
    assert torch.allclose(acts["lm.1.head_z"][:, :last][real], plain["lm.1.head_z"][:, :last][real], atol=1e-6)
    if "lm.1.pattern" in sites:
        assert (acts["lm.1.pattern"][:, :, last] == 0).all()
