"""Captures: what is kept, in which shards, of how many processes, and that no interruption shows in it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from seamscope.activations import open_store
from seamscope.experiments import Settings, _capture, _cli, tasks
from seamscope.experiments._capture import Capture
from seamscope.experiments._cli_capture import arguments, device_of, part_of
from seamscope.experiments._members import Members
from seamscope.hooks import RunError, StoreError, TaskError, Vlm, capture, load_vlm

SETTINGS = Settings(n=6, batch_size=4, rows_per_shard=5, sites=("projector.out", "lm.[05].resid_post"))
CONDITIONS = ("direct", "cascaded")
TASK = tasks.get("cards.sum")
TINY = ("--n", "6", "--sites", "lm.0.resid_post", "--spans", "last", "--batch-size", "8")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return load_vlm("organism", device="cpu", check=False)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(vlm: Vlm, path: Path, settings: Settings = SETTINGS, part: tuple[int, int] = (0, 1)) -> Capture:
    sites = vlm.expand(settings.sites)
    members = Members(TASK, settings)
    return Capture(vlm, TASK, members, path=path, conditions=CONDITIONS, sites=sites, settings=settings, part=part)


def command(*given: str, code: int = 0) -> str:
    result = CliRunner().invoke(_cli.app, ["capture", *given])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result.stdout if code == 0 else result.stderr


def files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in [path, *path.with_suffix(".shards").glob("*.h5")]}


@pytest.fixture(scope="module")
def path(vlm: Vlm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store."""
    path = tmp_path_factory.mktemp("store") / "store.h5"
    assert made(vlm, path).run()
    return path


class TestContents:
    def test_rows_are_items_and_partners_in_the_order_of_the_task(self, path: Path) -> None:
        items = TASK.items(SETTINGS.n)
        expected = [member.id for item in items for member in (item, TASK.partner(item))]
        with open_store(path) as store:
            assert [len(range(shard.rows["direct"])) for shard in store.shards] == [5, 5, 2]
            for condition in CONDITIONS:
                assert store.rows(condition).id.tolist() == expected
            assert store.verify() > 0

    @pytest.mark.parametrize("condition", CONDITIONS)
    def test_values_are_what_the_model_has_there(self, vlm: Vlm, path: Path, condition: str) -> None:
        """An item alone, without batches, shards and pooling of ours."""
        with open_store(path) as store:
            rows = store.rows(condition)
            for number in (0, 4, 5, 11):
                item = Members(TASK, SETTINGS)[[number]][0]
                if condition == "cascaded":
                    item = item.saying(TASK.hand_over(item, rows.said[number]))
                batch = vlm.encode([item], condition=condition)
                with capture(vlm, "*") as whole:
                    vlm.forward(batch)
                for site, span in store.cells(condition):
                    if site.startswith("lm.") and span in batch.span_names:
                        tokens = whole[site][0][batch.positions(span)[0]]
                        found = store.read(site, span, condition, [number]).values
                        assert torch.allclose(found[0], tokens.mean(dim=0), atol=2e-5), (site, span)

    def test_every_token_can_be_kept(self, vlm: Vlm, tmp_path: Path) -> None:
        settings = replace(SETTINGS, n=2, pool="none", spans=("prompt", "last"), sites=("lm.5.resid_post",))
        assert made(vlm, tmp_path / "store.h5", settings).run()
        with open_store(tmp_path / "store.h5") as store:
            every, last = (store.read("lm.5.resid_post", span, "direct") for span in ("prompt", "last"))
            assert every.lengths.min() > 16
            assert torch.equal(every.last(), last.last())

    def test_what_a_store_says_about_itself(self, vlm: Vlm, path: Path) -> None:
        with open_store(path) as store:
            told, made_with = store.provenance, store.made_with
        assert told["used"] == {"attn_implementation": "sdpa", "dtype": "float32", "device": "cpu"}
        assert told["sites"] == ["projector.out", "lm.0.resid_post", "lm.5.resid_post"]
        assert (told["n"], told["seed"], told["rows"], told["rows_per_shard"]) == (6, 0, 12, 5)
        assert set(told["prompts"]) == {"perceive", *CONDITIONS}
        item = TASK.items(1)[0]
        assert item.question in told["prompts"]["direct"]
        assert item.intermediate.text in told["prompts"]["cascaded"]
        assert len(told["processor_sha256"]) == len(told["made_from"]["model"]) == 64
        assert made_with == [{"device": "cpu", "batch_size": 4, "engine": "torch", "compression": "none"}]

    def test_batches_are_sorted_by_length(self, vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Prompts of unequal length: few positions are padding, and the longest batch comes first."""
        seen: list[tuple[str, int, int]] = []
        encode = Vlm.encode

        def watched(self: Vlm, items: Any, **given: Any) -> Any:
            batch = encode(self, items, **given)
            seen.append((given["condition"], batch.width, int(batch.inputs["attention_mask"].sum())))
            return batch

        task = tasks.get("cards.sort")
        settings = replace(SETTINGS, n=16, rows_per_shard=32)
        members = Members(task, settings)
        capturing = Capture(
            vlm,
            task,
            members,
            path=tmp_path / "s.h5",
            conditions=("direct", "oracle"),
            sites=["lm.0.resid_post"],
            settings=settings,
        )
        monkeypatch.setattr(Vlm, "encode", watched)
        assert capturing.run()
        for condition in ("direct", "oracle"):
            widths = [width for name, width, _ in seen if name == condition]
            assert len(widths) == 8
            assert widths == sorted(widths, reverse=True)


class TestMembers:
    def test_pictures_are_drawn_when_a_row_is_asked_for_and_not_kept(self) -> None:
        members = Members(TASK, Settings(n=1000))
        assert len(members) == 2000
        alive = [weakref.ref(item.image) for item in members[range(1990, 2000)]]
        gc.collect()
        assert not any(each() for each in alive)

    def test_rows_are_the_items_of_the_task(self) -> None:
        members = Members(TASK, Settings(n=3, seed=4))
        items = TASK.items(3, seed=4)
        found = members[range(6)]
        assert [item.id for item in found[::2]] == [item.id for item in items]
        assert [item.answer for item in found[1::2]] == [TASK.partner(item).answer for item in items]
        assert members[[3]][0].image.tobytes() == found[3].image.tobytes()

    def test_an_item_and_its_partner_are_drawn_from_one_drawing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        members, drawn = Members(TASK, Settings(n=3, seed=4)), []
        real = Members._item
        monkeypatch.setattr(Members, "_item", lambda self, k: drawn.append(k) or real(self, k))
        rows = [item.id for item in members]
        assert drawn == [0, 1, 2]
        assert rows == [item.id for item in members[range(6)]]

    def test_records_without_partner_are_refused_before_anything_runs(self, here: Path) -> None:
        TASK.items(1)[0].image.save("a.png")
        Path("a.jsonl").write_text(json.dumps({"image": "a.png", "question": "?", "intermediate": "5", "answer": "5"}))
        with pytest.raises(TaskError, match="no counterfactual partner"):
            Members(tasks.get("a.jsonl"), Settings(n=1))


class TestResume:
    def test_thirty_kills_leave_no_trace(self, tmp_path: Path) -> None:
        """SIGKILL at random moments, resumed: the same bytes as if nothing had happened; and one worker of four."""
        script = [sys.executable, str(Path(__file__).with_name("killing.py")), str(tmp_path), "30", "0"]
        run = subprocess.run(script, capture_output=True, text=True, timeout=600, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        found = json.loads(run.stdout.splitlines()[-1])
        assert len(found["left"]) == 30
        assert len(set(found["left"])) > 4, "kills came at one moment only"
        assert found["same"]
        assert all(found["same"])
        assert found["parts"] == {"statuses": [0, 0, -9, 0], "before": False, "again": 0, "same": True}

    def test_finished_shards_are_not_computed_again(self, vlm: Vlm, tmp_path: Path, monkeypatch: Any) -> None:
        path = tmp_path / "store.h5"
        assert not made(vlm, path, part=(1, 3)).run()
        first = path.with_suffix(".shards") / "00001.h5"
        before = first.stat()
        captured: list[int] = []
        batches = Capture._batches
        monkeypatch.setattr(
            Capture, "_batches", lambda self, items, file: captured.append(len(items)) or batches(self, items, file)
        )
        assert made(vlm, path).run()
        assert captured == [5, 2]
        assert (first.stat().st_mtime_ns, first.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
        assert made(vlm, path).run()
        assert captured == [5, 2]

    def test_other_settings_are_refused_with_the_difference(self, vlm: Vlm, tmp_path: Path) -> None:
        path = tmp_path / "store.h5"
        assert not made(vlm, path, part=(0, 2)).run()
        before = sorted(path.with_suffix(".shards").iterdir())
        for other, told in (
            (replace(SETTINGS, seed=1), "seed: 0, not 1"),
            (replace(SETTINGS, pool="last"), "pool: 'mean', not 'last'"),
            (replace(SETTINGS, rows_per_shard=4), "rows_per_shard: 5, not 4"),
            (replace(SETTINGS, sites=("lm.0.resid_post",)), "sites: "),
        ):
            with pytest.raises(StoreError, match=told):
                made(vlm, path, other)
        assert sorted(path.with_suffix(".shards").iterdir()) == before

    def test_another_batch_size_may_continue_and_is_noted(self, vlm: Vlm, tmp_path: Path) -> None:
        path = tmp_path / "store.h5"
        assert not made(vlm, path, part=(0, 2)).run()
        assert made(vlm, path, replace(SETTINGS, batch_size=2, rows_per_shard=0)).run()
        with open_store(path) as store:
            assert [each["batch_size"] for each in store.made_with] == [4, 2]

    def test_a_shard_that_was_lost_after_the_join_is_made_again_alone(self, here: Path) -> None:
        asked = (*TINY, "--rows-per-shard", "4", "--out", "run")
        command(*asked)
        before, other = files(Path("run/activations.h5")), Path("run/activations.shards/00000.h5")
        Path("run/activations.shards/00001.h5").unlink()
        kept = other.stat().st_mtime_ns
        command(*asked)
        assert files(Path("run/activations.h5")) == before
        assert other.stat().st_mtime_ns == kept

    def test_an_error_in_the_middle_leaves_whole_shards_only(self, vlm: Vlm, tmp_path: Path, monkeypatch: Any) -> None:
        path, forward, calls = tmp_path / "store.h5", Vlm.forward, []

        def failing(self: Vlm, batch: Any, **given: Any) -> Any:
            calls.append(1)
            if len(calls) == 7:
                raise RunError("out of memory")
            return forward(self, batch, **given)

        capturing = made(vlm, path)
        monkeypatch.setattr(Vlm, "forward", failing)
        with pytest.raises(RunError, match="out of memory"):
            capturing.run()
        monkeypatch.undo()
        left = [file.name for file in path.with_suffix(".shards").iterdir() if not file.name.endswith(".lock")]
        assert left == ["00000.h5"]
        assert made(vlm, path).run()
        assert made(vlm, tmp_path / "other" / "store.h5").run()
        assert files(path) == files(tmp_path / "other" / "store.h5")


class TestForecast:
    def test_it_foretells_rows_and_bytes_and_writes_nothing(self, here: Path) -> None:
        told = json.loads(command(*TINY, "--dry-run", "--json"))
        assert not list(here.iterdir())
        assert (told["rows"], told["shards"], told["finished"]) == (12, 1, 0)
        assert 0 < told["seconds"] < 60
        assert "12 rows under each condition" in command(*TINY, "--dry-run")

    def test_bytes_are_about_what_the_files_take(self, vlm: Vlm, tmp_path: Path) -> None:
        settings = replace(
            SETTINGS, n=60, rows_per_shard=60, spans=("prompt",), pool="none", sites=("lm.*.resid_post",)
        )
        capturing = made(vlm, tmp_path / "store.h5", settings)
        told = capturing.forecast()
        assert capturing.run()
        with open_store(tmp_path / "store.h5") as store:
            assert told.bytes == pytest.approx(store.nbytes, rel=0.05)
        assert capturing.forecast().bytes == 0

    @pytest.mark.parametrize("dry", [(), ("--dry-run",)])
    def test_a_disk_that_is_too_small_is_seen_before_the_work(self, here: Path, monkeypatch: Any, dry: Any) -> None:
        monkeypatch.setattr(_capture.shutil, "disk_usage", lambda place: Usage(10**6, 10**6 - 10, 10))
        error = command(*TINY, *dry, code=2)
        assert "the disk of" in error
        assert "free" in error
        assert len(error.splitlines()) == 1
        assert not list(here.iterdir())


class TestCommand:
    def test_parts_make_the_store_of_one(self, here: Path) -> None:
        shards = ("--rows-per-shard", "4")
        command(*TINY, *shards, "--out", "one")
        for part in ("2/3", "0/3"):
            told = json.loads(command(*TINY, *shards, "--out", "parts", "--shard", part, "--json"))
            assert told["store"] is None
        assert "2 of 3 shards are finished" in command(*TINY, *shards, "--out", "parts", "--shard", "0/3")
        told = json.loads(command(*TINY, *shards, "--out", "parts", "--shard", "1/3", "--json"))
        assert told["shards"] == 3
        assert files(Path("one/activations.h5")) == files(Path("parts/activations.h5"))

    def test_compressed_stores_hold_the_same(self, here: Path) -> None:
        command(*TINY, "--out", "plain")
        command(*TINY, "--out", "packed", "--compression", "bitshuffle")
        with open_store("plain/activations.h5") as plain, open_store("packed/activations.h5") as packed:
            for condition in CONDITIONS:
                for cell in plain.cells(condition):
                    assert torch.equal(plain.read(*cell, condition).values, packed.read(*cell, condition).values)

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            (("--shard", "4/4"), "part 4 of 4 does not exist; parts are counted from 0"),
            (("--shard", "one"), "expected i/n"),
            (("--pool", "max"), "pool"),
            (("--compression", "gzip"), "compression"),
            (("--submit", "pbs"), "slurm"),
            (("--submit", "slurm", "--slurm", "gpu"), "expected KEY=VALUE"),
            (("--submit", "slurm", "--dry-run"), "leave out --dry-run"),
            (("--submit", "slurm", "--shard", "0/2"), "leave out --shard"),
            (("--slurm", "time=60"), "add --submit slurm"),
            (("--jobs", "4"), "add --submit slurm"),
        ],
    )
    def test_bad_requests_are_refused_in_one_line(self, here: Path, given: tuple[str, ...], told: str) -> None:
        error = command(*TINY, *given, code=2)
        assert told in error
        assert len(error.splitlines()) == 1
        assert not list(here.iterdir())

    def test_a_job_gets_the_same_command(self, tmp_path: Path) -> None:
        settings = replace(SETTINGS, sites=("lm.embed", "lm.*.mlp_out"), dtype="bfloat16", compression="bitshuffle")
        asked: dict[str, Any] = {}

        def keep(study: Any, **given: Any) -> None:
            asked.update(settings=study.settings, folder=study.run.folder, **given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("seamscope.experiments._cli_capture.run", keep)
            command(*arguments(settings, tmp_path / "out"), "--shard", "1/2")
        assert asked["settings"] == settings
        assert (asked["folder"], asked["part"]) == (tmp_path / "out", (1, 2))


class TestPart:
    @pytest.fixture(autouse=True)
    def plain(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [*os.environ]:
            if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                monkeypatch.delenv(name)

    def test_alone(self) -> None:
        assert part_of("auto") == (0, 1)
        assert part_of("3/12") == (3, 12)

    def test_under_torchrun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"RANK": "5", "WORLD_SIZE": "8", "SLURM_ARRAY_TASK_ID": "1"}.items():
            monkeypatch.setenv(name, value)
        assert part_of("auto") == (5, 8)

    def test_in_a_slurm_array_that_begins_anywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"ID": "7", "COUNT": "4", "MIN": "5"}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        assert part_of("auto") == (2, 4)

    def test_in_a_slurm_array_with_gaps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"ID": "6", "COUNT": "4", "MIN": "0"}.items():
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
        with pytest.raises(RunError, match=r"part 6 of 4 does not exist.* numbered without gaps"):
            part_of("auto")

    def test_nonsense_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(RunError, match="has RANK, but no WORLD_SIZE"):
            part_of("auto")
        monkeypatch.setenv("RANK", "x")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RunError, match="RANK is 'x', which is no number"):
            part_of("auto")

    def test_each_process_of_a_machine_takes_its_own_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LOCAL_RANK", "3")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert device_of("auto") == "cuda:3"
        assert device_of("cpu") == "cpu"
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert device_of("auto") == "auto"
