"""Runs on the NDIF, as far as they can be tried without it: what is sent, what another process makes of it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from nnsight import CONFIG
from nnsight.intervention.backends.remote import RemoteBackend

from seamscope.hooks import (
    Attribution,
    ModelError,
    Patch,
    RunError,
    Vlm,
    capture,
    knockout,
    load_vlm,
    patch,
    replay,
)
from seamscope.hooks._engine import NEEDS_MODULES

from .conftest import ask
from .families_fixture import checkpoint, families
from .test_engines import asked, batches, same, values

SPANS = ["question", "last", "generated"]
SERVED = "llava"
SCALED = ("gemma4_unified",)  # families whose layers multiply their output


@cache
def plain(name: str = SERVED) -> Vlm:
    return load_vlm(checkpoint(name), device="cpu", attn_implementation="eager", check=False)


@cache
def rehearsal(name: str) -> Vlm:
    """nnsight's own: what would be sent is written and read again with our modules hidden, and run in this process."""
    return load_vlm(checkpoint(name), engine="nnsight", remote="local", attn_implementation="eager")


@families
def test_every_family_can_be_run_from_afar(name: str):
    mine, afar = plain(name), rehearsal(name)
    for prompts in batches(mine):
        batch, encoded, found = mine.encode(prompts), afar.encode(prompts), []
        assert same(dict(batch.inputs), dict(encoded.inputs))
        for vlm in (mine, afar):
            with capture(vlm, "*") as whole:
                logits = vlm.forward(encoded)
            with capture(vlm, "lm.*.resid_post", SPANS, pool="mean") as steps:
                text = vlm.generate(encoded, max_new_tokens=4)
            score = vlm.score(vlm.encode(prompts, answers=["seven"] * len(prompts)))
            assert steps.generated is not None
            acts = values(whole) | values(steps) | {"tokens": steps.generated.values}
            assert not any(held.is_inference() or held.requires_grad for held in acts.values())
            found.append((text, acts | {"logits": logits, "score": score.logprob}))
        assert found[0][0] == found[1][0]
        assert same(found[0][1], found[1][1])


@families
def test_every_family_can_be_patched_from_afar(name: str):
    mine, afar = plain(name), rehearsal(name)
    batch = mine.encode(asked())
    with capture(mine, "*") as acts:
        logits = mine.forward(batch)
    sites = [site for site in mine.sites if site.startswith(("lm.1", "proj")) and not site.endswith("pattern")]
    for site in sites:
        if site == "lm.1.resid_mid" and name in SCALED:
            continue
        for value in (0.9 * acts[site], torch.tanh, lambda there: 0.1 - there):
            found = []
            for vlm in (mine, afar):
                with patch(vlm, Patch(site, value)):
                    found.append(vlm.forward(batch))
            assert torch.equal(*found), site
            assert not torch.equal(found[1], logits), site


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that knows every name."""
    monkeypatch.setattr(HfApi, "model_info", lambda self, name, **_: SimpleNamespace(id=name))


@pytest.fixture
def far(hub: None) -> Vlm:
    return load_vlm(checkpoint(SERVED), engine="nnsight", remote=True, attn_implementation="eager")


def answered_by(monkeypatch: pytest.MonkeyPatch, give: Callable[[str, bytes], Any]) -> None:
    """Let `give(envelope, payload)` stand for the network."""

    def request(self: Any, told: Any, tracer: Any) -> Any:
        return give(told.metadata(), self._serialize(tracer))

    monkeypatch.setattr(RemoteBackend, "request", request)


def test_what_is_sent_is_small_and_names_the_model(far: Vlm, monkeypatch: pytest.MonkeyPatch):
    sent: list[tuple[str, bytes]] = []
    answered_by(monkeypatch, lambda *given: sent.append(given) or {})
    assert far.model.device.type == "meta"
    batch = far.encode(asked())
    with pytest.raises(RunError), capture(far, "*"):  # nothing comes back
        far.forward(batch)
    ((envelope, payload),) = sent
    told = json.loads(envelope)
    assert str(checkpoint(SERVED)) in told["model_key"]
    assert "image-text-to-text" in told["model_key"]
    assert told["env"]["attn_implementation"] == "eager"
    inputs = sum(tensor.nbytes for tensor in batch.inputs.values())
    assert 1_000 < len(payload) < 50_000 + inputs


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    """A process that has nnsight and the model, and nothing of ours."""
    command = [sys.executable, str(Path(__file__).with_name("ndif_stand_in.py")), str(checkpoint(SERVED))]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=surroundings, cwd="/", **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def ndif(worker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The network ends in that process."""
    path = tmp_path / "request"

    def give(envelope: str, payload: bytes) -> Any:
        path.write_bytes(payload)
        path.with_name("request.json").write_text(envelope)
        print(path, file=worker.stdin, flush=True)
        if told := worker.stdout.readline().strip():
            raise OSError(told)
        return torch.load(path.with_name("request.answer"), weights_only=False)

    answered_by(monkeypatch, give)


@pytest.mark.usefixtures("ndif")
def test_another_process_without_our_code_gives_the_same(far: Vlm):
    mine, factor = plain(), 3.0
    batch = mine.encode([*asked(), ask("what is three + four ?")])
    with capture(mine, "lm.*.resid_post", "last") as late:
        mine.forward(batch)
    patches = [
        Patch("vision.1.resid_post", torch.zeros_like, span="image.object.0"),
        Patch("lm.0.head_z", lambda z: -z, heads=[1]),
        Patch("lm.1.resid_mid", lambda x: x * factor, span="image"),
        Patch("lm.2.resid_post", late["lm.1.resid_post", "last"], span="last"),
    ]
    found = []
    for vlm in (mine, far):
        with capture(vlm, "*") as whole:
            logits = vlm.forward(batch)
        with patch(vlm, patches), capture(vlm, ["lm.*", "projector.out"], ["image", *SPANS], pool="mean") as acts:
            text = vlm.generate(batch, max_new_tokens=5)
        assert acts.generated is not None
        found.append((text, values(whole) | values(acts) | {"logits": logits, "tokens": acts.generated.values}))
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


@pytest.mark.usefixtures("ndif")
def test_what_goes_wrong_there_is_told_here_in_one_line(far: Vlm):
    batch = far.encode(asked())
    with (
        pytest.raises(RunError, match=r"SiteError: lm\.1\.resid_post: the value has shape") as told,
        patch(far, Patch("lm.1.resid_post", lambda x: x[:1])),
    ):
        far.forward(batch)
    assert "\n" not in str(told.value)
    unheard = Patch("lm.1.resid_post", inspect.unwrap)  # a patch may name what is on the list only
    with pytest.raises(RunError, match=r"not on the list: inspect\."), patch(far, unheard):
        far.forward(batch)
    assert torch.equal(far.forward(batch), plain().forward(batch))


@pytest.mark.usefixtures("hub")
def test_a_machine_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CONFIG.API, "HOST", "http://127.0.0.1:9")  # nobody listens to this port
    far = load_vlm(checkpoint(SERVED), engine="nnsight", remote=True)
    with pytest.raises(RunError, match="the model was not run remotely: ") as told:
        far.forward(far.encode(asked()))
    assert "\n" not in str(told.value)


def test_a_name_that_no_hub_knows_is_refused_at_load(monkeypatch: pytest.MonkeyPatch):
    def unknown(self: Any, name: str, **_: Any) -> Any:
        raise OSError(f"404: {name}")

    monkeypatch.setattr(HfApi, "model_info", unknown)
    monkeypatch.setattr("nnsight.modeling.huggingface._ID_CACHE", {})
    with pytest.raises(ModelError, match="cannot be run remotely, its name is not known: 404"):
        load_vlm(checkpoint(SERVED), engine="nnsight", remote=True)


REFUSALS: dict[str, Callable[[], Any]] = {
    "knockout": lambda: knockout(rehearsal(SERVED), queries="last", keys="image", layers=[1]).__enter__(),
    "patch of lm.L.pattern": lambda: patch(rehearsal(SERVED), Patch("lm.1.pattern", torch.neg)).__enter__(),
    "patch of lm.L.resid_mid in this family": lambda: patch(
        rehearsal(SCALED[0]), Patch("lm.1.resid_mid", torch.neg)
    ).__enter__(),
    "unembed": lambda: rehearsal(SERVED).unembed(torch.zeros(1, rehearsal(SERVED).d_model)),
    "attribution": lambda: Attribution(rehearsal(SERVED), None, ["lm.0.resid_post"]),
    "replay": lambda: replay(rehearsal(SERVED), None),
}


@pytest.mark.parametrize("what", NEEDS_MODULES)
def test_what_needs_the_modules_is_refused_and_the_page_says_so(what: str):
    with pytest.raises(ModelError, match=f"no {what} with remote=True: it {NEEDS_MODULES[what]}"):
        REFUSALS[what]()
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    assert f"| {what} | it {NEEDS_MODULES[what]} |" in page


def test_remote_goes_with_its_engine_and_with_trained_weights():
    for options in ({}, {"engine": "nnsight", "untrained": True}, {"engine": "nnsight", "device": "cpu"}):
        with pytest.raises(ModelError, match="remote=True goes with engine='nnsight'"):
            load_vlm(checkpoint(SERVED), remote=True, **options)
