from __future__ import annotations

import random

import pytest

from seamscope.hooks import Site, SiteError, Vlm
from seamscope.hooks._site import expand_sites, sites_of

SITES = sites_of(n_vision_layers=2, n_layers=12)


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
