from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from seamscope.hooks import Batch, Patch, Ragged, SiteError, SpanError, Vlm, capture, load_vlm, patch

from .conftest import ask, footprint, held, picture

PADDINGS = pytest.mark.parametrize("padding", ["left", "right"])


def record(vlm: Vlm, batch: Batch, spans=None, sites="*"):
    with capture(vlm, sites, spans=spans) as acts:
        logits = vlm.forward(batch)
    return acts, logits


def run(vlm: Vlm, batch: Batch, *patches: Patch) -> torch.Tensor:
    with patch(vlm, patches):
        return vlm.forward(batch)


@pytest.fixture
def pair(each: Vlm) -> tuple[Vlm, Batch, Batch]:
    """Two batches of the same shape whose every row differs, in text and image alike."""
    here = [ask("what is the sum of seven ?", picture(1)), ask("red card", picture(2)), ask("two + two")]
    there = [ask("red is a king of two .", picture(5)), ask("ace , ", picture(6)), ask("one . ace")]
    first, second = each.encode(here), each.encode(there)
    assert first.inputs["input_ids"].shape == second.inputs["input_ids"].shape
    assert torch.equal(first.inputs["attention_mask"], second.inputs["attention_mask"])
    return each, first, second


@PADDINGS
def test_own_activations_change_nothing_at_any_site(each: Vlm, prompts, padding):
    batch = each.encode(prompts, padding=padding)
    acts, logits = record(each, batch)
    for site in each.sites:
        assert torch.equal(run(each, batch, Patch(site, acts[site])), logits), site
    assert torch.equal(run(each, batch, *[Patch(site, acts[site]) for site in each.sites]), logits)


@PADDINGS
@pytest.mark.parametrize("span", ["image", "image.object.1", "question", "last", "prompt"])
def test_own_activations_of_a_span_change_nothing_at_any_site(each: Vlm, prompts, padding, span):
    batch = each.encode(prompts, padding=padding)
    acts, logits = record(each, batch, [span], "*" if span.startswith("image") else "lm.*")
    for site, _ in acts:
        assert torch.equal(run(each, batch, Patch(site, acts[site, span], span=span)), logits), site


def test_whole_states_of_the_other_run_give_the_other_runs_logits(pair):
    """Every place through which everything flows, in both stacks."""
    vlm, here, there = pair
    acts, wanted = record(vlm, there)
    plain = vlm.forward(here)
    for kind in ("resid_pre", "resid_mid", "resid_post"):
        for layer in range(4):
            site = f"lm.{layer}.{kind}"
            assert torch.equal(run(vlm, here, Patch(site, acts[site])), wanted), site
    for site in ("lm.embed", "lm.final_norm", "lm.logits"):
        assert torch.equal(run(vlm, here, Patch(site, acts[site])), wanted), site
    assert not torch.allclose(plain, wanted, atol=1e-2)


def test_a_branch_of_the_other_run_together_with_its_stream_gives_the_other_run(pair):
    """What a layer adds is patched in layer 2, on top of the other run's input of that layer."""
    vlm, here, there = pair
    acts, wanted = record(vlm, there)
    kinds = ["attn_out", "head_z", "mlp_out", *["pattern"] * (vlm.attn_implementation == "eager")]
    mine, _ = record(vlm, here)
    for kind in kinds:
        site = f"lm.2.{kind}"
        assert not torch.equal(
            run(vlm, here, Patch("lm.2.resid_pre", acts["lm.2.resid_pre"]), Patch(site, mine[site])), wanted
        )
        both = [Patch("lm.2.resid_pre", acts["lm.2.resid_pre"]), Patch(site, acts[site])]
        assert torch.equal(run(vlm, here, *both), wanted), site


def test_each_branch_of_a_layer_does_what_it_does_by_hand(pair):
    """Attention output, MLP output and heads of the other run, with the layer written out."""
    vlm, here, there = pair
    acts, _ = record(vlm, there)
    mine, _ = record(vlm, here)
    layer = vlm.anatomy.layers[1].block
    attn = layer.self_attn.o_proj(acts["lm.1.head_z"].flatten(-2))
    mid = mine["lm.1.resid_pre"] + attn
    by_hand = {
        "head_z": mid + layer.mlp(layer.post_attention_layernorm(mid)),
        "attn_out": mid + layer.mlp(layer.post_attention_layernorm(mid)),
        "mlp_out": mine["lm.1.resid_mid"] + acts["lm.1.mlp_out"],
    }
    for kind, wanted in by_hand.items():
        with (
            patch(vlm, Patch(f"lm.1.{kind}", acts[f"lm.1.{kind}"])),
            capture(vlm, "lm.1.resid_post") as after,
        ):
            vlm.forward(here)
        assert torch.allclose(after["lm.1.resid_post"], wanted, atol=1e-6), kind


def test_resid_mid_reaches_the_stream_and_a_hook_on_the_norm_alone_does_not(pair):
    vlm, here, there = pair
    acts, wanted = record(vlm, there)
    norm = vlm.anatomy.layers[1].block.post_attention_layernorm
    with held(norm.register_forward_pre_hook(lambda module, args: (acts["lm.1.resid_mid"],))):
        naive = vlm.forward(here)
    assert not torch.allclose(naive, wanted, atol=1e-2)
    assert torch.equal(run(vlm, here, Patch("lm.1.resid_mid", acts["lm.1.resid_mid"])), wanted)


def test_resid_mid_at_a_span_by_hand(pair):
    vlm, here, there = pair
    acts, _ = record(vlm, there, ["last"], "lm.1.resid_mid")
    mine, _ = record(vlm, here)
    with patch(vlm, Patch("lm.1.resid_mid", acts["lm.1.resid_mid", "last"], span="last")):
        got, _ = record(vlm, here)
    layer, mid = vlm.anatomy.layers[1].block, mine["lm.1.resid_mid"].clone()
    for row, (position,) in enumerate(here.positions("last")):
        mid[row, position] = acts["lm.1.resid_mid", "last"].values[row]
    assert torch.equal(got["lm.1.resid_mid"], mid)
    assert torch.allclose(got["lm.1.resid_post"], mid + layer.mlp(layer.post_attention_layernorm(mid)), atol=1e-6)


def test_resid_mid_goes_together_with_the_other_sites_of_its_layer(pair):
    """Whatever the order, the MLP's patch is added to the patched stream, and the layer's own patch wins."""
    vlm, here, there = pair
    acts, wanted = record(vlm, there)
    mine, _ = record(vlm, here)
    mid, mlp = Patch("lm.1.resid_mid", acts["lm.1.resid_mid"]), Patch("lm.1.mlp_out", mine["lm.1.mlp_out"])
    for patches in ((mid, mlp), (mlp, mid)):
        with patch(vlm, patches), capture(vlm, "lm.1.resid_post") as after:
            vlm.forward(here)
        assert torch.equal(after["lm.1.resid_post"], acts["lm.1.resid_mid"] + mine["lm.1.mlp_out"])
    post = Patch("lm.1.resid_post", acts["lm.1.resid_post"])
    for patches in ((post, mlp, mid), (mid, mlp, post)):
        assert torch.equal(run(vlm, here, *patches), wanted)


def test_pattern_mixes_the_values_anew_by_hand(eager: Vlm, prompts):
    batch = eager.encode(prompts)
    mine, _ = record(eager, batch)
    uniform = torch.zeros_like(mine["lm.2.pattern"])
    for row, positions in enumerate(batch.positions("prompt")):
        for n, position in enumerate(positions):
            uniform[row, :, position, positions[: n + 1]] = 1 / (n + 1)
    with patch(eager, Patch("lm.2.pattern", uniform)):
        got, _ = record(eager, batch)
    layer = eager.anatomy.layers[2].block
    values = layer.self_attn.v_proj(layer.input_layernorm(mine["lm.2.resid_pre"]))
    values = values.unflatten(-1, (2, 8)).repeat_interleave(2, dim=2)  # each key-value head serves two queries
    z = torch.einsum("bhqk,bkhd->bqhd", uniform, values)
    assert torch.equal(got["lm.2.pattern"], uniform)
    assert torch.allclose(got["lm.2.head_z"], z, atol=1e-6)


def test_pattern_at_a_span_changes_the_rows_of_its_queries_only(eager: Vlm, prompts):
    first = Patch("lm.1.pattern", lambda rows: torch.eye(rows.shape[-1])[0].expand_as(rows), span="last", heads=[0])
    batch_of_one = eager.encode(prompts[:1])
    with patch(eager, first):
        got, _ = record(eager, batch_of_one)
    mine, _ = record(eager, batch_of_one)
    last = int(batch_of_one.positions("last")[0])
    assert torch.equal(got["lm.1.pattern"][:, :, :last], mine["lm.1.pattern"][:, :, :last])
    assert torch.equal(got["lm.1.pattern"][:, 1:], mine["lm.1.pattern"][:, 1:])
    assert got["lm.1.pattern"][0, 0, last].tolist() == [1.0] + [0.0] * last


def test_the_tower_and_the_projector_carry_the_other_image(each: Vlm):
    """Same text, other image: patching a layer that is read gives the other run; a later one is idle."""
    here, there = (each.encode([ask("red card ?", picture(seed)), ask("ace")]) for seed in (1, 2))
    acts, wanted = record(each, there)
    plain = each.forward(here)
    read = each.model.config.vision_feature_layer % 4 - 1  # it counts hidden states; number 0 enters layer 0
    for layer in range(3):
        got = run(each, here, Patch(f"vision.{layer}.resid_post", acts[f"vision.{layer}.resid_post"]))
        assert torch.equal(got, wanted if layer <= read else plain)
    assert torch.equal(run(each, here, Patch("projector.out", acts["projector.out"])), wanted)
    assert not torch.allclose(plain, wanted, atol=1e-2)


def test_projector_features_at_a_span_equal_the_same_embeddings(each: Vlm, prompts):
    batch = each.encode(prompts)
    for span in ("image", "image.object.0", "image.object.1"):
        zero = [Patch(site, torch.zeros_like, span=span) for site in ("projector.out", "lm.embed")]
        assert torch.equal(run(each, batch, zero[0]), run(each, batch, zero[1]))


def test_tower_patches_are_seen_by_the_recorder_whenever_it_was_installed(siglip_folder):
    """LLaVA's projector reads hidden states that transformers records by hooks installed in the first pass."""
    fresh = load_vlm(siglip_folder, device="cpu", check=False)
    layer, batch = fresh.anatomy.tower_layers[2], fresh.encode([ask("red card ?", picture(1))])
    zero = Patch("vision.2.resid_post", torch.zeros_like)
    assert not layer._forward_hooks
    before = run(fresh, batch, zero)
    assert layer._forward_hooks  # the recorder's
    assert torch.equal(run(fresh, batch, zero), before)
    plain = fresh.forward(batch)
    with held(layer.register_forward_hook(lambda module, args, output: torch.zeros_like(output))):
        assert torch.equal(fresh.forward(batch), plain)  # a hook after the recorder's comes too late
    assert not torch.allclose(before, plain, atol=1e-2)


def test_returned_hidden_states_are_the_patched_ones(vlm: Vlm, prompts):
    batch = vlm.encode(prompts)
    with torch.inference_mode(), patch(vlm, Patch("lm.1.resid_post", torch.zeros_like)):
        hidden = vlm.model(**batch.inputs, output_hidden_states=True).hidden_states
    assert hidden[2].abs().max() == 0
    assert hidden[1].abs().max() > 0


@PADDINGS
def test_a_span_of_the_other_run_is_written_there_and_nowhere_else(each: Vlm, padding):
    here = each.encode([ask("what is the sum ?", picture(1)), ask("ace")], padding=padding)
    there = each.encode([ask("what is red ?"), ask("king of two", picture(2))], padding=padding)
    acts, _ = record(each, there, ["last"], "lm.*")
    plain, _ = record(each, here)
    with patch(each, Patch("lm.2.resid_post", acts["lm.2.resid_post", "last"], span="last")):
        got, _ = record(each, here)
    wanted = plain["lm.2.resid_post"].clone()
    for row, (position,) in enumerate(here.positions("last")):
        wanted[row, position] = acts["lm.2.resid_post", "last"].values[row]
    assert torch.equal(got["lm.2.resid_post"], wanted)


@pytest.mark.parametrize("rule", ["mean", "last", "stretch"])
def test_rules_fit_spans_of_other_sizes(vlm: Vlm, rule: str):
    here, there = (
        vlm.encode([ask("what is the sum ?"), ask("red")]),
        vlm.encode([ask("ace"), ask("red card king")]),
    )
    acts, _ = record(vlm, there, ["question"], "lm.1.mlp_out")
    value = acts["lm.1.mlp_out", "question"]
    with patch(vlm, Patch("lm.1.mlp_out", value, span="question", rule=rule)):
        got, _ = record(vlm, here, ["question"], "lm.1.mlp_out")
    ace, card = value.split()
    first, second = got["lm.1.mlp_out", "question"].split()
    assert torch.equal(first, ace.expand(5, -1))
    assert torch.equal(second, {"mean": card.mean(0, keepdim=True), "last": card[2:], "stretch": card[1:2]}[rule])


def test_layer_head_and_position_zero_are_not_nothing(eager: Vlm):
    batch = eager.encode([ask("red card", picture(1))])
    assert batch.positions("prompt")[0][0] == 0
    mine, logits = record(eager, batch)
    with patch(eager, Patch("lm.0.head_z", torch.zeros_like, heads=[0])):
        got, changed = record(eager, batch)
    assert got["lm.0.head_z"][:, :, 0].abs().max() == 0
    assert torch.equal(got["lm.0.head_z"][:, :, 1:], mine["lm.0.head_z"][:, :, 1:])
    assert not torch.equal(changed, logits)
    with patch(eager, Patch("lm.0.resid_pre", torch.zeros_like, span="prompt")):
        got, _ = record(eager, batch)
    assert got["lm.0.resid_pre"].abs().max() == 0


@pytest.mark.parametrize("heads", [[1], [0, 3], []])
def test_heads_limit_what_is_written(eager: Vlm, prompts, heads):
    batch = eager.encode(prompts)
    mine, _ = record(eager, batch)
    for site, axis in (("lm.1.head_z", 2), ("lm.1.pattern", 1)):
        given = Ragged.from_list(
            [torch.full((1, *mine[site].select(0, 0).select(1 if axis == 1 else 0, 0).shape), 0.5)] * 3
        )
        with patch(eager, Patch(site, given, span="last", heads=heads)):
            got, _ = record(eager, batch)
        for head in range(4):
            pair = [each[site].select(axis, head)[:, -1] for each in (got, mine)]
            assert (pair[0] == 0.5).all() if head in heads else torch.equal(*pair)


def test_functions_get_copies_of_what_is_there(vlm: Vlm, prompts):
    batch, seen = vlm.encode(prompts), {}

    def spoil(tokens: torch.Tensor) -> torch.Tensor:
        seen["tokens"] = tokens.clone()
        return tokens.zero_().add(1)

    mine, _ = record(vlm, batch, ["question"], "lm.1.attn_out")
    with capture(vlm, "lm.1.resid_pre") as before, patch(vlm, Patch("lm.1.attn_out", spoil, span="question")):
        got, _ = record(vlm, batch, ["question", "last"], "lm.1.attn_out")
    assert torch.equal(seen["tokens"], mine["lm.1.attn_out", "question"].values)
    assert (got["lm.1.attn_out", "question"].values == 1).all()
    assert not (got["lm.1.attn_out", "last"].values == 1).any()
    assert before["lm.1.resid_pre"].abs().max() > 0


def test_nothing_is_written_in_place(each: Vlm, prompts):
    """What passes at a site is, after the run, as it was before the patch; so is the value that was given."""
    batch, passed = each.encode(prompts), {}

    def keep(site: str, value) -> None:
        value = value[each.point(site).place.item] if isinstance(value, tuple) else value
        passed[site] = value, value.clone()

    for site in (site for site in each.sites if site not in ("lm.embed",) and not site.endswith("pattern")):
        place, span = each.point(site).place, "image" if "vision" in site or "proj" in site else "last"
        for edit in (Patch(site, lambda h: h.add_(1)), Patch(site, lambda h: h.add_(1), span=span)):
            if place.side == "out":
                hook = place.module.register_forward_hook(lambda m, a, o, s=site: keep(s, o), prepend=True)
            else:
                hook = place.module.register_forward_pre_hook(lambda m, a, s=site: keep(s, a[0]), prepend=True)
            with patch(each, edit), held(hook):
                each.forward(batch)
            assert torch.equal(*passed[site]), site


def test_given_values_stay_as_they_were(each: Vlm, prompts):
    batch = each.encode(prompts)
    acts, _ = record(each, batch, ["image"])
    kept = {key: tokens.values.clone() for key, tokens in acts.items()}
    run(each, batch, *[Patch(site, tokens, span=span) for (site, span), tokens in acts.items()])
    run(each, batch, *[Patch(site, tokens, span=span) for (site, span), tokens in acts.items()])
    assert all(torch.equal(acts[key].values, value) for key, value in kept.items())


def test_captures_see_patched_values_whichever_came_first(each: Vlm, prompts):
    batch = each.encode(prompts)
    for site in each.sites:
        zero = Patch(site, torch.zeros_like)
        with capture(each, site) as outside, patch(each, zero), capture(each, site) as inside:
            each.forward(batch)
        assert outside[site].abs().max() == inside[site].abs().max() == 0, site


def test_patches_of_one_site_apply_in_the_order_given(each: Vlm, prompts):
    batch = each.encode(prompts)
    for site in each.sites:
        plus, times = Patch(site, lambda h: h + 1), Patch(site, lambda h: h * 2)
        base = each.forward(batch)
        with capture(each, site) as acts:
            each.forward(batch)
        with patch(each, plus), patch(each, times), capture(each, site) as nested:
            each.forward(batch)
        with patch(each, [times, plus]), capture(each, site) as listed:
            each.forward(batch)
        assert torch.equal(nested[site], (acts[site] + 1) * 2), site
        assert torch.equal(listed[site], acts[site] * 2 + 1), site
        assert torch.equal(each.forward(batch), base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_are_moved_to_the_dtype_of_what_they_replace(each: Vlm, prompts, dtype):
    batch = each.encode(prompts)
    acts, _ = record(each, batch)
    for site in each.sites:
        with patch(each, Patch(site, acts[site].to(dtype))), capture(each, site) as got:
            assert each.forward(batch).dtype == torch.float32
        assert torch.equal(got[site], acts[site].to(dtype).float())


def test_a_replaced_forward_as_of_accelerate_is_patched_all_the_same(vlm: Vlm, prompts, monkeypatch):
    batch = vlm.encode(prompts)
    wanted = run(vlm, batch, Patch("lm.1.resid_mid", torch.zeros_like))
    for layer in (each.block for each in vlm.anatomy.layers):
        monkeypatch.setattr(layer, "forward", lambda *a, old=layer.forward, **k: old(*a, **k))
    assert torch.equal(run(vlm, batch, Patch("lm.1.resid_mid", torch.zeros_like)), wanted)


def test_generation_is_patched_in_the_pass_over_the_prompt(each: Vlm, prompts):
    """Against decoding by hand, one full patched forward for every token: the prompt's states stay patched."""
    batch = each.encode(prompts)
    noise = torch.Generator().manual_seed(3)
    lengths = torch.tensor([len(p) for p in batch.positions("question")])
    value = Ragged(torch.randn(int(lengths.sum()), 32, generator=noise) * 3, lengths)
    edit = Patch("lm.1.resid_post", value, span="question")
    with patch(each, edit):
        got = each.generate(batch, max_new_tokens=4)
    assert got == decode_by_hand(each, batch, value, 4)
    assert got != each.generate(batch, max_new_tokens=4)


def decode_by_hand(vlm: Vlm, batch: Batch, value: Ragged, n: int) -> list[str]:
    inputs, positions = dict(batch.inputs), batch.positions("question")
    done, eos = torch.zeros(len(batch), dtype=torch.bool), vlm.processor.tokenizer.eos_token_id

    def write(module, args, output):
        output = output.clone()
        for row, tokens in enumerate(value.split()):
            output[row, positions[row]] = tokens
        return output

    with torch.inference_mode(), held(vlm.anatomy.layers[1].block.register_forward_hook(write)):
        for _ in range(n):
            token = vlm.model(**inputs, use_cache=False).logits[:, -1].argmax(-1).masked_fill(done, 0)
            done |= token == eos
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token[:, None]], 1)
            inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones(len(batch), 1).long()], 1)
            inputs["position_ids"] = torch.cat([inputs["position_ids"], inputs["position_ids"][:, -1:] + 1], 1)
    new = inputs["input_ids"][:, batch.width :]
    return [text.strip() for text in vlm.processor.batch_decode(new, skip_special_tokens=True)]


ONE = Ragged.from_list([torch.zeros(1, 32)])


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Patch("lm.0.resid_pots", torch.zeros_like), SiteError, "nearest: lm.L.resid_post"),
        (
            Patch("lm.7.resid_post", torch.zeros_like),
            SiteError,
            "unknown site 'lm.7.resid_post'; nearest: lm.3",
        ),
        (
            Patch("lm.0.pattern", torch.zeros_like),
            SiteError,
            "load the model with attn_implementation='eager'",
        ),
        (Patch("lm.0.mlp_out", ONE, span="last", rule="men"), SpanError, "unknown rule 'men'; nearest: mean"),
        (Patch("lm.0.mlp_out", ONE), SpanError, "is given a Ragged, so it needs the span"),
        (Patch("lm.0.mlp_out", torch.zeros(1), span="last"), SpanError, "needs a Ragged or a function"),
        (Patch("lm.0.mlp_out", 0.0), SiteError, "a value is a tensor, a Ragged or a function, not a float"),
        (Patch("projector.out", ONE, span="last"), SpanError, "projector.out holds image patches only"),
        (Patch("lm.0.mlp_out", torch.zeros_like, heads=[0]), SiteError, "lm.0.mlp_out has no heads"),
        (Patch("lm.0.head_z", torch.zeros_like, heads=[0, 4]), SiteError, r"has heads 0 to 3, not \[4\]"),
        (Patch("lm.0.head_z", torch.zeros_like, heads=[-1]), SiteError, r"has heads 0 to 3, not \[-1\]"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_hooked(vlm: Vlm, bad, error, message):
    before = footprint(vlm)
    with pytest.raises(error, match=message), patch(vlm, [Patch("lm.0.mlp_out", torch.zeros_like), bad]):
        pass
    assert footprint(vlm) == before


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (Patch("lm.0.mlp_out", ONE, span="imge"), SpanError, "unknown span 'imge'; nearest: image"),
        (
            Patch("lm.0.mlp_out", ONE, span="last"),
            SpanError,
            "the value has 1 rows, but the batch has 3 items",
        ),
        (
            Patch("lm.0.mlp_out", Ragged(torch.zeros(4, 32), torch.tensor([1, 2, 1])), span="last"),
            SpanError,
            "patch of lm.0.mlp_out at 'last': the value has 2 tokens for item '1', the batch 1",
        ),
    ],
)
def test_what_does_not_fit_the_batch_is_refused_before_the_model_runs(vlm: Vlm, prompts, bad, error, message):
    before, ran = footprint(vlm), []
    hook = vlm.model.register_forward_pre_hook(lambda *_: ran.append(True))
    with held(hook), pytest.raises(error, match=message):
        run(vlm, vlm.encode(prompts), bad)
    assert not ran
    assert footprint(vlm) == before


def test_shapes_that_do_not_fit_are_refused_and_nothing_remains(each: Vlm, prompts):
    batch = each.encode(prompts)
    before = footprint(each)
    narrow = Ragged(torch.zeros(3, 31), torch.tensor([1, 1, 1]))
    with pytest.raises(SiteError, match=r"lm.0.mlp_out: the value has shape \(3, 31\), but \(3, 32\) is needed"):
        run(each, batch, Patch("lm.0.mlp_out", narrow, span="last"))
    with pytest.raises(SiteError, match=rf"has shape \(3, 1, 32\), but \(3, {batch.width}, 32\) is needed"):
        run(each, batch, Patch("lm.0.resid_mid", torch.zeros(3, 1, 32)))
    with pytest.raises(SiteError, match="has shape None"):
        run(each, batch, Patch("lm.0.resid_mid", lambda h: None))
    with pytest.raises(ZeroDivisionError):
        run(each, batch, Patch("lm.3.resid_mid", torch.zeros_like), Patch("lm.2.head_z", lambda h: 1 / 0))
    assert footprint(each) == before


def test_a_visual_site_of_a_batch_without_images_is_refused(vlm: Vlm):
    with pytest.raises(SiteError, match=r"projector.out cannot be patched: no item of the batch has an image"):
        run(vlm, vlm.encode([ask("red")]), Patch("projector.out", torch.zeros_like))


def test_spans_need_a_batch_that_is_running(vlm: Vlm, prompts):
    batch, before = vlm.encode(prompts), footprint(vlm)
    with (
        pytest.raises(SpanError, match="spans need a batch"),
        patch(vlm, Patch("lm.0.mlp_out", torch.zeros_like, span="last")),
    ):
        vlm.model(**batch.inputs)
    assert footprint(vlm) == before


def test_later_layers_see_the_effect_and_earlier_ones_do_not(vlm: Vlm, prompts):
    batch = vlm.encode(prompts)
    mine, _ = record(vlm, batch)
    with patch(vlm, Patch("lm.2.resid_pre", torch.zeros_like)):
        got, _ = record(vlm, batch)
    same = [torch.equal(mine[site], got[site]) for site in vlm.sites]
    assert all(same[: vlm.sites.index("lm.2.resid_pre")])
    assert not any(same[vlm.sites.index("lm.2.resid_pre") :])
    assert all(early >= late for early, late in pairwise(same))
