from __future__ import annotations

import json
import shutil
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from seamscope.hooks import Check, ModelError, Vlm, _load, load_vlm

from .conftest import ask, build_checkpoint, picture


@pytest.fixture
def copied(siglip_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(siglip_folder, tmp_path / "copied"))


def refusal(name, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_vlm(name, device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_loaded_as_its_checkpoint_is(siglip_folder: Path):
    vlm = load_vlm(str(siglip_folder), device="cpu")
    stored = load_file(siglip_folder / "model.safetensors")
    assert vlm.name == str(siglip_folder)
    assert not vlm.model.training
    assert torch.equal(vlm.anatomy.norm.weight, next(v for k, v in stored.items() if k.endswith("model.norm.weight")))


def test_an_installed_model_is_loaded_by_its_name(siglip_folder: Path, monkeypatch):
    entry = EntryPoint("tiny", "tiny_models:folder", _load.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda: siglip_folder)
    monkeypatch.setattr(_load, "installed_models", lambda: {"tiny": entry})
    assert load_vlm("tiny", device="cpu").name == "tiny"


def test_the_organisms_are_installed_by_name():
    assert {"organism", "organism-composing"} <= set(_load.installed_models())


def test_dtypes(tmp_path: Path):
    folder = build_checkpoint(tmp_path / "half", "siglip", dtype=torch.float16)
    assert {each.dtype for each in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert load_vlm(folder, device="cpu").dtype == torch.float32
    assert load_vlm(folder, device="cpu", dtype="bfloat16", check=False).dtype == torch.bfloat16
    assert load_vlm(folder, device="cpu", dtype=torch.float64, check=False).dtype == torch.float64
    assert _load._dtype("auto", torch.device("cuda")) == "auto"
    assert "unknown dtype 'flaot32'; expected auto, float32" in refusal(folder, dtype="flaot32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_the_self_checks_pass_in_every_dtype(siglip_folder: Path, dtype: str, attn: str):
    load_vlm(siglip_folder, device="cpu", dtype=dtype, attn_implementation=attn)


def test_the_self_checks_find_that_eager_attention_cannot_pad_in_float64(siglip_folder: Path):
    """Transformers softmaxes in float32, where a mask of float64's least number is minus infinity: NaN."""
    load_vlm(siglip_folder, device="cpu", dtype="float64")
    message = refusal(siglip_folder, dtype="float64", attn_implementation="eager")
    assert "padded on the left, a batch misses its items alone by nan" in message


def test_untrained_keeps_the_configuration_and_draws_weights_from_the_seed(siglip_folder: Path, vlm: Vlm):
    state = torch.random.get_rng_state()
    one, same, other = (load_vlm(siglip_folder, device="cpu", untrained=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    batch = vlm.encode([ask("red ?", picture(1))])
    logits = [each.forward(batch) for each in (one, same, other, vlm)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-4)
    assert not torch.allclose(logits[0], logits[3], atol=1e-4)
    assert one.model.config.to_dict().keys() == vlm.model.config.to_dict().keys()
    assert one.shapes() == vlm.shapes()
    assert one.dtype == torch.float32


def test_a_tokenizer_without_padding_gets_some(copied: Path):
    settings = json.loads((copied / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copied / "tokenizer_config.json").write_text(json.dumps(settings))
    vlm = load_vlm(copied, device="cpu")
    assert vlm.processor.tokenizer.pad_token == "</s>"


def test_the_progress_bar_is_as_it_was(siglip_folder: Path, capfd):
    for before in (logging.enable_progress_bar, logging.disable_progress_bar):
        before()
        shown = logging.is_progress_bar_enabled()
        load_vlm(siglip_folder, device="cpu", check=False)
        assert logging.is_progress_bar_enabled() == shown
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_paths_that_lead_nowhere(name: str):
    assert "is not a folder" in refusal(name)


def test_folders_and_files_that_are_no_checkpoints(tmp_path: Path):
    assert f"is not a checkpoint: {tmp_path} has no config.json" in refusal(tmp_path)
    (tmp_path / "file").touch()
    assert "does not exist or is a file" in refusal(tmp_path / "file")


def test_a_name_that_is_nearly_right_is_told_the_right_one():
    assert refusal("orgnism").startswith("unknown model 'orgnism'; nearest: organism")


def test_an_installed_model_without_its_folder(monkeypatch):
    entry = EntryPoint("gone", "nowhere_at_all:folder", _load.GROUP)
    monkeypatch.setattr(_load, "installed_models", lambda: {"gone": entry})
    assert refusal("gone").startswith("the installed model 'gone' cannot be found: ModuleNotFoundError")


def test_a_hub_that_cannot_be_reached_is_not_asked_again_and_again(monkeypatch):
    monkeypatch.setattr(_load, "_hub_answers", lambda: False)
    assert refusal("owner/name").startswith("cannot load 'owner/name': OSError: We couldn't connect to")


def test_a_silent_hub_is_found_out(monkeypatch):
    def silent():
        raise OSError

    monkeypatch.setattr(_load, "get_session", silent)
    assert not _load._hub_answers()


def test_a_family_that_is_not_known(copied: Path):
    (copied / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    told = refusal(copied)
    assert told.startswith(f"cannot load '{copied}': ValueError: Unrecognized configuration class")
    assert told.endswith("for this kind of AutoModel: AutoModelForImageTextToText.")


def test_weights_that_are_not_there_are_not_drawn_at_random(copied: Path):
    weights = load_file(copied / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file(
        {key: value for key, value in weights.items() if key != name}, copied / "model.safetensors", {"format": "pt"}
    )
    assert "the checkpoint lacks 1 weights" in refusal(copied)
    assert "layers.1.mlp.up_proj.weight" in refusal(copied)


def test_damaged_files(copied: Path):
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert refusal(copied).startswith(f"cannot load '{copied}': SafetensorError")
    (copied / "config.json").write_text("{")
    assert refusal(copied).startswith(f"cannot load '{copied}': ")


def test_an_attention_implementation_that_is_none(siglip_folder: Path):
    assert refusal(siglip_folder, attn_implementation="egaer").startswith("cannot load ")


def test_attention_is_what_the_model_chooses_unless_told(siglip_folder: Path, vlm: Vlm):
    model = AutoModelForImageTextToText.from_pretrained(siglip_folder)
    assert vlm.attn_implementation == model.config.get_text_config()._attn_implementation == "sdpa"
    told = load_vlm(siglip_folder, device="cpu", attn_implementation="eager", check=False)
    assert told.attn_implementation == "eager"


def test_an_engine_that_is_none(siglip_folder: Path):
    assert refusal(siglip_folder, engine="trch") == "unknown engine 'trch'; nearest: torch; one of: torch, nnsight"


def test_a_model_that_fails_a_check_is_refused_unless_nobody_asks(siglip_folder: Path, monkeypatch):
    checks = [Check("lens", False, "misses the logits", 0.0), Check("spans", True, "as expected", 0.0)]
    monkeypatch.setattr(_load, "run_checks", lambda vlm: checks)
    message = refusal(siglip_folder)
    assert "fails 1 self-checks, so its sites cannot be trusted: lens: misses the logits" in message
    assert load_vlm(siglip_folder, device="cpu", check=False).n_layers == 4
    assert load_vlm(siglip_folder, device="cpu", untrained=True).n_layers == 4  # its gates may be closed
