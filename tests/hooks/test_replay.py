"""A replay gives what a patch around the whole forward pass gives, in every family, at every site, however batched."""

import pytest
import torch

from seamscope.hooks import Edit, Patch, RunError, Score, SiteError, SpanError, _recording, capture, patch, replay
from seamscope.hooks._recording import Recording
from seamscope.hooks._replay import _batches

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


def by_patch(vlm, batch, cells):
    """The answer's score under every cell, each in a forward pass of its own."""

    def writing(edit):
        def write(value):
            value[:, edit.positions] = edit.values.to(value)
            return value

        return Patch(edit.site, write)

    found = []
    for cell in cells:
        with patch(vlm, [writing(edit) for edit in ([cell] if isinstance(cell, Edit) else cell)]):
            found.append(vlm.score(batch))
    return Score(*(torch.cat([getattr(each, name) for each in found]) for name in ("logprob", "first", "greedy")))


def require_equal(got, wanted, tolerance=1e-5):
    assert ((got.logprob - wanted.logprob).abs() <= tolerance * wanted.logprob.abs()).all()
    assert torch.equal(got.first, wanted.first)
    assert torch.equal(got.greedy, wanted.greedy)


@ATTENTIONS
@families
def test_every_site_of_every_family(name, attention):
    vlm = load(name, attention)
    batch = prompt(vlm)
    edits = random_edits(vlm, batch, sites_of(vlm), seed=0)
    cells = [*edits, *pairs_of(edits, 8)]
    wanted = by_patch(vlm, batch, cells)
    assert wanted.logprob.std() > 1e-3  # the edits do something
    require_equal(replay(vlm, batch).score(cells, budget=2**20), wanted)


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
    require_equal(Score(*(getattr(turned, field).flip(0) for field in ("logprob", "first", "greedy"))), alone, 2e-6)


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
    run = replay(vlm, batch)
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
    assert taken == [3 * 4] * (vlm.n_layers - 2)


class _Plan:
    def __init__(self, start, layer=0):
        self.start, self.layer, self.rest = start, layer, ()


def test_batches_hold_few_wasted_tokens_and_no_more_than_fit():
    plans = [_Plan(start, layer) for start in range(90) for layer in (0, 1)]
    found = list(_batches(plans, 100, 400))
    assert sorted(id(plan) for some in found for plan in some) == sorted(map(id, plans))
    for some in found:
        taken = len(some) * (100 - min(plan.start for plan in some))
        assert len({plan.layer for plan in some}) == 1
        assert len(some) == 1 or taken <= 400
        assert len(some) <= 4 or taken <= 1.2 * sum(100 - plan.start for plan in some)


def test_bfloat16_has_the_same_first_token():
    vlm = load("llava", "auto", torch.bfloat16)
    batch = prompt(vlm)
    cells = random_edits(vlm, batch, sites_of(vlm), seed=2, each=4)
    assert torch.equal(replay(vlm, batch).score(cells).first, by_patch(vlm, batch, cells).first)


def test_wrong_input():
    vlm = load("llava")
    batch = prompt(vlm)
    run = replay(vlm, batch)
    value = torch.zeros(1, vlm.d_model)
    edit = Edit(site="lm.0.resid_post", positions=torch.tensor([3]), values=value)
    with pytest.raises(SiteError, match="is not replayed; patch it"):
        run.score([Edit(site="projector.out", positions=torch.tensor([0]), values=value)])
    with pytest.raises(SiteError, match="unknown site"):
        run.score([Edit(site="lm.9.resid_post", positions=torch.tensor([0]), values=value)])
    with pytest.raises(SpanError, match=f"positions must be in 0 to {batch.width - 1}"):
        run.score([Edit(site="lm.0.resid_post", positions=torch.tensor([batch.width]), values=value)])
    with pytest.raises(RunError, match="a cell needs an edit"):
        run.score([[]])
    with pytest.raises(RunError, match="one prompt at a time, not of 2"):
        replay(vlm, vlm.encode([shown(QUESTION, 1)] * 2, answers=["a", "b"]))
    with pytest.raises(SpanError, match="needs an answer"):
        replay(vlm, vlm.encode([shown(QUESTION, 1)]))
    with patch(vlm, Patch("lm.0.resid_post", lambda value: value)), pytest.raises(RunError, match="inside"):
        replay(vlm, batch)
    with pytest.raises(SiteError, match="the value has shape"):
        run.score([Edit(site="lm.0.mlp_out", positions=torch.tensor([3]), values=torch.zeros(1, 5))])
    with pytest.raises(SiteError, match="needs values of shape"):
        run.score([Edit(site="lm.0.resid_post", positions=torch.tensor([3]), values=torch.zeros(1, 5))])
    assert run.score([edit]).logprob.shape == (1,)
    assert not vlm.wiring.taps.places
