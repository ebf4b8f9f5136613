"""The command line, in process: what it prints, what it refuses, what it leaves behind, and how it continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result
from typer.main import get_command
from typer.testing import CliRunner

from seamscope.activations import open_store
from seamscope.experiments import _cli, _demo, _model
from seamscope.experiments._options import asked, emit
from seamscope.experiments.tasks import DATA_SETS, get

STUDY_COMMANDS = ("gap", "capture", "probe", "lens", "erase", "patch", "locate")
COMMANDS = (*STUDY_COMMANDS, "demo", "report", "doctor", "families", "tasks", "tasks show")
RECORD = {"image": "a.png", "question": "Sort them.", "intermediate": ["5", "ace"], "answer": "5 ace"}
TINY = ("--sites", "lm.0.resid_post", "--spans", "last", "--n", "6", "--batch-size", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(_cli.app, list(words))


def succeed(*words: str) -> Result:
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {file.name: pd.read_csv(file) for file in sorted(folder.glob("*.csv"))}


def refused(*words: str) -> str:
    """The one line that a command prints when it refuses; nothing else may be printed or written."""
    before = tree(Path.cwd())
    result = run(*words)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("seamscope: ")
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith("\n")
    assert tree(Path.cwd()) == before
    return result.stderr.removeprefix("seamscope: ").strip()


def records(*rows: dict[str, Any], name: str = "mine.jsonl", picture: bool = True) -> str:
    if picture:
        get("cards.sort").items(1)[0].image.save("a.png")
    Path(name).write_text("\n".join(json.dumps(row) for row in rows))
    return name


class TestHelp:
    def test_the_commands_are_these(self) -> None:
        found = get_command(_cli.app).commands  # type: ignore[attr-defined]
        assert set(found) | {"tasks show"} == {*COMMANDS, "store"}  # its own commands are tested beside it

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("flag", ["--help", "-h"])
    def test_every_command_explains_itself(self, command: str, flag: str) -> None:
        text = succeed(*command.split(), flag).stdout
        assert "Usage:" in text
        assert "--json" in text

    def test_no_command_gives_the_list(self) -> None:
        text = run().output
        assert all(command in text for command in (*STUDY_COMMANDS, "demo", "report", "doctor", "tasks"))


class TestTasks:
    def test_list(self) -> None:
        text = succeed("tasks").stdout
        assert [line.split()[0] for line in text.splitlines()] == [*DATA_SETS, "PATH.jsonl"]

    def test_json(self) -> None:
        found = json.loads(succeed("tasks", "--json").stdout)
        assert {name: found[name] for name in DATA_SETS} == {name: get(name).summary for name in DATA_SETS}

    def test_show(self, here: Path) -> None:
        told = succeed("tasks", "show", "counting", "--n", "2", "--font", "serif", "--json").stdout
        file = here / json.loads(told)["sheet"]
        assert file.name == "counting.small.png"
        assert file.read_bytes().startswith(b"\x89PNG")
        assert set(tree(here)) == {file.name}

    def test_show_elsewhere_and_ones_own(self, here: Path) -> None:
        name = records(RECORD)
        succeed("tasks", "show", name, "--n", "2", "--out", "deep/er/sheet.pdf")
        assert (here / "deep/er/sheet.pdf").read_bytes().startswith(b"%PDF")

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("cards.sord",), "unknown task 'cards.sord'; nearest: cards.sort"),
            (("counting", "--font", "comic"), "unknown font 'comic'; one of: sans, serif"),
            (("counting", "--profile", "big"), "unknown profile 'big'; one of: small, full"),
            (("counting", "--out", "sheet.bmp"), "cannot draw sheet.bmp; --out must name a .png or .pdf file"),
            (("counting", "--out", "taken/x.png"), "taken is a file"),
            (("nowhere.jsonl",), "cannot read nowhere.jsonl: No such file"),
        ],
    )
    def test_show_refuses(self, here: Path, words: tuple[str, ...], told: str) -> None:
        (here / "taken").write_text("mine")
        assert told in refused("tasks", "show", *words)


class TestPlantedModels:
    def test_they_are_asked_on_their_own_task_unless_another_is_named(self) -> None:
        name = "fault:overwritten-1.composing-counting"
        assert asked(model=name)["task"] == "counting"
        assert asked(model=name, task="cards.sum")["task"] == "cards.sum"
        assert "task" not in asked()

    @pytest.mark.parametrize("command", STUDY_COMMANDS)
    def test_unknown_ones_are_refused(self, command: str) -> None:
        told = "unknown planted model 'projecter.small-counting'; nearest: projector.small-counting"
        assert told in refused(command, "--model", "fault:projecter.small-counting")


class TestRefusals:
    @pytest.mark.parametrize("command", [*STUDY_COMMANDS, "doctor", "demo"])
    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--model", "./nowhere"), "'./nowhere' is not a folder"),
            (("--model", "organsim"), "unknown model 'organsim'; nearest: organism"),
            (("--task", "cards.summ"), "unknown task 'cards.summ'; nearest: cards.sum"),
            (("--task", "nowhere.jsonl"), "cannot read nowhere.jsonl: No such file"),
        ],
    )
    def test_models_and_tasks(self, command: str, words: tuple[str, ...], told: str) -> None:
        assert told in refused(command, *words)

    @pytest.mark.parametrize("command", [each for each in STUDY_COMMANDS if each != "locate"])
    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--sites", "lm.9.resid_post"), "unknown site 'lm.9.resid_post'; nearest: lm."),
            (("--sites", "lm.0.pattern"), "eager"),
            (("--spans", "lasst"), "unknown span set 'lasst'; nearest: last; one of: objects, image"),
            (("--spans", "objects+redding"), "unknown span set 'redding'; nearest: reading"),
            (("--sites", "projector.out", "--spans", "last"), "projector.out holds image patches only; add the span"),
        ],
    )
    def test_sites_and_spans(self, command: str, words: tuple[str, ...], told: str) -> None:
        assert told in refused(command, "--n", "6", *words)

    @pytest.mark.parametrize("command", STUDY_COMMANDS)
    @pytest.mark.parametrize(
        ("words", "told"),
        [
            (("--profile", "big"), "unknown profile 'big'; one of: small, full"),
            (("--device", "gpu"), "cannot use device 'gpu'; expected auto, cpu, cuda"),
            (("--dtype", "float1"), "unknown dtype 'float1'; expected auto, float32"),
            (("--attn-implementation", "fast"), "eager"),
        ],
    )
    def test_names(self, command: str, words: tuple[str, ...], told: str) -> None:
        assert told in refused(command, "--n", "6", *words)

    @pytest.mark.parametrize("command", STUDY_COMMANDS)
    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("", "mine.jsonl holds no records; expected one JSON object in each line"),
            ("{", "mine.jsonl, line 1: this is not JSON"),
            ("[1]", "mine.jsonl, line 1: expected a JSON object, got a list"),
            ('{"question": "?", "answer": 1, "intermediate": "x", "image": "b.png"}', "there is no file b.png"),
            ("\xff", "it is not UTF-8 text"),
        ],
    )
    def test_records(self, here: Path, command: str, text: str, told: str) -> None:
        (here / "mine.jsonl").write_bytes(text.encode("latin-1"))
        assert told in refused(command, "--task", "mine.jsonl", "--n", "2")

    def test_more_records_than_there_are(self) -> None:
        assert "holds 1 records, 6 were asked for" in refused("gap", "--task", records(RECORD), "--n", "6")

    @pytest.mark.parametrize("command", ["capture", "probe", "lens", "erase", "patch", "locate"])
    def test_records_without_partners(self, command: str) -> None:
        rows = [{**RECORD, "id": str(k), "variables": {"first": k}} for k in range(6)]
        assert "line 1: no counterfactual partner; add the field 'pair'" in refused(
            command, "--task", records(*rows), "--n", "6"
        )

    @pytest.mark.parametrize("command", ["probe", "erase", "locate"])
    def test_too_few_items_for_the_folds(self, command: str) -> None:
        assert "5 folds; 3 groups of items are too few" in refused(command, "--n", "3")

    def test_too_few_items_to_tell_partners_apart(self) -> None:
        assert "to locate, at least 20 items with a partner are needed; raise --n" in refused("locate", "--n", "19")

    @pytest.mark.parametrize("variables", [{"card.0.rank": "5"}, {"suit": "hearts"}])
    def test_nothing_of_an_object_to_name(self, variables: dict[str, str]) -> None:
        boxes = [[0, 0, 9, 9], [10, 0, 19, 9]]
        rows = [
            {**RECORD, "id": str(k), "pair": str((k + 20) % 40), "variables": variables, "boxes": boxes}
            | {"intermediate": [str(k), "ace"], "answer": f"{k} ace"}
            for k in range(40)
        ]
        told = "to locate, a variable of an object has to differ between records; its name has the object's number"
        assert told in refused("locate", "--task", records(*rows), "--n", "20")

    @pytest.mark.parametrize(("option", "value"), [("sites", "lm.*.resid_post"), ("spans", "last")])
    def test_what_the_locator_chooses(self, option: str, value: str) -> None:
        assert refused("locate", f"--{option}", value) == f"locate chooses its own {option}; leave out --{option}"

    @pytest.mark.parametrize("command", [*STUDY_COMMANDS, "demo"])
    def test_an_out_that_is_not_ours(self, here: Path, command: str) -> None:
        (here / "file").write_text("mine")
        (here / "full").mkdir()
        (here / "full/thesis.tex").write_text("mine")
        assert "file is a file; --out must name a folder" in refused(command, "--out", "file")
        assert "file is a file; --out must name a folder" in refused(command, "--out", "file/below")
        assert "full holds something that is not a run; choose another --out" in refused(command, "--out", "full")

    @pytest.mark.parametrize("command", STUDY_COMMANDS)
    def test_an_out_of_another_run(self, command: str) -> None:
        if not Path("runs").exists():
            succeed("gap", "--n", "4", "--out", "runs/a")
        told = refused(command, "--n", "5", "--seed", "1", "--out", "runs/a")
        assert "runs/a holds another run (n: 4, not 5; seed: 0, not 1); choose another --out" in told

    def test_a_report_of_nothing(self, here: Path) -> None:
        assert "nowhere holds no run; give the --out folder of an earlier command" in refused("report", "nowhere")
        (here / "run.json").write_text('{"n": "many"}')
        assert "n is 'many'; expected such as 200" in refused("report", ".")

    @pytest.mark.parametrize(
        "words",
        [
            ("gap", "--n", "x"),
            ("gap", "--n", "1"),
            ("gap", "--seed", "-1"),
            ("gap", "--batch-size", "0"),
            ("gap", "--nope"),
            ("gap", "extra"),
            ("report",),
            ("tasks", "show"),
            ("nope",),
        ],
    )
    def test_usage(self, here: Path, words: tuple[str, ...]) -> None:
        result = run(*words)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert tree(here) == {}


class TestGap:
    def test_from_end_to_end_and_again(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = succeed("gap", "--n", "4", "--json")
        found = json.loads(first.stdout.splitlines()[-1])
        assert first.stderr == ""
        assert found["run"] == "runs/cards.sum"
        rows = {row["condition"]: row for row in found["gap"] if row["subset"] == "all"}
        assert set(rows) == {"direct", "cascaded", "oracle", "cot", "gap"}
        assert rows["gap"]["estimate"] == rows["cascaded"]["estimate"] - rows["direct"]["estimate"]
        files = {".lock", ".sums.json", "run.json", "answers.cards.sum.csv", "gap.csv"}
        assert set(tree(here / "runs/cards.sum")) == files

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("a finished run loaded the model")

        monkeypatch.setattr(_model, "load_vlm", refuse)
        before = tree(here)
        assert succeed("gap", "--n", "4", "--json").stdout == first.stdout
        assert "cards.sum  all" in succeed("gap", "--n", "4").stdout
        assert tree(here) == before

    def test_ones_own_records(self, here: Path) -> None:
        name = records({**RECORD, "id": "a"}, {**RECORD, "id": "b"})
        found = json.loads(succeed("gap", "--task", name, "--n", "2", "--json").stdout)
        assert {row["task"] for row in found["gap"]} == {"mine"}
        assert (here / "runs/mine/answers.mine.csv").exists()

    def test_numbers_that_are_none_stay_none(self) -> None:
        """One item in a subset has no interval: NaN in the table, null in JSON, on the second reading too."""
        words = ("gap", "--n", "2", "--task", "cards.sum", "--json")
        first = succeed(*words).stdout
        assert succeed(*words).stdout == first
        succeed(*words[:-1])
        for row in json.loads(first)["gap"]:
            assert row["low"] is None or isinstance(row["low"], float)

    def test_json_is_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        emit({"a": float("nan"), "b": (1, Path("x")), "c": pd.DataFrame({"d": [float("inf"), 0.1 + 0.2]})})
        assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
            "a": None,
            "b": [1, "x"],
            "c": [{"d": None}, {"d": pytest.approx(0.3)}],
        }


class TestCommands:
    def test_capture_probe_and_patch_share_a_folder(self, here: Path) -> None:
        found = json.loads(succeed("capture", *TINY, "--json").stdout)
        assert found["sites"] == ["lm.0.resid_post"]
        assert found["rows"] == {"direct": 12, "cascaded": 12}
        probes = json.loads(succeed("probe", *TINY, "--json").stdout)["probes"]
        assert {row["span"] for row in probes} == {"last"}
        effects = json.loads(succeed("patch", *TINY, "--json").stdout)["effects"]
        assert {row["experiment"] for row in effects} == {"denoise", "noise", "text_noise", "cross", "cross_control"}
        for command in ("capture", "probe", "patch"):
            assert succeed(command, *TINY).stdout
        assert {file.suffix for file in (here / "runs/cards.sum").glob("*.*") if file.name != ".lock"} == {
            *(".json", ".csv", ".h5", ".shards")
        }

    def test_partners_within_a_file_are_captured_once(self) -> None:
        """In a file of records, an item and its partner are items of each other."""
        get("cards.sort").items(1)[0].image.save("a.png")
        base = {"image": "a.png", "question": "?", "variables": {"first": "5"}}
        pairs = [(f"{k}{side}", f"{k}{other}") for k in range(2) for side, other in ("ab", "ba")]
        rows = [
            {**base, "id": mine, "pair": other, "intermediate": [mine], "answer": mine, "boxes": [[0, 0, 9, 9]]}
            for mine, other in pairs
        ]
        found = succeed("capture", "--task", records(*rows), *TINY[:4], "--n", "4", "--json").stdout
        assert json.loads(found)["rows"] == {"direct": 4, "cascaded": 4}

    @pytest.mark.slow
    def test_the_whole_path(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Down to verdicts and reports; they can be written anew, without the model."""
        planted = ("none.composing-cards.sum", "overwritten-1.composing-cards.sum")
        monkeypatch.setattr(_demo, "PLANTED", planted)
        words = ("demo", "--n", "24", "--out", "runs/demo")
        shown = succeed(*words).stdout
        assert "verdict for organism on cards.sum" in shown
        assert all(name in shown for name in DATA_SETS)
        verdict = json.loads((here / "runs/demo/verdict.json").read_text())
        assert verdict["task"] == "cards.sum"
        found = json.loads((here / "runs/demo/planted" / planted[1] / "verdict.json").read_text())
        assert (found["locus"], found["place"]) == ("overwritten", "lm.1.resid_post")
        pages = [here / "runs/demo" / name for name in ("report.html", "comparison.html")]
        before = [page.read_bytes() for page in pages]
        for page in pages:
            page.unlink()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(_model, "load_vlm", lambda *_, **__: pytest.fail("a finished run loaded the model"))
            assert json.loads(succeed("report", "runs/demo", "--json").stdout) == {"report": "runs/demo/report.html"}
            again = json.loads(succeed(*words, "--json").stdout)
            assert [each["locus"] for each in again["verdicts"]] == [verdict["locus"], "none", "overwritten"]
        assert [page.read_bytes() for page in pages] == before


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["activations.h5.partial", "activations.h5"])
def test_killed_and_continued(here: Path, moment: str) -> None:
    """A run that is killed at a bad moment and continued gives the tables of one that never was."""
    words = ["probe", *TINY, "--out"]
    killed, whole = here / "killed", here / "whole"
    program = [sys.executable, "-c", "from seamscope.experiments._cli import main; main()", *words, str(killed)]
    working = subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not (killed / moment).exists():
            assert working.poll() is None, (working.stderr and working.stderr.read()) or "it ended too early"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        working.kill()
        working.communicate()
    assert working.returncode == -signal.SIGKILL
    assert not (killed / "probes.csv").exists()
    succeed(*words, str(killed))
    succeed(*words, str(whole))
    assert tables(killed).keys() == tables(whole).keys() == {"probes.csv", "transfer.csv", "curves.csv"}
    for name, table in tables(whole).items():
        pd.testing.assert_frame_equal(tables(killed)[name], table)
    for name in ("activations.h5", "untrained.h5"):
        with open_store(killed / name) as ours, open_store(whole / name) as theirs:
            assert ours.verify() == theirs.verify()
    assert not [file.name for file in killed.iterdir() if "partial" in file.name]


@pytest.mark.parametrize("tidy", [lambda: None, lambda: 1 / 0])
def test_an_interrupted_command_says_how_it_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch, tidy) -> None:
    def stop(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            tidy()  # where tidying up fails, as matplotlib's does amid a PDF, it is still the user who stopped it

    monkeypatch.setattr("seamscope.experiments._model.load_vlm", stop)
    result = run("gap", *TINY, "--out", "runs/x")
    assert result.exit_code == 130
    assert result.stderr == "seamscope: interrupted; what was finished is kept for the same command to go on\n"


def test_a_planted_model_on_another_task_is_no_known_truth(here: Path) -> None:
    words = ("gap", "--model", "fault:none.composing-counting", "--n", "2", "--json", "--out")
    told = "note: fault:none.composing-counting was planted for counting; where it fails on cards.sum, nobody knows\n"
    assert run(*words, "runs/x", "--task", "cards.sum").stderr == told
    assert told not in run(*words, "runs/y", "--task", "counting").stderr
    assert told not in run(*words, "runs/z").stderr


def test_tasks_can_be_asked_for_one_task_and_one_model() -> None:
    listed = json.loads(run("tasks", "--task", "cards.sum", "--model", "owner/name", "--json").stdout)
    assert set(listed) == {"cards.sum", "--profile"}
    assert listed["--profile"] == "full"
    refused = run("tasks", "--task", "cards.product")
    assert refused.exit_code == 2
    assert "unknown task 'cards.product'" in refused.stderr
