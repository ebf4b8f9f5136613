"""`seamscope store`, in process: what it says of stores, what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import h5py
import pandas as pd
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from seamscope.activations import Schema, Shards, create_store, open_store
from seamscope.experiments import _cli
from seamscope.experiments._cli_store import collapsed
from seamscope.experiments._run import Settings
from seamscope.hooks import Ragged

zarr = pytest.importorskip("zarr", reason="zarr 3.1 needs Python 3.11")

COMMANDS = ("verify", "info", "merge", "export")
SITES = ("projector.out", "lm.0.resid_post", "lm.1.resid_post", "lm.3.resid_post")
SPANS = ("image.object.0", "image.object.1", "last")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(_cli.app, ["store", *words])


def succeed(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return result.stdout


def told(*words: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(succeed(*words, "--json"))
    return found


def tree() -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in Path().rglob("*")}


def refused(*words: str) -> str:
    """The one line of a refusal; nothing else may be printed or written."""
    before = tree()
    result = run(*words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("seamscope: ")
    assert result.stderr.count("\n") == 1
    assert tree() == before
    return result.stderr.removeprefix("seamscope: ").strip()


def acts(rows: int) -> dict[tuple[str, str], Ragged]:
    one = torch.tensor([1] * rows)
    held = {
        (site, span): Ragged(torch.full((rows, 4), float(k)), one) for k, site in enumerate(SITES) for span in SPANS
    }
    return {**held, ("lm.0.resid_post", "image"): Ragged(torch.ones(2 * rows, 4).bfloat16(), 2 * one)}


def capture(file: str, *, seed: int = 0, only: int | None = None, **more: object) -> Path:
    """Five rows under two conditions, in shards of two; with `only`, so many shards are finished."""
    path = Path(file)
    provenance = {"seed": seed, "n": 5, "used": {"dtype": "float32"}, **more}
    schema = Schema(model="tiny", task="cards.sum", conditions=("direct", "cascaded"), provenance=provenance)
    with Shards(path, schema, rows=5, rows_per_shard=2) as shards:
        for number in shards.missing()[:only]:
            ids = [f"{seed}:{row}" for row in shards.rows_of(number)]
            with shards.create(number, {"device": "cpu", "batch_size": 2}) as writer:
                for condition in schema.conditions:
                    writer.append(condition, pd.DataFrame({"id": ids}), acts(len(ids)))
        assert shards.join() == (only is None)
    return path


def single(file: str) -> Path:
    schema = Schema(model="tiny", task="cards.sum", conditions=("direct", "cascaded"))
    with create_store(file, schema) as writer:
        writer.append("direct", pd.DataFrame({"id": ["ä", "b"]}), acts(2))
    return Path(file)


def flip(file: Path, name: str) -> None:
    with h5py.File(file) as opened:
        offset = opened[name].id.get_offset()
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(raw)


def test_the_commands_are_these() -> None:
    text = succeed("--help")
    assert all(f" {command} " in text for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(command: str, flag: str) -> None:
    text = succeed(command, flag)
    assert f" store {command} " in text
    assert "--json" in text


class TestVerify:
    def test_a_run_a_store_and_a_shard_that_are_whole(self) -> None:
        capture("run/activations.h5")
        lines = [succeed("verify", place) for place in ("run", "run/activations.h5", "run/activations.shards")]
        assert len({*lines}) == 1
        assert lines[0].startswith("run/activations.h5: 4 files, ")
        assert lines[0].count("\n") == 1
        assert "1 file, " in succeed("verify", "run/activations.shards/00000.h5")

    def test_its_numbers(self) -> None:
        capture("a.h5")
        found = told("verify", "a.h5")
        files = [Path("a.h5"), *Path("a.shards").glob("*.h5")]
        counts = []
        for file in files:
            with h5py.File(file) as opened:
                counts.append(len(json.loads(opened["manifest"][()].tobytes())["datasets"]))
        assert found == {
            "store": "a.h5",
            "files": 4,
            "bytes": sum(file.stat().st_size for file in files),
            "datasets": sum(counts),
            "healthy": True,
            "damage": None,
        }

    def test_damage_is_named_and_gives_another_exit_code(self) -> None:
        capture("a.h5")
        name = "conditions/direct/acts/lm.0.resid_post/last/values"
        flip(Path("a.shards/00001.h5"), name)
        result = run("verify", "a.h5")
        assert result.exit_code == 1
        assert result.stdout.count("\n") == 1
        assert f"00001.h5:/{name}" in result.stdout
        result = run("verify", "a.h5", "--json")
        assert result.exit_code == 1
        assert name in json.loads(result.stdout)["damage"]
        assert json.loads(result.stdout)["healthy"] is False

    def test_what_is_no_store(self) -> None:
        Path("text.h5").write_text("hello")
        Path("empty").mkdir()
        with h5py.File("other.h5", "w") as file:
            file["x"] = 1
        assert "none.h5 is not there" in refused("verify", "none.h5")
        assert "empty/activations.h5 is not there" in refused("verify", "empty")
        assert "text.h5 cannot be read" in refused("verify", "text.h5")
        assert "other.h5 is not a seamscope store" in refused("verify", "other.h5", "--json")

    def test_what_lacks_shards_or_is_not_finished(self) -> None:
        capture("a.h5")
        Path("a.shards/00002.h5").unlink()
        assert "a.shards/00002.h5 is missing, which holds 1 rows of direct" in refused("verify", "a.h5")
        assert "missing: 00002.h5" in refused("merge", "a.shards", "--out", "c.h5")
        capture("b.h5", only=1)
        assert "b.h5 is not finished, shards of it are (1)" in refused("verify", "b.h5")


class TestInfo:
    def test_everything_is_there_as_json(self) -> None:
        capture("run/activations.h5", seed=3)
        found = told("info", "run")
        with open_store("run/activations.h5") as store:
            assert found["provenance"] == store.provenance
            assert found["bytes"] == store.nbytes
        assert found["finished"] is True
        assert (found["model"], found["task"]) == ("tiny", "cards.sum")
        assert found["rows"] == {"direct": 5, "cascaded": 5}
        assert found["sites"] == list(SITES)
        assert found["spans"] == [*SPANS, "image"]
        assert found["types"] == ["float32", "bfloat16"]
        assert found["made_with"] == [{"device": "cpu", "batch_size": 2}]
        assert [each["rows"]["direct"] for each in found["shards"]] == [2, 2, 1]  # type: ignore[attr-defined]

    def test_a_shard_that_was_lost_is_counted(self) -> None:
        capture("a.h5")
        Path("a.shards/00001.h5").unlink()
        assert "not finished  2 of 3 shards are there" in succeed("info", "a.h5")

    def test_of_stores_of_other_items_both_numbers_are_told(self) -> None:
        capture("a.h5", seed=0)
        capture("b.h5", seed=1)
        succeed("merge", "a.h5", "b.h5", "--out", "c.h5")
        assert "seed 0+1, n 5+5, rows 5+5" in succeed("info", "c.h5")

    def test_it_is_short_for_a_reader(self) -> None:
        capture("a.h5", prompts={"direct": "x" * 1000}, note="y" * 1000)
        lines = dict(line.split(maxsplit=1) for line in succeed("info", "a.h5").splitlines()[1:])
        assert lines["rows"] == "5 of direct, 5 of cascaded"
        assert lines["sites"] == "4: projector.out, lm.0..1,3.resid_post"
        assert lines["spans"] == "4: image.object.0..1, last, image"
        assert lines["types"] == "float32, bfloat16"
        assert lines["size"].endswith(" in 3 shards and the file that joins them")
        assert lines["made"] == "with     device cpu, batch_size 2"
        assert lines["provenance"].startswith("seed 0, n 5, rows 5, rows_per_shard 2, ")
        assert max(map(len, lines.values())) < 200

    def test_a_single_file_and_a_shard(self) -> None:
        single("ä.h5")
        text = succeed("info", "ä.h5")
        assert "2 of direct, 0 of cascaded\n" in text
        assert text.count(" in one file\n") == 1
        capture("a.h5")
        assert "1 of direct, 1 of cascaded; one shard of a store of 5\n" in succeed("info", "a.shards/00002.h5")

    def test_a_store_that_is_not_finished(self) -> None:
        capture("run/activations.h5", only=2)
        for place in ("run", "run/activations.h5", "run/activations.shards"):
            found = told("info", place)
            assert found["finished"] is False
            assert (len(found["shards"]), found["planned_shards"]) == (2, 3)  # type: ignore[arg-type]
            assert found["rows"] == {"direct": 4, "cascaded": 4}
            assert found["continue"] is None
        line = succeed("info", "run").splitlines()[-1]
        assert "2 of 3 shards are there; what continues it: the command that began it" in line

    def test_the_command_that_continues_a_run(self) -> None:
        out = "my run"
        capture(f"{out}/activations.h5", only=1)
        asked = {**asdict(Settings()), "n": 7, "attn_implementation": "eager", "spans": ["last", "question"]}
        Path(out, "run.json").write_text(json.dumps(asked))
        words = "seamscope capture --n 7 --attn-implementation eager --spans last --spans question --out"
        command = told("info", out)["continue"]
        assert shlex.split(str(command)) == [*words.split(), out]
        assert str(command) in succeed("info", out)
        options = CliRunner().invoke(_cli.app, ["capture", "--help"], env={"COLUMNS": "200"}).stdout
        assert all(word in options for word in words.split() if word.startswith("--"))

    def test_what_is_not_there(self) -> None:
        assert "none.h5 is not there" in refused("info", "none.h5")
        assert "none.h5 is not there" in refused("info", "none.shards")

    @pytest.mark.parametrize(
        ("names", "short"),
        [
            ([f"lm.{k}.resid_post" for k in range(32)], ["lm.0..31.resid_post"]),
            (["lm.0.a", "lm.0.b", "lm.2.a", "lm.3.a", "lm.5.a"], ["lm.0,2..3,5.a", "lm.0.b"]),
            (["lm.embed", "last", "2", "image.object.1.2"], ["lm.embed", "last", "2", "image.object.1.2"]),
            (["x.07", "x.8", ""], ["x.07", "x.8", ""]),
        ],
    )
    def test_names_are_shown_together(self, names: list[str], short: list[str]) -> None:
        assert collapsed(names) == short


class TestMerge:
    def test_stores_runs_and_folders_of_shards(self) -> None:
        capture("one/activations.h5", seed=1)
        capture("two.h5", seed=2)
        capture("three.h5", seed=3)
        Path("three.h5").unlink()
        before = sum(file.stat().st_size for file in Path().rglob("0*.h5"))
        found = told("merge", "one", "two.h5", "three.shards", "--out", "new/all.h5")
        assert found == {"store": "new/all.h5", "rows": {"direct": 15, "cascaded": 15}, "shards": 9}
        assert sum(file.stat().st_size for file in Path().rglob("0*.h5")) == before
        with open_store("new/all.h5") as store:
            assert store.rows("direct")["id"].tolist() == [f"{seed}:{k}" for seed in (1, 2, 3) for k in range(5)]
            assert store.read("lm.3.resid_post", "last", "cascaded").values.tolist() == [[3.0] * 4] * 15
            store.verify()
        assert "9 shards, which must stay where they are" in succeed("merge", "new/all.h5", "-o", "again.h5")

    def test_what_does_not_go_together(self) -> None:
        capture("a.h5", seed=1)
        capture("b.h5", seed=2, used={"dtype": "bfloat16"})
        assert "used.dtype" in refused("merge", "a.h5", "b.h5", "-o", "all.h5")
        assert "id '1:0' comes twice" in refused("merge", "a.h5", "a.h5", "-o", "all.h5")

    def test_what_is_not_there_or_there_already(self) -> None:
        capture("a.h5")
        capture("run/activations.h5", only=1)
        assert "a.h5 exists already" in refused("merge", "a.h5", "-o", "a.h5")
        assert "b.h5 is not there" in refused("merge", "a.h5", "b.h5", "-o", "all.h5")
        assert "run/activations.h5 is not finished" in refused("merge", "a.h5", "run", "-o", "all.h5")
        assert "2 of 5 rows" in refused("merge", "run/activations.shards", "-o", "all.h5")


class TestExport:
    def test_safetensors_of_some(self) -> None:
        capture("run/activations.h5")
        words = ("--sites", "lm.*", "--spans", "last", "--spans", "image.object.*", "--conditions", "direct")
        found = told("export", "run", "--out", "new/out", *words)
        files = [file for file in Path("new/out").rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        assert found == {"export": "new/out", "to": "safetensors", "files": len(files), "bytes": size}
        tensors = load_file("new/out/conditions/direct/acts/lm.1.resid_post.safetensors")
        assert {*tensors} == {f"{span}.{kind}" for span in SPANS for kind in ("values", "lengths")}
        assert tensors["last.values"].tolist() == [[2.0] * 4] * 5
        assert not Path("new/out/conditions/cascaded").exists()

    def test_zarr_of_a_single_file(self) -> None:
        single("a.h5")
        assert succeed("export", "a.h5", "--to", "zarr", "-o", "out.zarr").startswith("out.zarr: zarr, ")
        cell = zarr.open_group("out.zarr", mode="r")["conditions/direct/acts/lm.0.resid_post/image"]
        assert cell["values"].attrs["dtype"] == "bfloat16"  # type: ignore[index]
        assert (cell["values"][:] == 0x3F80).all()  # type: ignore[index]

    def test_what_is_refused(self) -> None:
        single("a.h5")
        Path("there").mkdir()
        assert "there exists already" in refused("export", "a.h5", "-o", "there")
        assert "unknown form 'csv'; one of: safetensors, zarr" in refused("export", "a.h5", "-o", "x", "--to", "csv")
        assert "unknown site 'lm.9.resid_post'" in refused("export", "a.h5", "-o", "x", "--sites", "lm.9.resid_post")
        assert "unknown condition 'cascaded'" in refused("export", "a.h5", "-o", "x", "--conditions", "cascaded")
        assert "b.h5 is not there" in refused("export", "b.h5", "-o", "x")
        flip(Path("a.h5"), "conditions/direct/acts/projector.out/last/values")
        assert "differs from its checksum" in refused("export", "a.h5", "-o", "deep/x")


class TestPage:
    """docs/store.md."""

    def test_its_code_reads_what_is_exported(self) -> None:
        page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
        (code,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
        with create_store("one.h5", Schema(model="tiny", task="cards", conditions=("direct",))) as writer:
            acts = {("lm.3.resid_post", "last"): Ragged(torch.randn(40, 3).bfloat16(), torch.full((20,), 2))}
            writer.append("direct", pd.DataFrame({"id": [str(k) for k in range(20)]}), acts)
        for words in re.findall(r"`store (export runs/big [^`]*)`", page):
            succeed(*words.replace("runs/big", "one.h5").split())
        found: dict[str, object] = {}
        exec(compile(code, "store.md", "exec"), found)
        assert torch.equal(found["same"], acts["lm.3.resid_post", "last"].values)
        assert torch.equal(found["tokens"], found["same"])
        assert torch.equal(found["some"], found["same"][10:20])
        assert [row["id"] for row in found["rows"]] == [str(k) for k in range(20)]
