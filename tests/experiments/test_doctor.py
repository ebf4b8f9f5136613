"""The check-up: what it finds on the organism and on every family, how it is printed, and what a failed check does."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from seamscope.experiments import Settings, _cli, _doctor, tasks
from seamscope.experiments._amounts import ranges, size_text, time_text
from seamscope.experiments._capture import Capture
from seamscope.experiments._costs import Memory, captured_shapes, estimate, measure_memory
from seamscope.experiments._doctor import Examination, examine
from seamscope.experiments._members import Members
from seamscope.experiments._sample import sample_item
from seamscope.experiments.organism import natural
from seamscope.hooks import Box, Check, ModelError, Site, Vlm, load_vlm, run_checks

from ..checkpoints import BUILDERS
from ..hooks.families_fixture import checkpoint


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examination:
    return examine("organism", overlay=tmp_path_factory.mktemp("overlay") / "it.png")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@cache
def vlm_of(name: str) -> Vlm:
    return load_vlm(checkpoint(name), device="cpu", check=False)


def failing(vlm: Vlm) -> list[Check]:
    return [*run_checks(vlm)[:2], Check("lens", False, "differs by 1.0", 0.1)]


class TestExamine:
    def test_the_organism_is_healthy(self, found: Examination) -> None:
        assert found.healthy
        assert len(found.checks) > 5
        assert {check.name for check in found.checks} >= {"capture", "self_patch", "layer_swap", "padding"}

    def test_json_holds_everything(self, found: Examination) -> None:
        plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert plain["healthy"] is True
        assert plain["failed"] == plain["troubles"] == []
        assert plain["sites"] == {name: list(shape) for name, shape in found.sites.items()}
        assert plain["spans"] == found.spans
        assert plain["tokens"] == found.tokens
        assert [check["name"] for check in plain["checks"]] == [check.name for check in found.checks]
        assert plain["memory"]["weights"] > 0
        assert plain["cost"]["bytes"] == 200 * sum(plain["cost"]["per_item"].values())
        assert plain["cost"]["seconds"] == pytest.approx(200 * plain["cost"]["seconds_per_item"])

    def test_text_lists_every_site_and_span(self, found: Examination) -> None:
        lines = found.text().splitlines()
        assert tuple(found.sites) == load_vlm("organism", check=False).sites
        for name, shape in found.sites.items():
            site = Site.parse(name)
            form = name if site.layer is None else f"{site.stack}.L.{site.kind}"
            (line,) = (line for line in lines if line.startswith(f"  {form} ") and line.endswith(")"))
            assert line.endswith(f"({', '.join(map(str, shape))})")
        spans = [*found.spans.values(), *found.tokens.values()]
        assert all(f"  {name}: {ranges(sorted(where))}" in lines for each in spans for name, where in each.items())
        assert not any(word in found.text() for word in ("FAIL", "could not"))

    def test_spans_are_those_of_the_prompts(self, found: Examination) -> None:
        direct, oracle = found.spans["direct"], found.spans["oracle"]
        assert {"image", "image.object.0", "question", "last"} <= set(direct)
        assert {"intermediate", "intermediate.0", "question", "last"} <= set(oracle)
        assert "image" not in oracle
        assert set(direct["image.object.0"]) < set(direct["image"])

    def test_the_small_profile_is_for_the_shipped_models(self, found: Examination) -> None:
        assert "72 x 72 pixels" in found.facts["looked at"]
        assert "448 x 448 pixels" in examine(str(natural())).facts["looked at"]

    def test_eager_attention_has_patterns(self) -> None:
        eager = examine("organism", attn_implementation="eager", task="counting")
        width = eager.sites["lm.0.resid_post"][1]
        assert eager.sites["lm.0.pattern"] == (1, 4, width, width)

    def test_wrong_names(self) -> None:
        with pytest.raises(ModelError):
            examine("./nowhere")


@pytest.fixture(params=BUILDERS, scope="module")
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Examination]:
    name: str = request.param
    return name, examine(str(checkpoint(name)), overlay=tmp_path_factory.mktemp(name) / "it.png", device="cpu")


class TestEveryFamily:
    def test_nothing_is_left_out(self, seen: tuple[str, Examination]) -> None:
        name, found = seen
        assert found.healthy, found.text()
        assert tuple(found.sites) == vlm_of(name).sites
        assert found.memory is not None
        assert found.cost is not None
        assert found.overlay is not None
        with Image.open(found.overlay) as picture:
            assert picture.width == 1380
            assert picture.height > 500
        json.dumps(found.to_json(), allow_nan=False)
        assert all(f"  lacks: {what}" in found.text() for what in vlm_of(name).family.lacks)

    def test_shapes_are_those_that_pass(self, seen: tuple[str, Examination]) -> None:
        """What the prompt and the model's own configuration say of the decoder's sites."""
        name, found = seen
        vlm = vlm_of(name)
        width, text = len(found.spans["direct"]["prompt"]), vlm.model.config.get_text_config()
        for layer in range(text.num_hidden_layers):
            assert found.sites[f"lm.{layer}.resid_post"] == (1, width, text.hidden_size)
            one, positions, heads, _ = found.sites[f"lm.{layer}.head_z"]
            assert (one, positions, heads) == (1, width, text.num_attention_heads)
        assert found.sites["lm.logits"] == (1, width, vlm.model.get_output_embeddings().weight.shape[0])
        assert any(site.endswith("cross_attn_out") for site in found.sites) == (name == "mllama")
        assert any(site.endswith("deepstack") for site in found.sites) == (name == "qwen3_vl")
        assert any(site.startswith("vision.") for site in found.sites) == (name != "gemma4_unified")

    def test_objects_are_where_there_are_tokens(self, seen: tuple[str, Examination]) -> None:
        name, found = seen
        objects = {f"image.object.{k}" for k in range(4)}
        assert (objects <= set(found.spans["direct"])) == (name != "mllama")
        assert objects <= set(found.tokens["projector"])
        assert (objects <= set(found.tokens["vision"])) == (name != "gemma4_unified")


class TestBroken:
    @pytest.fixture
    def broken(self, tmp_path: Path) -> Path:
        """A checkpoint whose chat template shouts, so that no span can be found."""
        folder = BUILDERS["llava"](tmp_path / "broken")
        template = folder / "chat_template.jinja"
        template.write_text(template.read_text().replace("part['text'] +", "part['text'] | upper +"))
        return folder

    def test_it_is_reported(self, broken: Path, here: Path) -> None:
        result = CliRunner().invoke(_cli.app, ["doctor", str(broken)])
        assert result.exit_code == 1
        assert "  FAIL  runs (" in result.stdout
        assert result.stdout.splitlines()[-1] == "FAILED: runs"
        assert "  spans: SpanError: the chat template changes the text of item" in result.stdout
        assert "family: LLaVA 1.5" in result.stdout
        assert [file.name for file in here.iterdir()] == ["broken"]

    def test_json(self, broken: Path, here: Path) -> None:
        result = CliRunner().invoke(_cli.app, ["doctor", str(broken), "--json"])
        assert result.exit_code == 1
        plain = json.loads(result.stdout)
        assert plain["healthy"] is False
        assert plain["failed"] == ["runs"]
        assert [trouble.partition(":")[0] for trouble in plain["troubles"]] == ["spans", "spans of a text"]
        assert plain["sites"] == plain["tokens"] == {}
        assert plain["memory"] is plain["cost"] is plain["overlay"] is None

    def test_a_failed_check_is_shown_and_told_by_the_exit_code(
        self, monkeypatch: pytest.MonkeyPatch, here: Path
    ) -> None:
        monkeypatch.setattr(_doctor, "run_checks", failing)
        shown = CliRunner().invoke(_cli.app, ["doctor", "organism"])
        assert shown.exit_code == 1
        assert "  FAIL  lens (0.10 s): differs by 1.0" in shown.stdout.splitlines()
        assert "lm.L.resid_post" in shown.stdout
        plain = CliRunner().invoke(_cli.app, ["doctor", "organism", "--json"])
        assert plain.exit_code == 1
        assert json.loads(plain.stdout)["failed"] == ["lens"]

    def test_what_cannot_be_measured_spoils_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def too_large(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("no room\nat all")

        monkeypatch.setattr(_doctor, "estimate", too_large)
        found = examine("organism")
        assert found.troubles == ("cost: OutOfMemoryError: no room at all",)
        assert not found.healthy
        assert not found.failed
        assert found.cost is None
        assert found.sites
        assert found.memory is not None


class TestCosts:
    def test_weights_are_what_the_file_holds(self, organism: Vlm) -> None:
        vlm = load_vlm("organism", dtype="bfloat16", device="cpu", check=False)
        batch = vlm.encode(tasks.get("cards.sum").items(1), condition="direct")
        with safe_open(natural() / "model.safetensors", framework="pt") as file:
            parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        inside = sum(each.numel() * each.element_size() for each in vlm.model.buffers())
        assert measure_memory(vlm, batch).weights == 2 * parameters + inside

    def test_tied_weights_count_once(self) -> None:
        vlm = vlm_of("qwen2_vl")
        assert vlm.model.get_output_embeddings().weight is vlm.model.get_input_embeddings().weight
        batch = vlm.encode(tasks.get("cards.sum").items(1, profile_name="full"), condition="direct")
        stored = sum(file.stat().st_size for file in checkpoint("qwen2_vl").glob("*.safetensors"))
        assert stored * 0.95 < measure_memory(vlm, batch).weights < stored

    def test_the_peak_of_a_pass(self, organism: Vlm, monkeypatch: pytest.MonkeyPatch) -> None:
        """The process, which holds the weights, is at least as large as a tensor that the pass makes."""
        batch = organism.encode(tasks.get("cards.sum").items(1), condition="direct")
        small = measure_memory(organism, batch).peak
        forward, room = organism.forward, 2**28
        monkeypatch.setattr(organism, "forward", lambda given: (np.ones(room, dtype=np.uint8), forward(given))[1])
        large = measure_memory(organism, batch).peak
        if small is not None and large is not None:  # not every system tells
            assert room * 0.9 < large - small < room * 1.5

    def test_memory_of_accelerators(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model over two of them: sums of what torch tells of each, peaks counted anew before the pass."""
        tensors = [torch.empty(10, 4, dtype=torch.bfloat16, device="meta") for _ in range(2)]
        held = [
            SimpleNamespace(device=torch.device("cuda", k), numel=t.numel, element_size=t.element_size)
            for k, t in enumerate(tensors)
        ]
        told: list[object] = []
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", told.append)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda gpu: 1000 + gpu)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (70 + gpu, 80 + gpu))
        model = SimpleNamespace(parameters=lambda: [held[0], held[0]], buffers=lambda: [held[1]])
        vlm: Any = SimpleNamespace(model=model, forward=lambda _: told.append("pass"))
        assert measure_memory(vlm, None) == Memory(weights=160, peak=2001, total=161, free=141)  # type: ignore[arg-type]
        assert told == [0, 1, "pass"]

    @pytest.mark.parametrize("room", [1, 2**14, 2**30])
    def test_shapes_in_portions(self, room: int, organism: Vlm) -> None:
        """However little is held at a time, the shapes are the same."""
        batch = organism.encode(tasks.get("cards.sum").items(2), condition="direct")
        found = captured_shapes(organism, batch, room=room)
        width = batch.width
        named = {"batch": 2, "pos": width, "query": width, "key": width}
        for site, shape in organism.shapes().items():
            if not Site.parse(site).visual:
                assert found[site] == tuple(named.get(axis, axis) for axis in shape)
        assert found["projector.out"] == (2, 36, organism.d_model)
        assert tuple(found) == organism.sites

    def test_the_estimate_is_what_a_capture_keeps(self, organism: Vlm, tmp_path: Path) -> None:
        """Bytes of the values in a real store of the same item and its partner."""
        task, usual = tasks.get("cards.sum"), Settings(n=1)
        (item,) = task.items(1)
        path = tmp_path / "store.h5"
        options = {"conditions": ("direct", "cascaded"), "sites": organism.expand(usual.sites)}
        assert Capture(organism, task, Members(task, usual), path=path, settings=usual, **options).run()
        path = path.with_suffix(".shards") / "00000.h5"
        sizes: dict[str, int] = {}

        def count(name: str, held: Any) -> None:
            if isinstance(held, h5py.Dataset) and "/acts/" in name and name.endswith("values"):
                site = Site.parse(name.split("/acts/")[1].split("/")[0])
                form = f"{site.stack}.*.{site.kind}" if site.layer is not None else str(site)
                sizes[form] = sizes.get(form, 0) + held.nbytes

        with h5py.File(path) as file:
            file.visititems(count)
        cost = estimate(organism, item, budget=task.budget["small"], items=3)
        assert cost.per_item == sizes
        assert cost.bytes == 3 * sum(sizes.values())
        assert cost.every_token > sizes["lm.*.resid_post"]
        assert cost.seconds == pytest.approx(3 * cost.seconds_per_item)


class TestSample:
    def test_a_picture_of_ones_own(self, here: Path) -> None:
        Image.new("RGBA", (200, 80), (255, 0, 0, 255)).save("own.png")
        item = sample_item(tasks.get("cards.sum"), profile="full", image=Path("own.png"))
        assert (item.id, item.image.size, item.image.mode) == ("own.png", (200, 80), "RGB")
        assert item.boxes[0] == Box(left=20, top=8, right=70, bottom=28)
        assert len(item.boxes) == 3
        assert all(box.right <= 200 and box.bottom <= 80 for box in item.boxes)

    def test_boxes_of_ones_own(self) -> None:
        item = sample_item(tasks.get("cards.sum"), profile="small", boxes=("1,2,30.5,40", " 5, 6, 7, 8"))
        assert item.boxes == (Box(left=1, top=2, right=30.5, bottom=40), Box(left=5, top=6, right=7, bottom=8))

    def test_it_is_what_is_examined(self, here: Path) -> None:
        Image.new("RGB", (300, 100), "white").save("own.png")
        words = ["doctor", str(checkpoint("mistral3")), "--image", "own.png", "--box", "0,0,300,100", "--json"]
        result = CliRunner().invoke(_cli.app, words)
        assert result.exit_code == 0, result.output
        plain = json.loads(result.stdout)
        assert plain["facts"]["looked at"] == "own.png, 300 x 100 pixels, 1 objects"
        assert plain["spans"]["direct"]["image.object.0"] == plain["spans"]["direct"]["image"]

    def test_what_a_processor_cuts_away_is_told(self, here: Path) -> None:
        """LLaVA 1.5 keeps the middle of a wide picture."""
        Image.new("RGB", (300, 100), "white").save("own.png")
        words = ["--image", "own.png", "--box", "0,0,60,100", "--box", "120,20,180,80"]
        result = CliRunner().invoke(_cli.app, ["doctor", str(checkpoint("llava")), *words])
        assert result.exit_code == 0, result.output
        assert "  shown by no token: image.object.0" in result.stdout.splitlines()


class TestWords:
    def test_runs_of_positions(self) -> None:
        assert ranges([]) == ""
        assert ranges([3]) == "3"
        assert ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"

    @pytest.mark.parametrize(
        ("n", "told"),
        [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (123_456, "123 kB"),
            (2_500_000, "2.5 MB"),
            (3 * 10**12, "3.0 TB"),
        ],
    )
    def test_sizes(self, n: int, told: str) -> None:
        assert size_text(n) == told

    def test_durations(self) -> None:
        assert [time_text(each) for each in (0.26, 59, 90, 5400)] == ["0.3 s", "59.0 s", "1.5 min", "1.5 h"]


class TestCommand:
    @pytest.mark.parametrize("words", [[], ["organism"], ["--model", "organism"], ["-m", str(natural())]])
    def test_the_model_may_be_named_both_ways(self, words: list[str], here: Path) -> None:
        result = CliRunner().invoke(_cli.app, ["doctor", *words, "--json"])
        assert result.exit_code == 0
        plain = json.loads(result.stdout)
        assert plain["healthy"]
        assert plain["model"] == (words[-1] if words else "organism")
        assert plain["overlay"] == f"doctor.{Path(plain['model']).name}.png"
        assert [file.name for file in here.iterdir()] == [plain["overlay"]]

    def test_the_overlay_goes_where_it_should(self, here: Path) -> None:
        result = CliRunner().invoke(_cli.app, ["doctor", "--out", "deep/er/look.pdf", "-n", "7"])
        assert result.exit_code == 0
        assert "overlay: deep/er/look.pdf" in result.stdout.splitlines()
        assert "what `seamscope capture --n 7` would cost" in result.stdout
        assert (here / "deep/er/look.pdf").read_bytes().startswith(b"%PDF")

    def test_the_argument_wins(self) -> None:
        result = CliRunner().invoke(_cli.app, ["doctor", "./nowhere", "--model", "organism"])
        assert result.exit_code == 2
        assert result.stderr.startswith("seamscope: './nowhere' is not a folder")

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--image", "nowhere.png"), "cannot read the picture nowhere.png: "),
            (("--image", "text.png"), "cannot read the picture text.png: "),
            (("--box", "1,2,3"), "--box is '1,2,3'; expected LEFT,TOP,RIGHT,BOTTOM in pixels"),
            (("--box", "1,2,x,4"), "--box is '1,2,x,4'; expected LEFT,TOP,RIGHT,BOTTOM in pixels"),
            (("--box", "0,0,73,4"), "--box 0,0,73,4 is not inside the picture of 72 x 72 pixels"),
            (("--box", "5,0,5,4"), "--box 5,0,5,4 is not inside the picture"),
            (("--box", "nan,0,5,4"), "--box nan,0,5,4 is not inside the picture"),
            (("--profile", "big"), "unknown profile 'big'; one of: small, full"),
            (("--out", "look.bmp"), "cannot draw look.bmp; --out must name a .png or .pdf file"),
            (("--out", "text.png/look.png"), "text.png is a file"),
        ],
    )
    def test_refusals(self, words: tuple[str, ...], told: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In one line, before the model is loaded, and without writing anything."""
        monkeypatch.setattr(_doctor, "load_vlm", lambda *_, **__: pytest.fail("loaded"))
        (here / "text.png").write_text("no picture")
        result = CliRunner().invoke(_cli.app, ["doctor", *words])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"seamscope: {told}")
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
        assert [file.name for file in here.iterdir()] == ["text.png"]
