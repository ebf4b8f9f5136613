"""A direct path equals that of whole passes in which everything else is held as it was, in every family."""

import pytest
import torch

from seamscope.hooks import Edit, Patch, Site, SiteError, capture, direct_path, patch, replay

from .families_fixture import families, load
from .test_replay import by_patch, prompt


def attention(vlm, layer):
    return f"lm.{layer}." + ("cross_attn_out" if vlm.anatomy.layers[layer].crossed else "attn_out")


def writing(edit):
    heads = slice(None) if edit.heads is None else list(edit.heads)

    def write(value):
        for k, position in enumerate(edit.positions.tolist()):
            value[0, position, heads] = edit.values[k, heads].to(value)
        return value

    return Patch(edit.site, write)


def by_freezing(vlm, batch, sender, receiver):
    """The answer's log-probability when the receiver alone has what the sender gives it with all between held fixed."""
    source, target = Site.parse(sender.site), Site.parse(receiver)
    written = [
        (layer, site) for layer in range(vlm.n_layers) for site in (attention(vlm, layer), f"lm.{layer}.mlp_out")
    ]
    with capture(vlm, [site for _, site in written]) as acts:
        vlm.forward(batch)
    first = source.layer + 1 if source.kind == "resid_post" else source.layer
    own = attention(vlm, source.layer) if source.kind == "head_z" else sender.site
    held = [site for layer, site in written if first <= layer <= target.layer and site not in (own, receiver)]
    if target.kind in ("attn_out", "cross_attn_out", "head_z"):
        held = [site for site in held if site != attention(vlm, target.layer)]
    with patch(vlm, [*(Patch(site, acts[site]) for site in held), writing(sender)]), capture(vlm, receiver) as reached:
        vlm.forward(batch)
    with patch(vlm, Patch(receiver, reached[receiver])):
        return vlm.score(batch).logprob


def random_sender(vlm, batch, site, seed, heads=None):
    rng = torch.Generator().manual_seed(seed)
    with capture(vlm, site) as acts:
        vlm.forward(batch)
    positions = torch.tensor([2, 9, batch.width - 3])
    there = acts[site][0][positions]
    spread = 10 * acts[site].std()
    return Edit(
        site=site, positions=positions, values=there + spread * torch.randn(there.shape, generator=rng), heads=heads
    )


@families
def test_every_kind_of_path_of_every_family(name):
    vlm = load(name)
    batch = prompt(vlm)
    last = vlm.n_layers - 1
    run = replay(vlm, batch)
    base = run.base.logprob
    moved = 0
    for sender, heads in (
        (attention(vlm, 0), None),
        ("lm.0.mlp_out", None),
        ("lm.1.head_z", (1,)),
        ("lm.1.resid_pre", None),
        ("lm.0.resid_post", None),
    ):
        edit = random_sender(vlm, batch, sender, seed=len(sender), heads=heads)
        for receiver in (attention(vlm, last), f"lm.{last}.mlp_out", f"lm.{last}.resid_post", "lm.1.mlp_out"):
            if receiver == f"lm.{last}.head_z":
                continue
            wanted = by_freezing(vlm, batch, edit, receiver)
            found = run.score([direct_path(run, edit, receiver)]).logprob
            assert found == pytest.approx(wanted, rel=2e-5), (sender, receiver)
            moved += bool((wanted - base).abs() > 1e-5)
    assert moved > 10


def test_a_path_is_not_all_that_a_sender_does():
    vlm = load("llava")
    batch = prompt(vlm)
    run = replay(vlm, batch)
    edit = random_sender(vlm, batch, "lm.0.attn_out", seed=1)
    whole = by_patch(vlm, batch, [edit]).logprob
    path = run.score([direct_path(run, edit, "lm.2.mlp_out")]).logprob
    assert (whole - path).abs() > 1e-4
    straight = direct_path(run, edit, f"lm.{vlm.n_layers - 1}.resid_post")
    assert straight.positions.tolist() == edit.positions.tolist()


def test_an_edit_that_writes_what_is_there_reaches_nothing():
    vlm = load("llava")
    batch = prompt(vlm)
    run = replay(vlm, batch)
    with capture(vlm, "lm.1.attn_out") as acts:
        vlm.forward(batch)
    own = Edit(site="lm.1.attn_out", positions=torch.tensor([5]), values=acts["lm.1.attn_out"][0, [5]])
    assert run.score([direct_path(run, own, "lm.3.attn_out")]).logprob == pytest.approx(run.base.logprob, rel=1e-5)


def test_paths_that_are_none():
    vlm = load("llava")
    batch = prompt(vlm)
    run = replay(vlm, batch)
    edit = random_sender(vlm, batch, "lm.2.attn_out", seed=1)
    for receiver in ("lm.1.mlp_out", "lm.2.attn_out", "lm.2.resid_post"):
        with pytest.raises(SiteError, match="there is no direct path from"):
            direct_path(run, edit, receiver)
    for receiver in ("lm.3.resid_mid", "lm.final_norm", "projector.out"):
        with pytest.raises(SiteError, match="there is no path from"):
            direct_path(run, edit, receiver)


@pytest.mark.parametrize("layer", [1, 3])
def test_a_text_token_before_the_picture_sends_nothing_past_a_masked_mlp(layer):
    """Llama 3.2 Vision masks what cross-attention layers add to tokens that see no picture."""
    vlm = load("mllama")
    assert vlm.anatomy.layers[layer].crossed
    batch = prompt(vlm)
    run = replay(vlm, batch)
    edit = Edit(site=f"lm.{layer}.mlp_out", positions=torch.tensor([0]), values=3 * torch.ones(1, vlm.d_model))
    for receiver in (f"lm.{vlm.n_layers - 1}.head_z", f"lm.{vlm.n_layers - 1}.resid_post"):
        found = run.score([edit, direct_path(run, edit, receiver)]).logprob
        assert found == pytest.approx(run.base.logprob.repeat(2), rel=1e-6)


@pytest.mark.parametrize("kind", ["attn_out", "mlp_out", "resid_pre", "resid_post"])
def test_what_comes_after_all_that_is_read_reaches_nothing(kind):
    vlm = load("llava")
    batch = prompt(vlm)
    run = replay(vlm, batch)
    for positions in ([batch.width - 1], [batch.width - 1, 5]):
        at = torch.tensor(positions)
        edit = Edit(site=f"lm.1.{kind}", positions=at, values=torch.ones(len(at), vlm.d_model))
        for receiver in ("lm.3.head_z", "lm.3.mlp_out", "lm.3.resid_post"):
            found = run.score([direct_path(run, edit, receiver)]).logprob
            if len(positions) == 1:
                assert found == pytest.approx(run.base.logprob, rel=1e-6)
            else:
                assert found == pytest.approx(by_freezing(vlm, batch, edit, receiver), rel=2e-5)
