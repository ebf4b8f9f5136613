"""Lenses: the last layer is the model, ranks are those of a sort, and a tuned lens is nearer than the logit lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax, rel_entr
from torch import Tensor

from seamscope.experiments.tasks import get
from seamscope.hooks import RunError, SeamscopeError, Site, SiteError, SpanError, StoreError, Vlm, capture, load_vlm
from seamscope.probes import (
    LogitLens,
    TunedLens,
    _lens,
    _tuned_lens,
    fit_tuned_lens,
    lens_ranks,
    load_tuned_lens,
    token_ranks,
)

from ..hooks.families_fixture import families, load, rows_of

TASK = get("cards.sum")


@pytest.fixture(scope="module")
def organism() -> Vlm:
    return load_vlm("organism", device="cpu", check=False)


@pytest.fixture(scope="module")
def tuned(organism: Vlm) -> TunedLens:
    seen, unseen = TASK.items(48, split="train"), TASK.items(24)
    batches = [organism.encode(seen, condition=name) for name in ("direct", "oracle")]
    held_out = [organism.encode(unseen, condition=name) for name in ("direct", "oracle")]
    return fit_tuned_lens(organism, batches, held_out=held_out, steps=60, learning_rate=1e-2)


def near(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((got - wanted).abs().max() <= tolerance * wanted.abs().max())


@families
def test_the_last_layer_gives_the_models_logits_and_the_one_before_does_not(name: str) -> None:
    vlm = load(name)
    lens, batch = LogitLens(vlm), vlm.encode(rows_of(vlm)[0])
    with capture(vlm, ["lm.*.resid_post", "lm.final_norm"]) as acts:
        logits = vlm.forward(batch)
    last, before = (f"lm.{vlm.n_layers - k}.resid_post" for k in (1, 2))
    assert near(lens(last, acts[last]), logits)
    assert not near(lens(before, acts[before]), logits, 1e-2)
    assert not near(lens(last, acts["lm.final_norm"]), logits, 1e-2), "norming twice would not be seen"
    with pytest.raises(SiteError, match=r"cannot read lm\.final_norm"):
        lens("lm.final_norm", acts["lm.final_norm"])


@families
def test_a_tuned_lens_fits_every_family_and_leaves_the_model_as_it_is(name: str) -> None:
    vlm = load(name)
    batch = vlm.encode(rows_of(vlm)[0])
    with capture(vlm, "lm.*.resid_post") as acts:
        logits = vlm.forward(batch)
    lens = fit_tuned_lens(vlm, [batch], held_out=[batch], steps=8, learning_rate=3e-3, batch_size=64)
    fallen = lens.losses.before - lens.losses.after
    assert (fallen[:-1] > 0).all()
    assert lens.losses.iloc[-1].tolist() == [vlm.n_layers - 1, 0, 0, 0, 0]
    last = f"lm.{vlm.n_layers - 1}.resid_post"
    assert near(lens(last, acts[last]), logits)
    assert torch.equal(vlm.forward(batch), logits)
    assert all(weights.grad is None for weights in vlm.model.parameters())


@pytest.mark.parametrize("name", ["llava", "paligemma2", "gemma4_unified"])
def test_half_precision_is_the_models_own(name: str) -> None:
    """A stream may come as the store gives it, or widened; translators stay float32."""
    vlm = load(name, "auto", torch.bfloat16)
    batch = vlm.encode(rows_of(vlm)[0])
    with capture(vlm, "lm.*.resid_post") as acts:
        logits = vlm.forward(batch)
    last, first = f"lm.{vlm.n_layers - 1}.resid_post", "lm.0.resid_post"
    lens = LogitLens(vlm)
    assert logits.dtype == torch.bfloat16
    assert torch.equal(lens(last, acts[last]), logits)
    assert torch.equal(lens(last, acts[last].double()), logits)
    same = fit_tuned_lens(vlm, [batch], held_out=[batch], steps=0)
    assert torch.equal(same(first, acts[first]), lens(first, acts[first]))
    better = fit_tuned_lens(vlm, [batch], held_out=[batch], steps=8, learning_rate=3e-3, batch_size=64)
    assert (better.losses.after < better.losses.before)[:-1].all()
    assert better.weights[0].dtype == torch.float32
    assert better(first, acts[first]).dtype == torch.bfloat16


def test_every_residual_stream_of_the_decoder_is_read(organism: Vlm) -> None:
    lens = LogitLens(organism)
    with capture(organism, "lm.*") as acts:
        organism.forward(organism.encode(TASK.items(2), condition="direct"))
    assert torch.equal(lens("lm.embed", acts["lm.embed"]), lens("lm.0.resid_pre", acts["lm.0.resid_pre"]))
    assert torch.equal(lens("lm.3.resid_pre", acts["lm.3.resid_pre"]), lens("lm.2.resid_post", acts["lm.2.resid_post"]))
    mid = acts["lm.3.resid_pre"] + acts["lm.3.attn_out"]
    assert near(lens("lm.3.resid_mid", acts["lm.3.resid_mid"]), lens("lm.3.resid_mid", mid))
    assert not lens("lm.embed", acts["lm.embed"]).requires_grad


def test_the_kinds_of_a_lens_are_what_it_reads(organism: Vlm, tuned: TunedLens) -> None:
    for lens in (LogitLens(organism), tuned):
        for name in organism.sites:
            site = Site.parse(name)
            if site.stack == "lm" and site.kind in lens.kinds:
                assert lens.require(name) == site
            else:
                with pytest.raises(SiteError):
                    lens.require(name)


@pytest.mark.parametrize(
    "site",
    [
        *("vision.0.resid_post", "projector.out", "lm.0.attn_out", "lm.0.mlp_out", "lm.0.head_z"),
        *("lm.final_norm", "lm.logits"),
    ],
)
def test_what_is_no_residual_stream_is_refused(organism: Vlm, tuned: TunedLens, site: str) -> None:
    for lens in (LogitLens(organism), tuned):
        with pytest.raises(SiteError, match=f"cannot read {site}: it norms and unembeds the residual stream") as told:
            lens(site, torch.zeros(1, organism.d_model))
        assert "\n" not in str(told.value)


def test_other_sites_and_widths_are_refused(organism: Vlm, tuned: TunedLens) -> None:
    stream = torch.zeros(1, organism.d_model)
    with pytest.raises(SiteError, match=r"lm\.L\.resid_post$"):
        tuned("lm.embed", stream)
    with pytest.raises(SiteError, match=r"unknown site 'lm\.8\.resid_post'"):
        LogitLens(organism)("lm.8.resid_post", stream)
    with pytest.raises(SiteError, match=r"shape \(1, 127\), but its last size must be 128"):
        tuned("lm.0.resid_post", stream[:, 1:])


def test_a_tuned_lens_is_nearer_to_the_model_on_unseen_items(tuned: TunedLens) -> None:
    losses = tuned.losses
    assert losses.layer.tolist() == list(range(8))
    assert (losses.held_out_after < 0.8 * losses.held_out_before)[:-1].all()
    assert (losses.after < losses.before)[:-1].all()
    assert losses.iloc[-1, 1:].tolist() == [0, 0, 0, 0]


def test_its_losses_are_divergences_as_numpy_has_them(organism: Vlm, tuned: TunedLens) -> None:
    site, spans = "lm.2.resid_post", ["image", "question", "last"]
    items = TASK.items(6, seed=1)
    batch = organism.encode(items, condition="direct")
    lens = fit_tuned_lens(organism, [batch], held_out=[batch], spans=[*spans, "question"], steps=3)
    with capture(organism, [site, "lm.logits"]) as acts:
        organism.forward(batch)
    chosen = torch.zeros(len(items), batch.width, dtype=torch.bool)
    for row in range(len(items)):
        for span in spans:
            chosen[row, batch.spans[row][span]] = True
    assert lens.fitted["tokens"] == chosen.sum() < batch.inputs["attention_mask"].sum()
    final = np.exp(log_softmax(acts["lm.logits"][chosen].double().numpy(), axis=-1))
    for column, read in (("before", LogitLens(organism)), ("after", lens)):
        there = np.exp(log_softmax(read(site, acts[site])[chosen].double().numpy(), axis=-1))
        assert lens.losses[column][2] == pytest.approx(rel_entr(final, there).sum(-1).mean(), rel=1e-4)


def test_no_step_is_the_logit_lens(organism: Vlm) -> None:
    batch = organism.encode(TASK.items(3), condition="oracle")
    lens = fit_tuned_lens(organism, [batch], held_out=[batch], steps=0)
    with capture(organism, "lm.*.resid_post") as acts:
        organism.forward(batch)
    assert all(torch.equal(lens(site, acts[site]), LogitLens(organism)(site, acts[site])) for site in acts)
    assert (lens.losses.before == lens.losses.after).all()


def test_padding_is_not_fitted_and_the_seed_decides(organism: Vlm) -> None:
    words = TASK.items(2)
    batch = organism.encode([words[0].prompt("direct"), words[1].prompt("oracle")])
    real = int(batch.inputs["attention_mask"].sum())
    assert real < batch.inputs["input_ids"].numel()
    one, again, other = (
        fit_tuned_lens(organism, [batch], held_out=[batch], steps=2, batch_size=4, seed=seed) for seed in (0, 0, 1)
    )
    assert one.fitted["tokens"] == one.fitted["held_out_tokens"] == real
    assert torch.equal(one.weights[0], again.weights[0])
    assert not torch.equal(one.weights[0], other.weights[0])


def test_what_cannot_be_fitted_is_refused(organism: Vlm) -> None:
    batch = organism.encode(TASK.items(2), condition="direct")
    with pytest.raises(SpanError, match="unknown span 'questoin'; nearest: question"):
        fit_tuned_lens(organism, [batch], held_out=[batch], spans="questoin")
    with pytest.raises(SpanError, match="no tokens of the spans"):
        fit_tuned_lens(organism, [batch], held_out=[batch], spans=[])
    with pytest.raises(RunError, match="an empty list of batches"):
        fit_tuned_lens(organism, [batch], held_out=[])
    with pytest.raises(RunError, match=r"steps=-1, .* expected at least 0"):
        fit_tuned_lens(organism, [batch], held_out=[batch], steps=-1)
    with pytest.raises(RunError, match=r"the fit diverges: .* lower learning_rate=1e\+30"):
        fit_tuned_lens(organism, [batch], held_out=[batch], steps=3, learning_rate=1e30)


def test_what_is_saved_is_what_is_loaded_bit_for_bit(organism: Vlm, tuned: TunedLens, tmp_path: Path) -> None:
    place = tmp_path / "lens.safetensors"
    tuned.save(place)
    tuned.save(place)
    assert [file.name for file in tmp_path.iterdir()] == [place.name]
    loaded = load_tuned_lens(place, organism)
    with capture(organism, "lm.*.resid_post") as acts:
        organism.forward(organism.encode(TASK.items(2), condition="direct"))
    assert all(torch.equal(loaded(site, acts[site]), tuned(site, acts[site])) for site in acts)
    assert not torch.equal(
        loaded("lm.0.resid_post", acts["lm.0.resid_post"]), tuned("lm.1.resid_post", acts["lm.0.resid_post"])
    )
    assert loaded.losses.equals(tuned.losses)
    assert loaded.fitted == tuned.fitted
    assert repr(loaded) == "TunedLens('organism', 7 translators of width 128)"


def refused(place: Path, vlm: Vlm, error: type[SeamscopeError], match: str) -> None:
    with pytest.raises(error, match=match) as told:
        load_tuned_lens(place, vlm)
    assert "\n" not in str(told.value)


def test_a_lens_of_another_model_is_refused(organism: Vlm, tuned: TunedLens, tmp_path: Path) -> None:
    place = tmp_path / "lens.safetensors"
    tuned.save(place)
    refused(
        place, load_vlm("organism-composing", device="cpu", check=False), RunError, "model organism, not organism-c"
    )
    refused(place, load("llava"), RunError, "d_model 128, not .*n_layers 8, not ")
    refused(
        place, load_vlm("organism", device="cpu", untrained=True), RunError, "other weights than those of 'organism'"
    )


def test_half_precision_of_the_same_model_is_the_same_model(tuned: TunedLens, tmp_path: Path) -> None:
    tuned.save(tmp_path / "lens")
    narrow = load_vlm("organism", device="cpu", dtype=torch.bfloat16, check=False)
    assert torch.equal(load_tuned_lens(tmp_path / "lens", narrow).weights[3], tuned.weights[3])


def test_damaged_and_foreign_files_are_refused(organism: Vlm, tuned: TunedLens, tmp_path: Path) -> None:
    place, other = tmp_path / "lens.safetensors", tmp_path / "other"
    tuned.save(place)
    whole = bytearray(place.read_bytes())
    for where in (len(whole) - 1, len(whole) // 2):
        broken = whole.copy()
        broken[where] ^= 1
        other.write_bytes(broken)
        refused(other, organism, StoreError, "is damaged: its content differs from its checksum")
    for content in (whole[: len(whole) // 2], whole[:5], b"", b"PK\x03\x04 nonsense"):
        other.write_bytes(content)
        refused(other, organism, StoreError, "cannot read .* as a tuned lens")
    torch.save({"0.weight": tuned.weights[0]}, other)
    refused(other, organism, StoreError, "cannot read .* as a tuned lens")
    save_file({"0.weight": tuned.weights[0]}, other)
    refused(other, organism, StoreError, "is not a tuned lens")
    refused(tmp_path / "nowhere", organism, StoreError, "cannot read .*nowhere")
    refused(tmp_path, organism, StoreError, "cannot read ")
    with pytest.raises(StoreError, match=r"cannot write .*nowhere"):
        tuned.save(tmp_path / "nowhere" / "lens")


def test_a_file_with_a_right_checksum_of_wrong_content_is_refused(
    organism: Vlm, tuned: TunedLens, tmp_path: Path
) -> None:
    place = tmp_path / "lens"
    tuned.save(place)
    tensors = load_file(place)
    for wrong in (
        {name: each for name, each in tensors.items() if name != "3.bias"},
        tensors | {"3.bias": tensors["3.bias"][:5].clone()},
        tensors | {"3.weight": tensors["3.weight"].bfloat16()},
        tensors | {"losses": tensors["losses"][:2].clone()},
    ):
        save_file(wrong, place, _tuned_lens._identity(organism) | _tuned_lens._sealed(wrong, tuned.fitted))
        refused(place, organism, StoreError, "does not hold what a lens of 'organism' has: 16 tensors")


def by_sorting(logits: np.ndarray, token: int) -> int:
    """The last place that a token can have in a descending order."""
    return int(np.flatnonzero(np.sort(logits)[::-1] == logits[token])[-1])


def test_ranks_are_those_of_a_sort_with_ties_against_the_token() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (5, 2, 30)).astype(np.float32)  # full of ties
    tokens = rng.integers(0, 30, (5, 2, 4))
    rank, logprob = token_ranks(torch.from_numpy(logits), torch.from_numpy(tokens))
    wanted = log_softmax(logits.astype(np.float64), axis=-1)
    for at in np.ndindex(tokens.shape):
        assert rank[at] == by_sorting(logits[at[:2]], tokens[at])
        assert logprob[at] == pytest.approx(wanted[at[:2]][tokens[at]], rel=1e-5)
    assert logprob.dtype == torch.float32


def test_ranks_by_hand() -> None:
    logits = torch.tensor([[2.0, 5.0, 2.0, -1.0], [float("nan"), 1.0, 3.0, 0.0]], dtype=torch.bfloat16)
    rank, logprob = token_ranks(logits, torch.tensor([[1, 0, 2, 3], [2, 0, 1, 3]]))
    assert rank.tolist() == [[0, 2, 2, 3], [1, 3, 2, 3]]
    assert logprob[0].exp().sum() == pytest.approx(1)
    assert logprob[1].isnan().all()
    assert token_ranks(torch.zeros(1, 6), torch.tensor([[0, 5]])).rank.tolist() == [[5, 5]]


def test_ranks_of_what_does_not_fit_are_refused() -> None:
    with pytest.raises(RunError, match="tokens go from 0 to 9; the vocabulary has 9"):
        token_ranks(torch.zeros(2, 9), torch.tensor([[0], [9]]))
    with pytest.raises(RunError, match="differ before the last dimension"):
        token_ranks(torch.zeros(2, 9), torch.tensor([[0]]))


def test_logits_of_many_tokens_are_never_held(organism: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
    with capture(organism, "lm.4.resid_post", spans="image") as acts:
        organism.forward(organism.encode(TASK.items(3), condition="direct"))
    stream = acts["lm.4.resid_post", "image"].values
    tokens = torch.arange(len(stream))[:, None] % 80
    lens, sizes = LogitLens(organism), []
    whole = lens_ranks(lens, "lm.4.resid_post", stream, tokens)
    unembed = Vlm.unembed

    def spy(self: Vlm, stream: Tensor) -> Tensor:
        sizes.append(len(stream))
        return unembed(self, stream)

    monkeypatch.setattr(Vlm, "unembed", spy)
    monkeypatch.setattr(_lens, "NUMBERS", 88 * 10)
    parts = lens_ranks(lens, "lm.4.resid_post", stream, tokens)
    assert sizes == [10] * 10 + [8]
    assert torch.equal(parts.rank, whole.rank)
    assert torch.allclose(parts.logprob, whole.logprob, atol=1e-5)
