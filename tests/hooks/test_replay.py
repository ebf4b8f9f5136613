"""A replay gives what a patch around the whole forward pass gives, in every family, at every site, however batched."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seamscope.hooks import (
    Cut,
    Edit,
    Patch,
    Prompt,
    Ragged,
    ReplayWarning,
    RunError,
    Score,
    Segment,
    Site,
    SiteError,
    SpanError,
    _recording,
    capture,
    knockout,
    patch,
    replay,
)
from seamscope.hooks._cells import batches
from seamscope.hooks._recording import Recording
from seamscope.hooks._whole import run_whole

from .families_fixture import BOX, QUESTION, families, load, shown

KINDS = ("embed", "resid_pre", "head_z", "attn_out", "cross_attn_out", "resid_mid", "mlp_out", "resid_post")
ATTENTIONS = pytest.mark.parametrize("attention", ["eager", "auto"])


def prompt(vlm, answer="nine", question=QUESTION, seed=1):
    return vlm.encode([shown(question, seed, (50, 37), BOX)], answers=[answer])


def sites_of(vlm):
    return [site for site in vlm.sites if site.startswith("lm.") and site.rsplit(".", 1)[-1] in KINDS]


def random_edits(vlm, batch, sites, seed, each=2):
    """Two tokens of every site, somewhere in the prompt, moved about as far as the site varies."""
    rng = torch.Generator().manual_seed(seed)
    with capture(vlm, sites) as acts:
        vlm.forward(batch)
    found = []
    for site in sites:
        for _ in range(each):
            positions = torch.randperm(batch.width, generator=rng)[:2].sort().values
            there = acts[site][0][positions]
            found.append(Edit(site=site, positions=positions, values=there + torch.randn(there.shape, generator=rng)))
    return found


def pairs_of(edits, count, seed=0):
    """Two edits at once, of different sites."""
    order = torch.randperm(len(edits), generator=torch.Generator().manual_seed(seed)).tolist()
    pairs = zip(order[::2], order[1::2], strict=False)
    return [(edits[a], edits[b]) for a, b in pairs if edits[a].site != edits[b].site][:count]


def random_cuts(vlm, batch, seed, count=6):
    """Attention from some positions to some earlier ones, in some of the layers that attend within the prompt."""
    rng = torch.Generator().manual_seed(seed)
    layers = [k for k, layer in enumerate(vlm.anatomy.layers) if not layer.crossed]
    found = []
    for _ in range(count):
        queries = torch.randperm(batch.width - 1, generator=rng)[:3].sort().values + 1
        keys = torch.randperm(int(queries[-1]) + 1, generator=rng)[:4]
        first = int(torch.randint(len(layers), (1,), generator=rng))
        found.append(Cut(layers=tuple(layers[first : first + 2]), queries=queries, keys=keys))
    return found


def by_patch(vlm, batch, cells, rival=None):
    """Every measure of the answer under every cell, from the logits of a forward pass of its own."""

    def writing(edit):
        heads = slice(None) if edit.heads is None else list(edit.heads)

        def write(value):
            tokens = value.reshape(-1, *edit.values.shape[1:])
            for k, position in enumerate(edit.positions.tolist()):
                tokens[position, heads] = edit.values[k, heads].to(value)
            return tokens.view_as(value)

        return Patch(edit.site, write)

    at = batch.positions("answer")[0]
    tokens = batch.inputs["input_ids"][0, at]
    base = vlm.forward(batch)[0, at - 1].float()
    found = []
    for cell in cells:
        parts = [cell] if isinstance(cell, Edit | Cut) else cell
        named = {
            f"{k} {side}": getattr(each, side)
            for k, each in enumerate(parts)
            if isinstance(each, Cut)
            for side in ("queries", "keys")
        }
        own = replace(batch, spans=({**batch.spans[0], **named},))
        with ExitStack() as stack:
            stack.enter_context(patch(vlm, [writing(each) for each in parts if isinstance(each, Edit)]))
            for k, each in enumerate(parts):
                if isinstance(each, Cut):
                    stack.enter_context(knockout(vlm, queries=f"{k} queries", keys=f"{k} keys", layers=each.layers))
            logits = vlm.forward(own)[0, at - 1].float()
        found.append(measured(logits, tokens, base, rival))
    return Score(*(torch.stack(each) for each in zip(*found, strict=True)))


def measured(logits, tokens, base, rival):
    logprobs = logits.log_softmax(-1)
    difference = torch.tensor(torch.nan)
    for k in range(0 if rival is None else min(len(rival), len(tokens))):
        if rival[k] != tokens[k]:
            difference = logits[k, tokens[k]] - logits[k, rival[k]]
            break
    return (
        logprobs[torch.arange(len(tokens)), tokens].sum(),
        logits[0].argmax() == tokens[0],
        (logits.argmax(-1) == tokens).all(),
        (logits[0].argsort(descending=True) == tokens[0]).nonzero()[0, 0],
        difference,
        torch.nn.functional.kl_div(logprobs[0], base[0].log_softmax(-1), log_target=True, reduction="sum"),
    )


def require_equal(got, wanted, tolerance=1e-5):
    assert ((got.logprob - wanted.logprob).abs() <= tolerance * wanted.logprob.abs()).all()
    for name in ("first", "greedy", "rank"):
        assert torch.equal(getattr(got, name), getattr(wanted, name))
    assert torch.equal(got.difference.isnan(), wanted.difference.isnan())
    known = ~wanted.difference.isnan()
    assert torch.allclose(got.difference[known], wanted.difference[known], rtol=tolerance, atol=tolerance)
    assert torch.allclose(got.kl, wanted.kl, rtol=10 * tolerance, atol=tolerance)


@ATTENTIONS
@families
def test_every_site_of_every_family(name, attention):
    vlm = load(name, attention)
    batch = prompt(vlm)
    edits = random_edits(vlm, batch, sites_of(vlm), seed=0)
    cells = [*edits, *pairs_of(edits, 8)]
    rival = vlm.encode([shown(QUESTION, 1, (50, 37), BOX)], answers=["four"])
    rival = rival.inputs["input_ids"][0, rival.positions("answer")[0]]
    wanted = by_patch(vlm, batch, cells, rival)
    assert wanted.logprob.std() > 1e-3  # the edits do something
    assert wanted.kl.max() > 1e-4
    assert wanted.difference.isfinite().all()
    run = replay(vlm, batch, rival=rival)
    require_equal(run.score(cells, budget=2**20), wanted)
    assert run.exact
    unpatched = vlm.score(batch)
    assert run.base.logprob == pytest.approx(unpatched.logprob, rel=1e-6)
    assert torch.equal(run.base.rank, unpatched.rank)


@ATTENTIONS
@families
def test_cut_attention_of_every_family(name, attention):
    """Alone, several at once, and beside edits."""
    vlm = load(name, attention)
    batch = prompt(vlm)
    cuts = random_cuts(vlm, batch, seed=4)
    edits = random_edits(vlm, batch, sites_of(vlm)[::4], seed=5, each=1)
    cells = [*cuts, cuts[:2], *([cut, edit] for cut, edit in zip(cuts, edits, strict=False))]
    wanted = by_patch(vlm, batch, cells)
    assert wanted.logprob.std() > 1e-5
    run = replay(vlm, batch, proofs=0)
    require_equal(run.score(cells), wanted)
    require_equal(run.score(cells, budget=1), wanted)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "mllama", "gemma3"])
def test_single_heads(name):
    vlm = load(name)
    batch = prompt(vlm)
    rng = torch.Generator().manual_seed(7)
    site = f"lm.{vlm.n_layers - 1}.head_z"
    cells = []
    for at, heads in ((3, (0,)), (batch.width - 4, (1,)), (batch.width - 2, (0, 1)), (5, None)):
        for where in ("lm.0.head_z", site):
            width = vlm.shape(Site.parse(where))[2:]
            values = torch.randn(2, *width, generator=rng)
            cells.append(Edit(site=where, positions=torch.tensor([at, at + 1]), values=values, heads=heads))
    wanted = by_patch(vlm, batch, cells)
    require_equal(replay(vlm, batch).score(cells), wanted)
    assert (wanted.logprob[0] - wanted.logprob[6]).abs() > 1e-5  # which heads are edited matters


def test_edits_of_one_token_are_made_one_after_the_other():
    """Two heads of one layer in two edits; and an edit that overwrites another, in whole or in part."""
    vlm = load("llava")
    batch = prompt(vlm)
    rng = torch.Generator().manual_seed(11)
    width = vlm.shape(Site.parse("lm.1.head_z"))[2:]

    def edit(positions, heads, site="lm.1.head_z"):
        shape = width if site.endswith("head_z") else (vlm.d_model,)
        values = torch.randn(len(positions), *shape, generator=rng)
        return Edit(site=site, positions=torch.tensor(positions), values=values, heads=heads)

    cells = [
        [edit([5, 6], (0,)), edit([6, 5], (1,))],
        [edit([5, 6], None), edit([6], (1,))],
        [edit([6], (1,)), edit([5, 6], None)],
        [edit([5, 9], None, "lm.2.mlp_out"), edit([9], None, "lm.2.mlp_out"), edit([4], (0,))],
        [edit([5], (0,)), edit([5], None, "lm.0.attn_out"), edit([5], (1,))],
    ]
    wanted = by_patch(vlm, batch, cells)
    require_equal(replay(vlm, batch).score(cells), wanted)
    assert wanted.logprob.std() > 1e-3


@families
def test_sites_before_the_decoder_are_run_as_whole_passes(name):
    vlm = load(name)
    batch = prompt(vlm)
    rng = torch.Generator().manual_seed(8)
    sites = [site for site in vlm.sites if Site.parse(site).visual][:: max(1, vlm.n_vision_layers)]
    with capture(vlm, sites) as acts:
        vlm.forward(batch)
    edits = []
    for site in acts:
        feature = tuple(vlm.shape(Site.parse(site))[1:])
        tokens = acts[site].reshape(-1, *feature)
        at = torch.arange(len(tokens))[:5]
        edits.append(Edit(site=site, positions=at, values=tokens[at] + torch.randn(5, *feature, generator=rng)))
    inside = random_edits(vlm, batch, ["lm.1.resid_post"], seed=9, each=1)
    cells = [*edits, *inside, [edits[0], inside[0]]]
    require_equal(replay(vlm, batch).score(cells), by_patch(vlm, batch, cells))


def test_a_replay_that_is_wrong_is_found_and_not_used(monkeypatch):
    vlm = load("llava", "auto")
    vlm.proofs.asked.clear()
    batch = prompt(vlm)
    cells = random_edits(vlm, batch, sites_of(vlm)[::3], seed=1)
    wanted = by_patch(vlm, batch, cells)
    causal = Recording._causal
    monkeypatch.setattr(Recording, "_causal", lambda self, positions: causal(self, positions).logical_not())
    assert not torch.allclose(replay(vlm, batch, proofs=0).score(cells).logprob, wanted.logprob, rtol=1e-3)
    run = replay(vlm, batch)
    with pytest.warns(
        ReplayWarning, match=r"replay of .* differs from a whole pass, here by .* every cell of such sites"
    ):
        found = run.score(cells)
    assert not run.exact
    require_equal(found, wanted)
    for _ in range(3):  # also where no proof would be due
        again = replay(vlm, batch)
        with pytest.warns(ReplayWarning):
            require_equal(again.score(cells), wanted)
        assert not again.exact
    vlm.proofs.failed.clear()


def test_whole_passes_are_run_for_the_proofs_alone(monkeypatch):
    vlm = load("llava")
    vlm.proofs.asked.clear()
    batch = prompt(vlm)
    cells = random_edits(vlm, batch, sites_of(vlm)[::3], seed=1)
    passes = []
    handle = vlm.model.register_forward_pre_hook(lambda *_: passes.append(1))
    run = replay(vlm, batch, proofs=3)
    run.score(cells)
    run.score(cells)
    for _ in range(4):
        replay(vlm, batch).score(cells)
    handle.remove()
    assert len(passes) == 1 + 3 + 4 + 2  # three proofs, then one in the 2nd and one in the 4th prompt


@pytest.mark.parametrize("attention", ["eager", "auto"])
@families
def test_a_prefix_may_be_shared_or_copied(name, attention, monkeypatch):
    """Edits of the last tokens: their cells have a long prefix in common."""
    vlm = load(name, attention)
    batch = prompt(vlm)
    first = max(Recording(vlm, batch).firsts[-1], 1)
    rng = torch.Generator().manual_seed(3)
    with capture(vlm, "lm.*.resid_post") as acts:
        vlm.forward(batch)
    cells = [
        Edit(site=site, positions=torch.tensor([at]), values=there + torch.randn(there.shape, generator=rng))
        for site in acts
        for at in range(max(first, batch.width - 4), batch.width)
        for there in [acts[site][0][[at]]]
    ]
    found = []
    for limit in (0.0, 1e9):
        monkeypatch.setattr(_recording, "SHARED", limit)
        found.append(replay(vlm, batch).score(cells))
    require_equal(*found)
    require_equal(found[0], by_patch(vlm, batch, cells))


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "mllama"])
def test_the_layout_of_batches_changes_nothing(name):
    vlm = load(name)
    batch = prompt(vlm)
    cells = random_edits(vlm, batch, sites_of(vlm)[::3], seed=1)
    run = replay(vlm, batch)
    together, alone = run.score(cells, budget=2**30), run.score(cells, budget=1)
    require_equal(together, alone, 2e-6)
    turned = run.score(cells[::-1], budget=2**22)
    require_equal(turned[torch.arange(len(cells)).flip(0)], alone, 2e-6)


@families
def test_what_is_captured_of_the_recorded_run_is_what_a_capture_gives(name):
    vlm = load(name)
    batch, sites = prompt(vlm), sites_of(vlm)
    with capture(vlm, sites) as acts:
        vlm.forward(batch)
    held = replay(vlm, batch, sites=sites).held
    assert set(held) == set(acts) == set(sites)
    assert all(torch.equal(held[site], acts[site]) for site in sites)


@families
def test_its_own_activations_change_nothing(name):
    vlm = load(name)
    batch = prompt(vlm)
    sites = [f"lm.{layer}.resid_post" for layer in range(vlm.n_layers)]
    with capture(vlm, sites) as acts:
        base = vlm.score(batch)
    every = torch.arange(batch.width)
    score = replay(vlm, batch).score([Edit(site=site, positions=every, values=acts[site][0]) for site in sites])
    assert score.logprob == pytest.approx(base.logprob.repeat(len(sites)), rel=1e-5)


def test_no_token_before_the_first_one_sees_a_later_one():
    """PaliGemma's prompt is one block; Gemma 3's image is; LLaVA has none."""
    for name in ("llava", "gemma3", "paligemma"):
        vlm = load(name)
        batch = prompt(vlm)
        record = Recording(vlm, batch)
        firsts, image = record.firsts, batch.positions("image")[0].tolist()
        assert all(first <= position for position, first in enumerate(firsts))
        if name == "llava":
            assert firsts == list(range(batch.width))
        else:
            assert {firsts[position] for position in image} == {firsts[image[0]]}
            assert firsts[image[0]] <= image[0]
        last = batch.positions("answer")[0][-1]
        assert firsts[last] == last


def test_a_later_patch_takes_fewer_tokens_and_layers(monkeypatch):
    """What is computed, counted: the tokens that pass each layer."""
    vlm = load("llava")
    batch = prompt(vlm)
    run = replay(vlm, batch, proofs=0)
    taken = []
    handles = [
        layer.block.register_forward_pre_hook(lambda _, args: taken.append(args[0].shape[:2].numel()))
        for layer in vlm.anatomy.layers
    ]
    at = batch.width - 4
    edit = Edit(site="lm.1.resid_post", positions=torch.tensor([at]), values=torch.zeros(1, vlm.d_model))
    run.score([edit] * 3)
    for handle in handles:
        handle.remove()
    read = len(batch.positions("answer")[0]) - 1  # the positions from `at` on that the answer is read from
    assert read < 4
    # the last token of the answer is not read; the last layer makes keys of all and the rest of what is read
    assert taken == [*[3 * 3] * (vlm.n_layers - 2), *([3 * read] if read < 3 else [])]


class _Plan:
    def __init__(self, start, layer=0):
        self.start, self.layer, self.alike = start, layer, layer


def test_batches_hold_few_wasted_tokens_and_no_more_than_fit():
    plans = [_Plan(start, layer) for start in range(90) for layer in (0, 1)]
    found = list(batches(plans, 100, 400))
    assert sorted(id(plan) for some in found for plan in some) == sorted(map(id, plans))
    for some in found:
        taken = len(some) * (100 - min(plan.start for plan in some))
        assert len({plan.layer for plan in some}) == 1
        assert len(some) == 1 or taken <= 400
        assert taken - sum(100 - plan.start for plan in some) <= max(128, 0.1 * taken)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3", "mllama"])
def test_bfloat16_has_the_same_top_token(name):
    """But where the two likeliest tokens are as near as two numbers in half precision can be."""
    vlm = load(name, "auto", torch.bfloat16)
    count = 0
    for seed, words in enumerate(("", "tell me ", "look at the picture and then tell me ")):
        batch = prompt(vlm, question=words + QUESTION, seed=seed)
        cells = random_edits(vlm, batch, sites_of(vlm), seed=seed, each=4)
        found = in_order(replay(vlm, batch, proofs=0).logits(cells))
        for cell, logits in zip(cells, found, strict=True):
            (first, second), tokens = run_whole(vlm, batch, [cell])[0].topk(2)
            near = first - second <= 2**-7 * first.abs()
            assert near or logits[0].argmax() == tokens[0], cell.site
            count += not near
    assert count > 150


def in_order(parts):
    """The logits of each cell, in the order in which the cells were given."""
    held = {number: own for numbers, logits in parts for number, own in zip(numbers, logits, strict=True)}
    return [held[number] for number in sorted(held)]


WORDS = ("red", "card", "what", "is", "the", "sum", "of", "two", "and")


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_cells_of_any_prompt_within_any_budget(data):
    """Prompts of all lengths, up to eight edits and cuts in a cell, cells in any order, batches of any size."""
    vlm = load(
        data.draw(st.sampled_from(["llava", "qwen2_5_vl", "gemma3", "paligemma", "mllama"])),
        data.draw(st.sampled_from(["eager", "auto"])),
    )
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30))
    batch = prompt(vlm, data.draw(st.sampled_from(["nine", "a red card", "4"])), " ".join(words))
    seed = data.draw(st.integers(0, 10_000))
    rng = torch.Generator().manual_seed(seed)
    parts = [*random_edits(vlm, batch, sites_of(vlm), seed, each=1), *random_cuts(vlm, batch, seed)]
    order = torch.randperm(len(parts), generator=rng).tolist()
    cells = []
    while order and len(cells) < 12:
        size = data.draw(st.integers(1, 8))
        cells.append([parts[k] for k in order[:size]])
        order = order[size:]
    wanted = by_patch(vlm, batch, cells)
    found = replay(vlm, batch, proofs=0).score(cells, budget=data.draw(st.sampled_from([1, 2**14, 2**18, 2**30])))
    require_equal(found, wanted)


def test_wrong_input():
    vlm = load("llava")
    batch = prompt(vlm)
    run = replay(vlm, batch)
    value = torch.zeros(1, vlm.d_model)
    edit = Edit(site="lm.0.resid_post", positions=torch.tensor([3]), values=value)
    with pytest.raises(SiteError, match="holds weights, no tokens"):
        run.score([Edit(site="lm.0.pattern", positions=torch.tensor([0]), values=value)])
    with pytest.raises(SiteError, match="has no heads"):
        run.score([replace(edit, heads=(0,))])
    heads = torch.zeros(1, *vlm.shape(Site.parse("lm.0.head_z"))[2:])
    with pytest.raises(SiteError, match="has heads 0 to"):
        run.score([Edit(site="lm.0.head_z", positions=torch.tensor([3]), values=heads, heads=(99,))])
    with pytest.raises(SiteError, match="the decoder has layers 0 to"):
        run.score([Cut(layers=(99,), queries=torch.tensor([3]), keys=torch.tensor([1]))])
    with pytest.raises(SpanError, match="cut: keys must be in 0 to"):
        run.score([Cut(layers=(0,), queries=torch.tensor([3]), keys=torch.tensor([batch.width]))])
    with pytest.raises(RunError, match="there is no cell to run"):
        run.score([])
    text = replay(vlm, vlm.encode([Prompt(segments=(Segment("what?"),))], answers=["nine"]))
    with pytest.raises(SiteError, match="cannot be edited: the prompt has no image"):
        text.score([Edit(site="projector.out", positions=torch.tensor([0]), values=value)])
    with pytest.raises(SiteError, match="unknown site"):
        run.score([Edit(site="lm.9.resid_post", positions=torch.tensor([0]), values=value)])
    with pytest.raises(SpanError, match=f"positions must be in 0 to {batch.width - 1}"):
        run.score([Edit(site="lm.0.resid_post", positions=torch.tensor([batch.width]), values=value)])
    with pytest.raises(RunError, match="a cell needs an edit or a cut"):
        run.score([[]])
    with pytest.raises(RunError, match="one prompt at a time, not of 2"):
        replay(vlm, vlm.encode([shown(QUESTION, 1)] * 2, answers=["a", "b"]))
    with pytest.raises(SpanError, match="needs an answer"):
        replay(vlm, vlm.encode([shown(QUESTION, 1)]))
    with patch(vlm, Patch("lm.0.resid_post", lambda value: value)), pytest.raises(RunError, match="inside"):
        replay(vlm, batch)
    for positions in ([3], torch.tensor(3), torch.tensor([3.0]), torch.tensor([True] * batch.width)):
        with pytest.raises(SpanError, match="must be whole numbers in a tensor of one dimension"):
            run.score([replace(edit, positions=positions)])
    with pytest.raises(SiteError, match="values are a tensor, not a Ragged"):
        run.score([replace(edit, values=Ragged.from_list([value]))])
    with pytest.raises(SiteError, match="needs values of shape"):
        run.score([Edit(site="lm.0.mlp_out", positions=torch.tensor([3]), values=torch.zeros(1, 5))])
    with pytest.raises(SiteError, match="needs values of shape"):
        run.score([Edit(site="lm.0.resid_post", positions=torch.tensor([3]), values=torch.zeros(1, 5))])
    assert run.score([edit]).logprob.shape == (1,)
    assert not vlm.wiring.taps.places
