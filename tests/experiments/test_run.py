"""A run's folder: settings, resume, whole files only, and folders that are not ours."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from seamscope.experiments import Run, Settings
from seamscope.experiments._files import SUMS_FILE, partial_of, replacing
from seamscope.experiments._identity import _digest, made_from
from seamscope.experiments._run import UNCOUNTED, check_place, read_settings, settings_of
from seamscope.hooks import RunError

TABLE = pd.DataFrame(
    {
        "id": ["0", "1"],
        "said": ["", "nan is a word"],
        "output": ["007", "1.0"],
        "value": [0.1 + 0.2, float("nan")],
        "layer": pd.array([3, None], dtype="Int64"),
        "right": [True, False],
    }
)


def never() -> pd.DataFrame:
    raise AssertionError("a finished table was made again")


SAYINGS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["nan", "\r", "a\x00b", r"\x41", "\\"])


class TestTables:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(SAYINGS, min_size=1, max_size=4))
    @example(["$L\r$L", "L\x00", "nan", r"\x0d"])
    def test_whatever_a_model_says_is_read_as_it_was(self, said: list[str]) -> None:
        table = pd.DataFrame({"said": said, "output": said[::-1], "value": range(len(said))})
        with TemporaryDirectory() as folder:
            read = Run(Path(folder) / "a", Settings()).table("x", lambda: table)
        assert read.said.tolist() == said
        assert read.output.tolist() == said[::-1]
        assert read.value.tolist() == list(range(len(said)))

    def test_opening_writes_nothing(self, tmp_path: Path) -> None:
        run = Run(tmp_path / "a", Settings())
        assert not run.has("x.csv")
        assert list(tmp_path.iterdir()) == []

    def test_made_once_and_read_as_it_was(self, tmp_path: Path) -> None:
        made = Run(tmp_path / "a/b", Settings(n=4)).table("x", lambda: TABLE)
        again = Run(tmp_path / "a/b", Settings(n=4)).table("x", never)
        pd.testing.assert_frame_equal(made, again)
        pd.testing.assert_frame_equal(made, TABLE, check_dtype=False)
        assert list(made.said) == ["", "nan is a word"]
        assert list(made.output) == ["007", "1.0"]
        assert made.value.dtype == float
        assert made.layer.dtype == "Int64"
        assert made.right.dtype == bool

    def test_a_failure_leaves_nothing(self, tmp_path: Path) -> None:
        run = Run(tmp_path / "a", Settings())
        with pytest.raises(AssertionError):
            run.table("x", never)
        assert list(tmp_path.iterdir()) == []

    def test_a_table_that_is_none(self, tmp_path: Path) -> None:
        run = Run(tmp_path / "a", Settings())
        run.path("x.csv").write_bytes(b"")
        with pytest.raises(RunError, match=r"x\.csv is no table of a run .* delete it to have it made again"):
            run.table("x", never)
        run.path("x.csv").write_bytes(b"\xff\xfe,\n\x00")
        with pytest.raises(RunError, match="delete it"):
            run.table("x", never)

    def test_a_table_that_was_cut_or_changed(self, tmp_path: Path) -> None:
        """Also between two lines, where what is left is a table too."""
        run = Run(tmp_path, Settings())
        whole = run.table("x", lambda: TABLE)
        run.table("y", lambda: TABLE)
        file = tmp_path / "x.csv"
        kept = file.read_bytes()
        for content in (b"".join(kept.splitlines(keepends=True)[:-1]), kept.replace(b"007", b"008"), kept + b"\n"):
            file.write_bytes(content)
            with pytest.raises(RunError, match=r"x\.csv is no table of a run .*changed or cut.*; delete it to have it"):
                run.table("x", never)
            with pytest.raises(RunError, match="delete it"):
                run.tables(["y", "x"])
        file.unlink()
        pd.testing.assert_frame_equal(run.table("x", lambda: TABLE), whole)
        assert file.read_bytes() == kept

    @pytest.mark.parametrize("sums", [None, "{", "[1]", "{}"])
    def test_a_table_of_which_nothing_was_noted(self, tmp_path: Path, sums: str | None) -> None:
        whole = Run(tmp_path, Settings()).table("x", lambda: TABLE)
        (tmp_path / SUMS_FILE).unlink() if sums is None else (tmp_path / SUMS_FILE).write_text(sums)
        pd.testing.assert_frame_equal(Run(tmp_path, Settings()).table("x", never), whole)


class TestReplacing:
    def test_whole_or_not_at_all(self, tmp_path: Path) -> None:
        file = tmp_path / "x.txt"
        file.write_text("old")

        def fail() -> None:
            with replacing(file) as temporary:
                temporary.write_text("half")
                assert file.read_text() == "old"
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert file.read_text() == "old"
        with replacing(file) as temporary:
            temporary.write_text("new")
        assert file.read_text() == "new"
        assert list(tmp_path.iterdir()) == [file]


class TestSettings:
    def test_they_come_back(self, tmp_path: Path) -> None:
        asked = Settings(task="counting", n=7, sites=("lm.0.resid_post",), spans=("last",), untrained=True)
        Run(tmp_path, asked).path("x")
        assert settings_of(tmp_path) == asked
        assert asked.differences(read_settings(tmp_path)) == []

    def test_differences_are_named(self, tmp_path: Path) -> None:
        Run(tmp_path, Settings()).path("x")
        with pytest.raises(RunError) as caught:
            Run(tmp_path, Settings(n=3, spans=("last",), batch_size=2))
        told = str(caught.value)
        assert "holds another run (n: 200, not 3; spans: [" in told
        assert "not ('last',)" in told
        assert told.endswith("choose another --out, or repeat that run's options to continue it")

    def test_the_batch_size_and_the_engine_do_not_count(self, tmp_path: Path) -> None:
        Run(tmp_path, Settings(batch_size=2)).path("x")
        assert Run(tmp_path, Settings(batch_size=3, engine="nnsight")).has("run.json")

    @pytest.mark.parametrize("changed", [name for name in asdict(Settings()) if name not in UNCOUNTED])
    def test_everything_else_counts(self, tmp_path: Path, changed: str) -> None:
        Run(tmp_path, Settings()).path("x")
        held = json.loads((tmp_path / "run.json").read_text())
        held[changed] = "something else"
        (tmp_path / "run.json").write_text(json.dumps(held))
        with pytest.raises(RunError, match=f"holds another run \\({changed}: 'something else', not "):
            Run(tmp_path, Settings())

    def test_a_batch_holds_something(self) -> None:
        with pytest.raises(RunError, match="batch_size is 0; expected at least 1"):
            Settings(batch_size=0)


class TestForeignFolders:
    def test_what_is_not_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("x")
        with pytest.raises(RunError, match="holds something that is not a run; choose another --out"):
            Run(tmp_path, Settings())

    def test_an_empty_folder_will_do(self, tmp_path: Path) -> None:
        assert not Run(tmp_path, Settings()).has("run.json")

    def test_so_will_one_that_was_killed_at_its_first_file(self, tmp_path: Path) -> None:
        partial_of(tmp_path / "run.json").write_text('{"n"')
        Run(tmp_path, Settings()).path("x")
        assert {file.name for file in tmp_path.iterdir()} == {".lock", "run.json"}

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("x")
        for place in (tmp_path / "f", tmp_path / "f/a/b"):
            with pytest.raises(RunError, match="f is a file; --out must name a folder"):
                Run(place, Settings())

    def test_what_may_not_be_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)  # who runs the tests may be allowed everything
        with pytest.raises(RunError, match="may not be written; choose another --out"):
            check_place(tmp_path / "a/b")


class TestHostileSettings:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff", b"[" * 200_000, b"[1]", b'"text"', b"null", b"12"],
    )
    def test_what_is_not_settings(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "run.json").write_bytes(content)
        for read in (settings_of, lambda folder: Run(folder, Settings())):
            with pytest.raises(RunError, match=r"run\.json (cannot be read|is not the settings of a run)"):
                read(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n", "12"),
            ("n", 1.5),
            ("n", True),
            ("n", None),
            ("untrained", 1),
            ("task", ["cards.sort"]),
            ("model", None),
            ("sites", "lm.*"),
            ("sites", [1]),
            ("spans", {"last": 1}),
        ],
    )
    def test_settings_of_the_wrong_kind(self, tmp_path: Path, name: str, value: Any) -> None:
        (tmp_path / "run.json").write_text(json.dumps({**asdict(Settings()), name: value}))
        with pytest.raises(RunError, match=rf"run\.json: {name} is .*; expected such as "):
            settings_of(tmp_path)

    def test_a_setting_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text(json.dumps({**asdict(Settings()), "batch_size": 0}))
        with pytest.raises(RunError, match="batch_size is 0"):
            settings_of(tmp_path)

    def test_a_folder_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").mkdir()
        with pytest.raises(RunError, match="cannot be read"):
            Run(tmp_path, Settings())

    def test_no_settings(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="holds no run; give the --out folder of an earlier command"):
            settings_of(tmp_path)


class TestIdentity:
    def test_two_processes_do_not_write_one_run(self, tmp_path: Path) -> None:
        """The other process is a real one, and is killed; then the folder is free again."""
        folder = tmp_path / "run"
        program = (
            "import sys, time; from pathlib import Path; from seamscope.experiments import Run, Settings\n"
            "run = Run(Path(sys.argv[1]), Settings()); run.path('x'); print('held', flush=True); time.sleep(60)"
        )
        other = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(RunError, match="is being written by another process"):
                Run(folder, Settings()).derive("x", TABLE)
            assert {file.name for file in folder.iterdir()} == {".lock", "run.json"}
        finally:
            other.kill()
            other.wait()
            if other.stdout:
                other.stdout.close()
        Run(folder, Settings()).derive("x", TABLE)
        assert (folder / "x.csv").is_file()

    def test_other_weights_in_the_same_place_are_another_run(self, tmp_path: Path) -> None:
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(b"a" * 3_000_000)
        settings = Settings(model=str(model))
        Run(tmp_path / "run", settings).derive("x", TABLE)
        Run(tmp_path / "run", settings)
        (model / "model.safetensors").write_bytes(b"a" * 2_999_999 + b"b")
        with pytest.raises(RunError, match="was made from another model: its files have changed"):
            Run(tmp_path / "run", settings)

    def test_what_auto_came_to_may_not_change_halfway(self, tmp_path: Path) -> None:
        first = Run(tmp_path / "run", Settings())
        first.uses({"dtype": "bfloat16", "device": "cuda"})
        first.derive("x", TABLE)
        again = Run(tmp_path / "run", Settings())
        again.uses({"dtype": "bfloat16", "device": "cuda"})
        with pytest.raises(
            RunError, match=r"was begun otherwise \(dtype: bfloat16, not float32; device: cuda, not cpu\)"
        ):
            again.uses({"dtype": "float32", "device": "cpu"})

    def test_other_records_under_the_same_name_are_another_run(self, tmp_path: Path) -> None:
        records = tmp_path / "mine.jsonl"
        record = {"question": "What is 2 + 3?", "answer": "#### 5", "intermediate": "2 + 3"}
        records.write_text(json.dumps(record))
        settings = Settings(task=str(records))
        Run(tmp_path / "run", settings).derive("x", TABLE)
        records.write_text(json.dumps({**record, "id": "other"}))
        with pytest.raises(RunError, match="was made from another task: its files have changed"):
            Run(tmp_path / "run", settings)


class TestDigests:
    def test_pictures_of_records_count(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (8, 8), "red").save("a.png")
        Path("a.jsonl").write_text(json.dumps({"image": "a.png", "question": "?", "intermediate": "5", "answer": "5"}))
        before = made_from(Settings(task="a.jsonl"))
        assert made_from(Settings(task="a.jsonl")) == before
        Image.new("RGB", (8, 8), "blue").save("a.png")
        assert made_from(Settings(task="a.jsonl"))["task"] != before["task"]

    def test_large_weights_differ_wherever_a_fine_tuning_changed_them(self, tmp_path: Path) -> None:
        """A layer in the middle of a file that is too large to be read as a whole."""
        weights = np.random.default_rng(0).integers(0, 256, 24 * 2**20, dtype=np.uint8)
        file = tmp_path / "model.safetensors"
        file.write_bytes(weights.tobytes())
        before = _digest([file])
        weights[10 * 2**20 : 11 * 2**20] += 1
        file.write_bytes(weights.tobytes())
        assert _digest([file]) != before
