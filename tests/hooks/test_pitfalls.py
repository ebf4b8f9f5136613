"""The known pitfalls, by number: the naive way goes wrong on a real family, the library's way does not.

Each test writes the naive way out and asserts by how much it misses, so it fails wherever that way would be right.
"""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from seamscope.activations import Schema, create_store
from seamscope.hooks import Patch, Ragged, SiteError, Vlm, capture, knockout, load_vlm, patch

from .conftest import ask, footprint, held, picture
from .families_fixture import QUESTION, SIZES, checkpoint, shown
from .families_oracle import plain_inputs, plain_logits, plain_score
from .test_devices import spread

SETTINGS = {"device": "cpu", "attn_implementation": "eager", "check": False}
CLOSE = 1e-3  # of logits up to 14: two ways to compute the same thing differ by less
TWINS = [shown(QUESTION, 1), shown(QUESTION, 2)]  # one text about two pictures
PAIR = [shown(QUESTION, 1), shown("red card ?", 2)]  # of unequal length


def fresh(name: str, **settings: Any) -> Vlm:
    """A model of its own, for a test that leaves traces."""
    return load_vlm(checkpoint(name), **{**SETTINGS, **settings})


load = cache(fresh)


def far(one: Tensor, other: Tensor) -> float:
    return float((one.detach().float() - other.detach().float()).abs().max())


def hooked(module: nn.Module, function: Callable[[Tensor], Any]) -> Any:
    """Append a hook, as most tools do: it sees what a module gives, and replaces it by what the function gives."""
    return held(module.register_forward_hook(lambda module, args, output: function(output)))


def exchanged(value: Tensor) -> Tensor:
    """Each of two prompts gets what the other had; a tower may have put both into one row."""
    return torch.cat(value.chunk(2)[::-1])


def test_pitfall_01_a_layer_gives_a_tensor_so_output_0_is_a_row_of_the_batch():
    vlm = load("llava")
    batch, read = vlm.encode(PAIR), []
    plain = vlm.forward(batch)

    def naive(output: Tensor) -> None:
        read.append(output[0].clone())  # meant: the hidden states of a tuple
        output[0].zero_()

    with hooked(vlm.anatomy.layers[1].block, naive):
        ablated = vlm.forward(batch)
    assert read[0].shape == (batch.width, vlm.d_model)
    assert far(ablated[0], plain[0]) > 1
    assert torch.equal(ablated[1], plain[1])

    with capture(vlm, "lm.1.resid_post") as acts, patch(vlm, Patch("lm.1.resid_post", torch.zeros_like)):
        ablated = vlm.forward(batch)
    assert acts["lm.1.resid_post"].shape == (2, batch.width, vlm.d_model)
    assert min(far(ablated[row], plain[row]) for row in (0, 1)) > 1


@pytest.mark.parametrize(("name", "biased"), [("llava", False), ("llava", True), ("paligemma2", False)])
def test_pitfall_02_a_lens_on_the_last_hidden_state_norms_twice(name: str, biased: bool):
    vlm = fresh(name)
    head, norm, last = vlm.model.lm_head, vlm.model.model.language_model.norm, f"lm.{vlm.n_layers - 1}.resid_post"
    if biased:
        head.bias = nn.Parameter(torch.linspace(-2, 2, head.out_features))
    with capture(vlm, last) as acts, torch.inference_mode():
        out = vlm.run(vlm.encode(PAIR), output_hidden_states=True)
        twice = head(norm(out.hidden_states[-1]))
        weights_alone = norm(acts[last]) @ head.weight.T
    assert far(twice, out.logits) > 1
    if biased or name == "paligemma2":  # which has a soft-cap, and the embedding's weights for its head
        assert far(weights_alone, out.logits) > 1
    assert (head.weight is vlm.model.get_input_embeddings().weight) == (name == "paligemma2")
    assert torch.equal(vlm.unembed(acts[last]), out.logits)


def test_pitfall_03_a_hook_behind_the_recorders_of_transformers_is_not_seen():
    vlm = load("llava")
    batch, tower = vlm.encode(PAIR), vlm.model.model.vision_tower.encoder.layers
    plain = vlm.run(batch, output_hidden_states=True).logits  # from now on the recorders are there
    with hooked(tower[1], torch.zeros_like):
        naive = vlm.forward(batch)
    assert torch.equal(naive, plain)

    with patch(vlm, Patch("vision.1.resid_post", torch.zeros_like)), capture(vlm, "projector.out") as acts:
        ours = vlm.forward(batch)
    assert far(ours, plain) > 1
    nothing = torch.zeros(2, 16, vlm.anatomy.tower_width)
    assert far(acts["projector.out"], vlm.model.model.multi_modal_projector(nothing)) < CLOSE


def test_pitfall_04_inputs_made_anew_without_token_types_are_read_in_other_positions():
    vlm = load("qwen2_5_vl")
    wanted, inputs = plain_logits("qwen2_5_vl", vlm, PAIR[0]), plain_inputs("qwen2_5_vl", vlm, PAIR[0])
    with torch.inference_mode():
        naive = vlm.model(**{key: inputs[key] for key in ("input_ids", "pixel_values", "image_grid_thw")}).logits[0]
    assert far(naive, wanted) > 1
    assert far(naive[-1], wanted[-1]) > 1
    batch = vlm.encode(PAIR[:1])
    assert set(inputs) < set(batch.inputs)
    assert far(vlm.forward(batch)[0], wanted) < CLOSE


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_pitfall_05_a_run_with_a_picture_misplaces_the_steps_of_a_text_run_after_it(name: str):
    vlm, prompt = fresh(name), ask("red card ?")
    direct, text, model = plain_inputs(name, vlm, PAIR[0]), plain_inputs(name, vlm, prompt), vlm.model

    @torch.inference_mode()
    def naive_step() -> Tensor:
        out = model(**text, use_cache=True)
        return model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values).logits[0, -1]

    def our_step() -> Tensor:
        with capture(vlm, "lm.logits", "generated") as acts:
            vlm.generate(vlm.encode([prompt]), max_new_tokens=2)
        return acts["lm.logits", "generated"].values[0]

    with torch.inference_mode():
        told = torch.cat([text["input_ids"], model(**text).logits[:, -1:].argmax(-1)], dim=1)
        types = torch.zeros_like(told)
        wanted = model(input_ids=told, attention_mask=types + 1, mm_token_type_ids=types).logits[0, -1]
    vlm.forward(vlm.encode(PAIR[:1]))
    vlm.generate(vlm.encode(PAIR[:1]), max_new_tokens=2)
    assert model.model.rope_deltas is None  # ours leave no state
    assert far(our_step(), wanted) < CLOSE
    assert far(naive_step(), wanted) < CLOSE
    with torch.inference_mode():
        model(**direct)
    assert far(naive_step(), wanted) > 1
    assert far(our_step(), wanted) < CLOSE


@pytest.mark.parametrize(
    ("name", "part", "n_late"), [("qwen3_vl", "projector.out", 3), ("mllama", "lm.0.resid_pre", 0)]
)
def test_pitfall_06_one_site_may_not_be_all_by_which_a_picture_comes_in(name: str, part: str, n_late: int):
    vlm = load(name)
    batch = vlm.encode(TWINS)
    with capture(vlm, "*") as acts:
        plain = vlm.forward(batch)
    with patch(vlm, Patch(part, exchanged(acts[part]))):
        assert far(vlm.forward(batch), plain.flip(0)) > 1
    # what is added between two layers: a tool that takes resid_post of one for resid_pre of the next misses it
    assert (far(acts["lm.1.resid_pre"], acts["lm.0.resid_post"]) > 1) == (n_late > 0)
    assert vlm.routes == ("projector.out", *(f"lm.{layer}.deepstack" for layer in range(n_late)))
    with patch(vlm, [Patch(site, exchanged(acts[site])) for site in vlm.routes]):
        assert far(vlm.forward(batch), plain.flip(0)) < CLOSE


def test_pitfall_07_false_in_an_additive_mask_allows_what_it_should_forbid():
    eager, sdpa = load("llava"), load("llava", attn_implementation="sdpa")
    batch = eager.encode(PAIR[:1])
    (last,), (image,) = batch.positions("last"), batch.positions("image")

    def naive(module: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"].clone()
        mask[..., last[:, None], image] = False
        return args, {**kwargs, "attention_mask": mask}

    with capture(eager, "lm.*.pattern") as acts:
        plain = eager.forward(batch)
        with ExitStack() as stack:
            for layer in eager.anatomy.layers:
                stack.enter_context(held(layer.attn.register_forward_pre_hook(naive, with_kwargs=True)))
            assert torch.equal(eager.forward(batch), plain)
    assert all((acts[site][..., last[:, None], image] > 0).all() for site in acts)
    first = sdpa.anatomy.layers[0].attn.register_forward_pre_hook(naive, with_kwargs=True)
    with held(first), pytest.raises(AttributeError, match="'NoneType'"):
        sdpa.forward(batch)

    cut = {"queries": "last", "keys": "image", "layers": range(eager.n_layers)}
    with knockout(eager, **cut), capture(eager, "lm.*.pattern") as acts:
        by_eager = eager.forward(batch)
    with knockout(sdpa, **cut):
        assert far(sdpa.forward(batch), by_eager) < CLOSE
    assert all((acts[site][..., last[:, None], image] == 0).all() for site in acts)
    assert far(by_eager, plain) > 1


def test_pitfall_08_sdpa_gives_no_weights_and_other_numbers_in_bfloat16():
    names, settings = ("eager", "sdpa"), {"dtype": torch.bfloat16}
    eager, sdpa = (load("llava", attn_implementation=name, **settings) for name in names)
    batch = eager.encode(TWINS)
    assert not sdpa.run(batch, output_attentions=True).attentions  # an empty tuple, and no error
    with pytest.raises(SiteError, match=r"lm\.0\.pattern needs attention weights, which 'sdpa'.*'eager'$"):
        sdpa.expand("lm.0.pattern")
    assert far(eager.forward(batch)[:, -1], sdpa.forward(batch)[:, -1]) > 0.1  # an effect of nothing
    assert torch.equal(sdpa.forward(batch), sdpa.forward(batch))
    chosen = load("paligemma2", attn_implementation="auto")
    assert chosen.model.config._attn_implementation == "sdpa"  # which its decoder does not support
    assert [vlm.attn_implementation for vlm in (eager, sdpa, chosen)] == ["eager", "sdpa", "eager"]


@pytest.mark.parametrize(("name", "cuttable"), [("gemma3", False), ("paligemma", False), ("llava", True)])
def test_pitfall_09_keys_and_values_cannot_be_kept_from_inside_an_image(name: str, cuttable: bool):
    """The library never cuts a run in two: each of its runs goes over the whole prompt."""
    vlm = load(name)
    batch = vlm.encode(PAIR[:1])
    (image,) = batch.positions("image")
    with capture(vlm, ["lm.embed", "lm.0.resid_post"]) as plain:
        logits = vlm.forward(batch)
    embedded, cut = plain["lm.embed"], int(image[8])

    @torch.inference_mode()
    def run(start: int, stop: int, **given: Any) -> Any:
        kinds = {key: value[:, :stop] for key, value in batch.inputs.items() if key == "token_type_ids"}
        return vlm.model(inputs_embeds=embedded[:, start:stop], **kinds, **given)

    naive = run(cut, batch.width, past_key_values=run(0, cut, use_cache=True).past_key_values).logits
    assert (far(naive, logits[:, cut:]) < CLOSE) == cuttable
    assert far(run(0, batch.width).logits, logits) < CLOSE
    assert (far(naive[:, -1], logits[:, -1]) > 0.3) != cuttable

    edit = Patch("lm.embed", lambda there: there.index_fill(1, image[-1], 0))  # the last token of the image
    with patch(vlm, edit), capture(vlm, "lm.0.resid_post") as patched:
        ours = vlm.forward(batch)
    before = far(patched["lm.0.resid_post"][:, image[:-1]], plain["lm.0.resid_post"][:, image[:-1]])
    assert before == 0 if cuttable else before > 1
    embedded = edit.value(embedded)
    assert far(ours, run(0, batch.width).logits) < CLOSE


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next"])
def test_pitfall_10_the_number_of_image_tokens_is_not_a_constant(name: str):
    vlm = load(name)
    batches = [vlm.encode([shown("red card ?", 1, size)]) for size in SIZES[:2]]
    is_image = [batch.inputs["input_ids"][0] == vlm.model.config.image_token_id for batch in batches]
    counted, start = int(is_image[0].sum()), int(is_image[1].nonzero()[0])
    naive = torch.zeros_like(is_image[1]).index_fill(0, torch.arange(start, start + counted), True)
    assert int((naive != is_image[1]).sum()) >= 4
    for batch, wanted in zip(batches, is_image, strict=True):
        assert torch.equal(batch.positions("image")[0], wanted.nonzero()[:, 0])


def test_pitfall_11_index_minus_one_is_padding_when_rows_are_padded_on_the_right():
    vlm = load("llava")
    alone = torch.stack([plain_logits("llava", vlm, prompt)[-1] for prompt in PAIR])
    for padding, missing in (("left", False), ("right", True)):
        batch = vlm.encode(PAIR, padding=padding)
        with capture(vlm, "lm.logits", "last") as acts:
            logits = vlm.forward(batch)
        assert (far(logits[:, -1], alone) > 1) == missing
        assert (batch.inputs["attention_mask"][1, -1] == 0) == missing
        assert far(acts["lm.logits", "last"].stack()[:, 0], alone) < CLOSE


def test_pitfall_12_in_decoding_a_prompt_position_is_another_token():
    vlm = load("llava")
    batch, inputs, block = vlm.encode(PAIR[:1]), plain_inputs("llava", vlm, PAIR[0]), vlm.anatomy.layers[1].block
    (last,), said = batch.positions("last"), []
    with hooked(block, lambda output: said.append(output[:, last])), pytest.raises(IndexError, match="with size 1"):
        vlm.generate(batch, max_new_tokens=2)

    first, said = lambda output: output.index_fill(1, torch.tensor(0), 0), []  # meant: the prompt's first token
    for cached in (False, True):
        with hooked(block, first):
            new = vlm.model.generate(**inputs, max_new_tokens=6, use_cache=cached)[:, batch.width :]
        said.append(vlm.processor.decode(new[0], skip_special_tokens=True).strip())
    assert said[0] != said[1]  # with a cache, the naive way writes every generated token as well
    with patch(vlm, Patch("lm.1.resid_post", first)):
        assert vlm.generate(batch, max_new_tokens=6) == said[:1]

    with capture(vlm, "lm.1.resid_post", "generated") as acts:
        vlm.generate(batch, max_new_tokens=6)
    steps, whole = acts["lm.1.resid_post", "generated"].values, []
    told = torch.cat([inputs["input_ids"], acts.generated.values[None]], dim=1)
    with hooked(block, lambda output: whole.append(output[0])), torch.inference_mode():
        vlm.model(input_ids=told, pixel_values=inputs["pixel_values"])
    assert far(steps, whole[0][batch.width :]) < CLOSE
    assert far(steps, whole[0][last]) > 1


def test_pitfall_12_a_forward_pass_changes_the_cache_that_it_is_given():
    vlm = load("llava")
    inputs, token = plain_inputs("llava", vlm, PAIR[0]), torch.tensor([[300]])
    with torch.inference_mode():
        kept = vlm.model(**inputs, use_cache=True).past_key_values
        naive = [vlm.model(input_ids=token, past_key_values=kept).logits for _ in range(2)]
    assert far(*naive) > 1
    batch = vlm.encode(PAIR[:1], answers=["red"])
    assert torch.equal(vlm.score(batch).logprob, vlm.score(batch).logprob)


def test_pitfall_13_what_is_kept_and_what_is_written_is_a_copy():
    vlm, kept = load("llava"), []
    batch, (before, after) = vlm.encode(TWINS), (layer.block for layer in vlm.anatomy.layers[1:3])
    whole = 4 * 2 * batch.width * vlm.d_model  # bytes
    with capture(vlm, "lm.1.resid_post") as acts:
        vlm.forward(batch)
    clean = acts["lm.1.resid_post"][:, -1]

    def keep() -> Any:
        return hooked(before, lambda output: kept.append(output[:, -1]))  # a view

    def zero(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        args[0].zero_()  # of the layer after it: the same tensor

    one, other = capture(vlm, "lm.1.resid_post"), capture(vlm, "lm.1.resid_post", "last")
    with keep(), held(after.register_forward_pre_hook(zero)), one as all_of_it, other as acts:
        vlm.forward(batch)
    assert far(kept[0], clean) > 1
    assert kept[0].untyped_storage().nbytes() == whole
    ours = acts["lm.1.resid_post", "last"].values
    assert torch.equal(ours, clean)
    assert torch.equal(all_of_it["lm.1.resid_post"][:, -1], clean)
    assert ours.untyped_storage().nbytes() == whole // batch.width
    with keep(), patch(vlm, Patch("lm.2.resid_pre", Tensor.zero_)):
        vlm.forward(batch)
    assert torch.equal(kept[1], clean)


@pytest.mark.filterwarnings("ignore:.*meta device.*")
def test_pitfall_14_hooks_of_others_stay_and_values_go_where_they_are_needed():
    whole = load("llava")
    apart = fresh("llava", device="auto", device_map=spread(whole))
    batch = whole.encode(PAIR)
    plain, block = whole.forward(batch), apart.anatomy.layers[1].block
    assert torch.equal(apart.forward(batch), plain)

    wide = torch.zeros(2, batch.width, whole.d_model, dtype=torch.float64)
    with hooked(block, lambda output: wide), pytest.raises(RuntimeError, match="dtype"):
        apart.forward(batch)
    before, results = footprint(apart), []
    for vlm in (whole, apart):
        with patch(vlm, Patch("lm.1.resid_post", wide)), capture(vlm, "*"):
            results.append(vlm.forward(batch))
    assert torch.equal(*results)
    assert far(results[0], plain) > 1
    assert footprint(apart) == before
    assert hasattr(apart.anatomy.layers[1].o_proj, "_hf_hook")
    assert torch.equal(apart.forward(batch), plain)

    assert sum(len(module._forward_hooks) for module in apart.model.modules()) > 0  # none of them ours
    for module in apart.model.modules():
        module._forward_hooks.clear()
    with pytest.raises(IndexError):  # the projector finds no hidden states
        apart.forward(batch)


def test_pitfall_18_the_first_token_of_an_answer_is_not_the_answer():
    vlm, answers = load("llava"), ["blue", "red", "red card"]
    first = plain_logits("llava", vlm, PAIR[0])[-1].log_softmax(-1)
    batch = vlm.encode(PAIR[:1] * 3, answers=answers)
    tokens = [batch.inputs["input_ids"][row, where] for row, where in enumerate(batch.positions("answer"))]
    blue, red, red_card = (float(first[each[0]]) for each in tokens)
    assert blue - red > 1
    assert red == red_card
    ours = vlm.score(batch).logprob
    assert [len(each) for each in tokens] == [3, 3, 4]
    assert torch.allclose(ours, torch.tensor([plain_score("llava", vlm, PAIR[0], each)[0] for each in answers]))
    assert ours[1] - ours[0] > 1
    assert ours[1] - ours[2] > 1


def test_pitfall_18_an_answer_ends_with_the_token_that_ends_a_turn():
    vlm = load("gemma3")
    tokenizer, batch = vlm.processor.tokenizer, vlm.encode(PAIR[:1], answers=["seven"])
    told = plain_logits("gemma3", vlm, PAIR[0], "seven").log_softmax(-1)
    *_, seven, end = batch.inputs["input_ids"][0].tolist()
    naive = float(told[-3, seven] + told[-2, tokenizer.eos_token_id])
    assert (tokenizer.eos_token, tokenizer.convert_ids_to_tokens(end)) == ("<eos>", "<end_of_turn>")
    ours = float(vlm.score(batch).logprob)
    assert ours == pytest.approx(plain_score("gemma3", vlm, PAIR[0], "seven")[0], abs=CLOSE)
    assert abs(naive - ours) > 1


def label_orders(path: str) -> list[Any]:
    """The order of a store's labels in a set, and the rest as a probe and a grid give it; run in two processes."""
    from seamscope.activations import open_store
    from seamscope.probes import LinearProbe, probe_grid

    with open_store(path) as store:
        labels = store.rows("direct")["var:rank"].tolist()
        grid = probe_grid(store, "rank", folds=2)
        probe = LinearProbe().fit(store.read("lm.0.resid_post", "last", "direct").values, labels)
    right = [each.tolist() for column in ("correct", "control_correct") for each in grid[column]]
    return [list(set(labels)), probe.classes_.tolist(), probe.coef_.round(6).tolist(), right]


def test_pitfall_19_the_order_of_labels_is_the_same_in_every_process(tmp_path: Path):
    labels = ["ace", "two", "three", "four", "five", "six", "seven", "jack", "queen", "king"]
    n, rng = 60, np.random.default_rng(0)
    texts = {"id": map(str, range(n)), "group": map(str, range(n))}
    rows = pd.DataFrame({**texts, "var:rank": labels * (n // 10), "type:rank": rng.integers(20, size=n).astype(str)})
    acts = Ragged(torch.tensor(rng.normal(size=(n, 6))).float(), torch.ones(n, dtype=torch.long))
    file = tmp_path / "store.h5"
    with create_store(file, Schema(model="tiny", task="test", conditions=("direct",))) as store:
        store.append("direct", rows, {("lm.0.resid_post", "last"): acts})
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # not that of this process
    script = f"from __future__ import annotations\nimport json\n{inspect.getsource(label_orders)}"
    command = [sys.executable, "-c", f"{script}\nprint(json.dumps(label_orders({str(file)!r})))"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": seed}
    other_naive, *other = json.loads(subprocess.check_output(command, env=environment, timeout=60))
    naive, *ours = label_orders(str(file))
    assert set(naive) == set(other_naive) == set(labels)
    assert naive != other_naive
    assert ours == other
    assert ours[0] == sorted(labels)


def test_pitfall_20_pictures_of_several_items_go_through_one_trace_as_one_batch():
    from nnsight.modeling.transformers import TransformersModel

    plain, traced = load("llava"), load("llava", engine="nnsight")
    parts = {"config": plain.model.config, "processor": plain.processor, "attn_implementation": "eager"}
    root = TransformersModel(str(checkpoint("llava")), task="image-text-to-text", **parts)
    one, other = (plain_inputs("llava", plain, prompt) for prompt in PAIR)

    def naive() -> None:
        with root.trace() as tracer:
            with tracer.invoke(**one):
                root.lm_head.output.save()
            with tracer.invoke(**other):
                root.lm_head.output.save()

    with pytest.raises(NotImplementedError, match="Can't batch these inputs"):
        naive()

    batch = plain.encode([*PAIR, ask("blue ?", picture(3), picture(4))])
    found, runs = [], []  # of each run: how many pictures it read
    for vlm in (plain, traced):
        count = hooked(vlm.anatomy.projector, lambda output: runs.append(len(output)))
        with count, capture(vlm, ["projector.out", "lm.*.resid_post"]) as acts:
            found.append([vlm.forward(batch), *(acts[site] for site in acts)])
    assert runs == [4, 4]
    assert len(found[0]) == 6
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))
