"""Attribution: derivatives of the exact patch, in every family; and where it is mended, nearer to the exact effect."""

import pytest
import torch

from seamscope.hooks import Attribution, Edit, ModelError, Site, SiteError, SpanError, capture, replay

from .families_fixture import QUESTION, families, load, shown
from .test_replay import prompt, sites_of

EPSILON = 1e-3


def changes_of(vlm, batch, sites, seed=0):
    """A random change of every token of every site, about as large as the site varies."""
    rng = torch.Generator().manual_seed(seed)
    with capture(vlm, sites) as acts:
        vlm.forward(batch)
    return {site: acts[site][0] for site in sites}, {
        site: torch.randn(acts[site][0].shape, generator=rng) * acts[site].std() for site in sites
    }


def derivative(run, site, there, change, token, about, heads=None):
    """By central differences of the exact patch, so small that they change the log-probability by 0.05 or less."""
    at, step = torch.tensor([token]), min(EPSILON, 0.05 / abs(about))
    cells = [Edit(site=site, positions=at, values=there[at] + each * change[at], heads=heads) for each in (step, -step)]
    up, down = run.score(cells).logprob.double()
    return float((up - down) / (2 * step))


@families
def test_estimates_are_derivatives_of_the_exact_patch(name):
    vlm = load(name, "auto")
    batch = prompt(vlm)
    sites = sites_of(vlm)
    there, changes = changes_of(vlm, batch, sites)
    found = Attribution(vlm, batch, sites, dropping=False)
    run = replay(vlm, batch)
    for site in sites:
        estimate = found.estimate(site, changes[site])
        heads = vlm.n_heads if Site.parse(site).kind == "head_z" else None
        assert estimate.shape == (batch.width,) if heads is None else (batch.width, heads)
        token = int((estimate if heads is None else estimate.sum(1)).abs().argmax())
        own = estimate[token] if heads is None else estimate[token].sum()
        size = float(changes[site][token].norm())
        wanted = derivative(run, site, there[site], changes[site], token, float(own))
        assert float(own) == pytest.approx(wanted, rel=0.05, abs=0.02 * size + 1e-3), site
    assert not any(each.requires_grad for each in found.gradients.values())


def test_single_heads_of_shared_keys():
    vlm = load("llava")
    batch = prompt(vlm)
    there, changes = changes_of(vlm, batch, ["lm.1.head_z"])
    estimate = Attribution(vlm, batch, ["lm.1.head_z"], dropping=False).estimate("lm.1.head_z", changes["lm.1.head_z"])
    run = replay(vlm, batch)
    token = int(estimate.abs().sum(1).argmax())
    for head in range(vlm.n_heads):
        about = float(estimate[token, head])
        wanted = derivative(
            run, "lm.1.head_z", there["lm.1.head_z"], changes["lm.1.head_z"], token, about, heads=(head,)
        )
        assert float(estimate[token, head]) == pytest.approx(wanted, rel=0.05, abs=2e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "mistral3"])
def test_made_anew_attention_is_the_same_for_small_changes_and_better_for_large_ones(name):
    vlm = load(name, "eager")
    batch = prompt(vlm)
    with torch.no_grad():  # weights that are nearly all or nothing
        for layer in vlm.anatomy.layers:
            layer.attn.q_proj.weight.mul_(6)
    try:
        site = "lm.1.resid_pre"
        there, changes = changes_of(vlm, batch, [site])
        plain = Attribution(vlm, batch, [site], dropping=False)
        mended = Attribution(vlm, batch, [site], exact_attention=True, dropping=False)
        run = replay(vlm, batch)
        small = EPSILON * changes[site]
        together = mended.estimate(site, small) + mended.attention(run, site, small)
        assert together == pytest.approx(plain.estimate(site, small), rel=0.1, abs=2e-2 * float(together.abs().max()))
        large = 4 * changes[site]
        every = range(batch.width)
        cells = [Edit(site=site, positions=torch.tensor([k]), values=there[site][[k]] + large[[k]]) for k in every]
        exact = run.score(cells).logprob - run.base.logprob
        errors = [
            float((exact - estimate).abs().mean())
            for estimate in (
                plain.estimate(site, large),
                mended.estimate(site, large) + mended.attention(run, site, large),
            )
        ]
        assert errors[1] < errors[0]
    finally:
        with torch.no_grad():
            for layer in vlm.anatomy.layers:
                layer.attn.q_proj.weight.div_(6)


def test_dropping_a_layer_shows_effects_that_cancel():
    """A change that one layer takes back has no gradient; without that layer it has one."""
    vlm = load("llava")
    batch = prompt(vlm)
    site = "lm.0.resid_post"
    _, changes = changes_of(vlm, batch, [site])
    found = Attribution(vlm, batch, [site])
    gradient = found.gradients[site]
    token = batch.width - 3
    change = changes[site][token].clone()
    change -= gradient[token] * (change @ gradient[token]) / gradient[token].square().sum()  # to first order, nothing
    only = torch.zeros_like(changes[site])
    only[token] = change
    assert abs(float(found.estimate(site, only)[token])) < 1e-6
    assert float(found.dropped(site, only)[token]) > 1e-3
    assert (found.dropped(site, only)[:token] == 0).all()


def test_nothing_is_left_behind():
    vlm = load("llava")
    batch = prompt(vlm)
    before = vlm.score(batch).logprob
    weights = [each.requires_grad for each in vlm.model.parameters()]
    Attribution(vlm, batch, ["lm.1.resid_post"], exact_attention=True)
    assert [each.requires_grad for each in vlm.model.parameters()] == weights
    assert not vlm.wiring.taps.places
    assert torch.equal(vlm.score(batch).logprob, before)
    assert all(each.grad is None for each in vlm.model.parameters())


def test_wrong_input():
    vlm = load("llava", "auto")
    batch = prompt(vlm)
    with pytest.raises(SiteError, match="is not attributed"):
        Attribution(vlm, batch, ["projector.out"])
    with pytest.raises(SpanError, match="one prompt with an answer"):
        Attribution(vlm, vlm.encode([shown(QUESTION, 1)]), ["lm.0.resid_post"])
    with pytest.raises(ModelError, match="needs attention weights"):
        Attribution(vlm, batch, ["lm.0.resid_post"], exact_attention=True)
    with pytest.raises(SiteError, match="dropping=False"):
        Attribution(vlm, batch, ["lm.0.resid_post"], dropping=False).dropped("lm.0.resid_post", torch.zeros(1))


def test_gradients_of_the_logit_difference():
    vlm = load("llava")
    batch, rival = (prompt(vlm, answer) for answer in ("nine", "four"))
    tokens = rival.inputs["input_ids"][0, rival.positions("answer")[0]]
    site = "lm.1.mlp_out"
    there, changes = changes_of(vlm, batch, [site])
    estimate = Attribution(vlm, batch, [site], rival=tokens, dropping=False).estimate(site, changes[site])
    run = replay(vlm, batch, rival=tokens)
    token = int(estimate.abs().argmax())
    at = torch.tensor([token])
    values = [there[site][at] + sign * EPSILON * changes[site][at] for sign in (1, -1)]
    up, down = run.score([Edit(site=site, positions=at, values=each) for each in values]).difference.double()
    assert float(estimate[token]) == pytest.approx(float((up - down) / (2 * EPSILON)), rel=0.05, abs=2e-3)
    own = batch.inputs["input_ids"][0, batch.positions("answer")[0]]
    with pytest.raises(SpanError, match="there is no logit difference"):
        Attribution(vlm, batch, [site], rival=own)
