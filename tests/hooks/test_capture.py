from __future__ import annotations

import pytest
import torch

from seamscope.hooks import Ragged, Site, SiteError, SpanError, Vlm, capture

from .conftest import ask, footprint, held, picture
from .oracle import read_by_hand

PADDINGS = pytest.mark.parametrize("padding", ["left", "right"])


@PADDINGS
def test_every_site_is_the_models_own_tensor_bit_for_bit(each: Vlm, prompts, padding):
    batch = each.encode(prompts, padding=padding)
    wanted = read_by_hand(each, batch)
    with capture(each, "*") as acts:
        each.forward(batch)
    assert set(acts) == set(wanted) == set(each.sites)
    for site in each.sites:
        assert acts[site].dtype == wanted[site].dtype
        assert torch.equal(acts[site], wanted[site]), site


def test_hidden_states_agree_and_the_last_of_them_is_normed(each: Vlm, prompts):
    batch = each.encode(prompts)
    with torch.inference_mode(), capture(each, "*") as acts:
        hidden = each.model(**batch.inputs, use_cache=False, output_hidden_states=True).hidden_states
    for layer in range(4):
        assert torch.equal(acts[f"lm.{layer}.resid_pre"], hidden[layer])
        assert torch.equal(acts[f"lm.{layer}.resid_post"], hidden[layer + 1]) == (layer < 3)
    assert torch.equal(acts["lm.final_norm"], hidden[-1])


def test_lens_of_the_last_residual_stream_gives_the_logits_and_norming_twice_does_not(each: Vlm, prompts):
    batch = each.encode(prompts)
    with capture(each, "*") as acts:
        logits = each.forward(batch)
    head, norm = each.anatomy.head, each.anatomy.norm
    last = acts["lm.3.resid_post"]
    assert torch.equal(head(norm(last)), logits)
    assert not torch.allclose(head(norm(norm(last))), logits, atol=1e-2)


@PADDINGS
def test_capture_changes_no_logit(each: Vlm, prompts, padding):
    batch = each.encode(prompts, padding=padding)
    plain = each.forward(batch)
    with capture(each, "*"):
        assert torch.equal(each.forward(batch), plain)
    with capture(each, "*", spans=["image", "last"]):
        assert torch.equal(each.forward(batch), plain)


@PADDINGS
def test_spans_are_rows_of_the_whole_tensor(each: Vlm, prompts, padding):
    batch = each.encode(prompts, padding=padding)
    spans = ["image", "image.object.0", "image.object.1", "question", "last", "prompt"]
    with capture(each, "lm.*") as whole:
        each.forward(batch)
    with capture(each, "lm.*", spans=spans) as acts:
        each.forward(batch)
    assert len(acts) == len(spans) * len(whole)
    for site, span in acts:
        for row, tokens in enumerate(acts[site, span].split()):
            positions = batch.positions(span)[row]
            full = whole[site][row].transpose(0, 1) if site.endswith("pattern") else whole[site][row]
            assert torch.equal(tokens, full[positions])


@PADDINGS
def test_spans_of_images_are_the_same_patches_in_tower_and_projector(each: Vlm, prompts, padding):
    """Row 1 comes first so that counting by rows, not by images, would go wrong."""
    batch = each.encode([prompts[2], prompts[0], prompts[1]], padding=padding)
    spans = ["image", "image.object.0", "image.object.1"]
    with capture(each, ["vision.*", "projector.out"], spans=spans) as acts, capture(each, "*") as whole:
        each.forward(batch)
    cls = int(whole["vision.0.resid_post"].shape[1] == 10)
    cells = {"image": [*range(9)], "image.object.0": [0], "image.object.1": [4, 5]}
    for span in spans:
        lengths = [0, len(cells[span]), 0 if span == "image.object.1" else len(cells[span])]
        for site in ("vision.1.resid_post", "projector.out"):
            assert acts[site, span].lengths.tolist() == lengths
            _, first, second = acts[site, span].split()
            shift = cls if site.startswith("vision") else 0
            patches = [cell + shift for cell in cells[span]]
            assert torch.equal(first, whole[site][0][patches])
            assert torch.equal(second, whole[site][1][patches[: lengths[2]]])
    assert torch.equal(acts["projector.out", "image"].values, whole["lm.embed"][batch.inputs["input_ids"] == 4])


def test_several_pictures_in_one_prompt_keep_their_order(each: Vlm):
    batch = each.encode([ask("red", picture(1), picture(2)), ask("card", picture(3))])
    with (
        capture(each, ["projector.out", "lm.embed"], spans="image") as acts,
        capture(each, "projector.out") as whole,
    ):
        each.forward(batch)
    assert acts["projector.out", "image"].lengths.tolist() == [18, 9]
    assert torch.equal(acts["projector.out", "image"].values, whole["projector.out"].flatten(0, 1))
    assert torch.equal(acts["lm.embed", "image"].values, whole["projector.out"].flatten(0, 1))


def test_only_the_rows_of_a_span_are_copied_and_no_view_keeps_the_rest_alive(eager: Vlm, prompts):
    batch = eager.encode(prompts)
    with capture(eager, "*", spans=["image", "last"]) as acts:
        eager.forward(batch)
    for tokens in acts.values():
        assert tokens.values.untyped_storage().nbytes() == tokens.values.numel() * tokens.values.element_size()


def test_captured_tensors_are_copies_and_ordinary_ones(vlm: Vlm, prompts):
    batch = vlm.encode(prompts)
    handle = vlm.anatomy.layers[0].block.register_forward_hook(lambda module, args, output: (output.zero_(), None)[1])
    with held(handle), capture(vlm, "lm.0.resid_post") as acts:
        vlm.forward(batch)
    assert acts["lm.0.resid_post"].abs().sum() > 0
    assert not acts["lm.0.resid_post"].is_inference()
    acts["lm.0.resid_post"].requires_grad_().sum().backward()


def test_a_second_pass_replaces_the_first(vlm: Vlm, prompts):
    with capture(vlm, ["lm.0.resid_post", "projector.out"]) as acts:
        vlm.forward(vlm.encode(prompts))
        vlm.forward(vlm.encode([ask("red ?")]))
        assert acts["lm.0.resid_post"].shape[0] == 1
        assert "projector.out" not in acts
        with pytest.raises(SiteError, match=r"projector.out was not computed: no forward pass .* none with images"):
            acts["projector.out"]


def test_pooling_reduces_each_span_to_one_token(vlm: Vlm, prompts):
    batch = vlm.encode(prompts)
    for pool, reduce in (("mean", Ragged.mean), ("last", Ragged.last)):
        with (
            capture(vlm, "lm.1.*", ["image", "last"], pool) as pooled,
            capture(vlm, "lm.1.*", ["image", "last"]) as acts,
        ):
            vlm.forward(batch)
        for key in acts:
            held = acts[key].lengths > 0
            assert pooled[key].lengths.tolist() == held.long().tolist()
            assert torch.equal(pooled[key].values, reduce(acts[key][held]))


def test_sites_that_cannot_have_a_span_are_left_out_and_say_so(vlm: Vlm, prompts):
    with capture(vlm, ["lm.*.resid_post", "projector.out"], spans=["image", "last"]) as acts:
        vlm.forward(vlm.encode(prompts))
    assert acts[Site("projector", "out"), "image"].lengths.tolist() == [9, 9, 0]
    assert ("projector.out", "last") not in acts
    with pytest.raises(SpanError, match=r"projector.out holds image patches only, so it has no 'last'; it has image"):
        acts["projector.out", "last"]


def test_acts_say_what_they_have(vlm: Vlm, prompts):
    with capture(vlm, "lm.0.resid_post", spans="last") as acts:
        with pytest.raises(SiteError, match=r"no forward pass was run inside capture"):
            acts["lm.0.resid_post", "last"]
        vlm.forward(vlm.encode(prompts))
    with pytest.raises(SiteError, match=r"unknown captured site 'lm.1.resid_post'; nearest: lm.0.resid_post"):
        acts["lm.1.resid_post"]
    with pytest.raises(SpanError, match=r"was captured at spans; read acts\['lm.0.resid_post', span\]"):
        acts["lm.0.resid_post"]
    with pytest.raises(SpanError, match=r"unknown captured span 'lats'; nearest: last"):
        acts["lm.0.resid_post", "lats"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sites": ["lm.0.resid_post", "lm.0.resid_pots"]}, SiteError, "nearest: lm.0.resid_post"),
        (
            {"sites": "lm.0.pattern"},
            SiteError,
            "'sdpa' attention does not give; load the model with attn_impl",
        ),
        ({"sites": "lm.*.pattern"}, SiteError, "load the model with attn_implementation='eager'"),
        ({"sites": "lm.0.mlp_out", "spans": "last", "pool": "max"}, SpanError, "unknown pooling 'max'"),
        ({"sites": "lm.0.mlp_out", "pool": "mean"}, SpanError, "no spans were given"),
        ({"sites": "vision.0.resid_post", "spans": ["question"]}, SpanError, "it has no 'question'"),
    ],
)
def test_bad_names_are_refused_before_anything_is_hooked(vlm: Vlm, arguments, error, message):
    before = footprint(vlm)
    with pytest.raises(error, match=message), capture(vlm, **arguments):
        pass
    assert footprint(vlm) == before


def test_a_span_that_no_item_has_is_refused_before_the_model_runs(vlm: Vlm, prompts):
    before, ran = footprint(vlm), []
    handle = vlm.model.register_forward_pre_hook(lambda *_: ran.append(True))
    with (
        held(handle),
        pytest.raises(SpanError, match="unknown span 'image'; one of: question, prompt, last"),
        capture(vlm, "lm.0.resid_post", spans="image"),
    ):
        vlm.forward(vlm.encode(prompts[2:]))
    assert not ran
    assert footprint(vlm) == before


def test_spans_need_a_batch_that_is_running(vlm: Vlm, prompts):
    before, batch = footprint(vlm), vlm.encode(prompts)
    with (
        pytest.raises(SpanError, match="spans need a batch: run it with"),
        capture(vlm, "lm.0.mlp_out", spans="last"),
    ):
        vlm.model(**batch.inputs)
    assert footprint(vlm) == before


def test_nothing_remains_after_success_or_an_error_in_the_model(each: Vlm, prompts):
    batch = each.encode(prompts)
    each.forward(batch)  # transformers installs its own hooks, for good, in the first pass
    before = footprint(each)
    with capture(each, "*", spans="image"):
        each.forward(batch)
    assert footprint(each) == before
    handle = each.anatomy.layers[2].block.register_forward_pre_hook(lambda *_: 1 / 0)
    with held(handle), pytest.raises(ZeroDivisionError), capture(each, "*"):
        each.forward(batch)
    assert footprint(each) == before
    assert each.forward(batch).isfinite().all()


def test_nested_captures_do_not_disturb_each_other(vlm: Vlm, prompts):
    batch, before = vlm.encode(prompts), footprint(vlm)
    with capture(vlm, "lm.0.mlp_out") as outer:
        with capture(vlm, "lm.0.mlp_out", spans="last") as inner:
            vlm.forward(batch)
        vlm.forward(vlm.encode(prompts[:1]))
    assert outer["lm.0.mlp_out"].shape[0] == 1
    assert len(inner["lm.0.mlp_out", "last"]) == 3
    assert footprint(vlm) == before


def test_generation_captures_the_pass_over_the_prompt(each: Vlm, prompts):
    batch = each.encode(prompts)
    with capture(each, "*") as whole:
        each.forward(batch)
    with capture(each, "*") as generated, capture(each, "lm.*", spans=["last"]) as last:
        each.generate(batch, max_new_tokens=3)
    for site in each.sites:
        assert generated[site].shape == whole[site].shape
        assert torch.allclose(generated[site], whole[site], atol=1e-5), site
    assert torch.equal(last["lm.2.mlp_out", "last"].stack()[:, 0], generated["lm.2.mlp_out"][:, -1])
