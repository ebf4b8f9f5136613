from __future__ import annotations

import random

import pytest

from seamscope.hooks import Site, SiteError, Vlm
from seamscope.hooks._site import LAYER_KINDS, expand_sites, sites_of

PLAIN = ("resid_pre", "pattern", "head_z", "attn_out", "resid_mid", "mlp_out", "resid_post")
SITES = sites_of(n_vision_layers=2, lm=[PLAIN] * 12)


def test_every_name_parses_to_itself():
    assert all(str(Site.parse(name)) == name for name in SITES)
    assert Site.parse("lm.3.resid_post") == Site("lm", "resid_post", 3)
    assert Site.parse("lm.0.resid_post").layer == 0
    assert Site.parse("projector.out").layer is None
    assert Site.parse(Site("lm", "embed")) == Site("lm", "embed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lm.3.resid_pots", "unknown site 'lm.L.resid_pots'; nearest: lm.L.resid_post"),
        ("lm.resid_post", "unknown site 'lm.resid_post'; nearest: lm.L.resid_post"),
        ("lm.L.resid_post", "site 'lm.L.resid_post' needs a layer number"),
        ("vision.1.mlp_out", "unknown site 'vision.L.mlp_out'; nearest: lm.L.mlp_out"),
        ("lm.-1.resid_post", "unknown site 'lm.-1.resid_post'"),
        ("", "unknown site ''"),
    ],
)
def test_what_is_no_site_is_refused(text: str, message: str):
    with pytest.raises(SiteError) as caught:
        Site.parse(text)
    assert message in str(caught.value)


def test_sites_sort_in_forward_order_and_layer_ten_comes_after_layer_nine():
    shuffled = list(SITES)
    random.Random(0).shuffle(shuffled)
    assert [str(site) for site in sorted(map(Site.parse, shuffled))] == list(SITES)
    assert SITES.index("lm.9.resid_post") < SITES.index("lm.10.resid_pre")
    assert SITES[0] == "vision.0.resid_post"
    assert SITES[2:4] == ("projector.out", "lm.embed")
    assert SITES[-2:] == ("lm.final_norm", "lm.logits")


def test_forward_order_is_the_order_in_which_the_model_computes(eager: Vlm, prompts):
    batch, order = eager.encode(prompts), []
    handles = []
    for name in eager.sites:
        place = eager.point(name).place
        if place.side == "out" and place.item == 0:
            handles.append(place.module.register_forward_hook(lambda *_, name=name: order.append(name)))
    eager.forward(batch)
    [handle.remove() for handle in handles]
    assert order == [name for name in eager.sites if name in order]
    assert len(order) == len(handles)


def test_globs_expand_in_forward_order_and_each_once():
    wanted = ["lm.1*.resid_post", "lm.0.resid_post", "lm.10.resid_post", Site("projector", "out")]
    assert expand_sites(wanted, SITES) == (
        "projector.out",
        "lm.0.resid_post",
        "lm.1.resid_post",
        "lm.10.resid_post",
        "lm.11.resid_post",
    )
    assert expand_sites("vision.*", SITES) == ("vision.0.resid_post", "vision.1.resid_post")
    assert expand_sites("*", SITES) == SITES


def test_a_layer_that_the_model_lacks_is_refused_with_the_nearest(vlm: Vlm):
    with pytest.raises(SiteError, match=r"unknown site 'lm.4.resid_post'; nearest: .*lm.3.resid_post"):
        vlm.expand("lm.4.resid_post")
    with pytest.raises(SiteError, match=r"unknown site 'lm.\*.resid_pots'; nearest: "):
        vlm.expand(["lm.0.resid_pre", "lm.*.resid_pots"])


def test_layers_may_differ_in_their_kinds():
    """As in Mllama, where some layers attend to the image, and in Qwen3-VL, where features are added behind some."""
    crossing = ("cross_attn_out", "resid_pre", "resid_post")
    sites = sites_of(n_vision_layers=0, lm=[("resid_post", "deepstack", "resid_pre"), crossing])
    assert sites == (
        *("projector.out", "lm.embed"),
        *("lm.0.resid_pre", "lm.0.resid_post", "lm.0.deepstack"),
        *("lm.1.resid_pre", "lm.1.cross_attn_out", "lm.1.resid_post"),
        *("lm.final_norm", "lm.logits"),
    )
    assert expand_sites("lm.*.deepstack", sites) == ("lm.0.deepstack",)
    with pytest.raises(SiteError, match=r"unknown site 'lm.1.deepstack'; nearest: lm.0.deepstack"):
        expand_sites("lm.1.deepstack", sites)


def test_every_kind_has_an_address():
    for stack, kinds in LAYER_KINDS.items():
        for kind in kinds:
            assert Site.parse(f"{stack}.0.{kind}") == Site(stack, kind, 0)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vision.0.resid_post", "vision"),
        ("projector.out", "projector"),
        ("lm.2.deepstack", "projector"),  # a projector's features, on their way to a layer
        ("lm.2.cross_attn_out", "lm"),
        ("lm.2.resid_post", "lm"),
        ("lm.embed", "lm"),
        ("lm.logits", "lm"),
    ],
)
def test_a_site_tells_whose_tokens_it_holds(name: str, tokens: str):
    site = Site.parse(name)
    assert site.tokens == tokens
    assert site.visual == (tokens != "lm")


def test_plain_models_have_neither_cross_attention_nor_deepstack(each: Vlm):
    kinds = {Site.parse(name).kind for name in each.sites}
    assert {"cross_attn_out", "deepstack"}.isdisjoint(kinds)
    assert ("pattern" in kinds) == (each.attn_implementation == "eager")
    assert each.routes == ("projector.out",)
    assert [each.entering(layer) for layer in range(4)] == [()] * 4
