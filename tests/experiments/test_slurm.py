"""Captures as job arrays, under a real SLURM: tasks are killed, pre-empted and requeued, and the store is the same."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission
from typer.testing import CliRunner

from seamscope.activations import open_store
from seamscope.experiments import _cli, _slurm
from seamscope.hooks import RunError

from .slurm.cluster import Slurm, Unavailable, running, until

ASKED = ("--n", "48", "--rows-per-shard", "4", "--batch-size", "4", "--sites", "lm.*.resid_post", "--json")
SHARDS, TASKS = 24, 3
WHERE = ("--submit", "slurm", "--slurm", "time=30")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    try:
        with running(tmp_path_factory.mktemp("slurm")) as found:
            yield found
    except Unavailable as reason:
        pytest.skip(str(reason))


def capture(*words: str) -> dict[str, object]:
    result = CliRunner().invoke(_cli.app, ["capture", *ASKED, *words])
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def submit(out: Path, *words: str) -> str:
    """Submit a capture; the number of its job."""
    told = capture("--out", str(out), *WHERE, *words)
    assert Path(str(told["logs"])).is_dir()
    return str(told["job"])


def store_bytes(out: Path) -> dict[str, bytes]:
    files = [out / "activations.h5", *sorted((out / "activations.shards").glob("*.h5"))]
    return {file.name: file.read_bytes() for file in files}


def shards_of(out: Path, part: int) -> dict[int, int]:
    """The finished shards of a task, and when each was made."""
    files = {number: out / "activations.shards" / f"{number:05d}.h5" for number in range(part, SHARDS, TASKS)}
    return {number: file.stat().st_mtime_ns for number, file in files.items() if file.exists()}


def stop_midway(slurm: Slurm, job: str, out: Path, parts: set[int]) -> dict[int, dict[int, int]]:
    """Stop tasks, each after its first shard and before its last; gives the shards that they made."""
    made: dict[int, dict[int, int]] = {}
    while left := parts - made.keys():
        part = until("a task has made a shard", lambda: next((p for p in left if shards_of(out, p)), None))
        os.kill(slurm.process(f"{job}_{part}"), signal.SIGSTOP)
        made[part] = shards_of(out, part)
        assert 0 < len(made[part]) < SHARDS // TASKS
    return made


@pytest.mark.slow
def test_tasks_are_killed_and_preempted(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here, where the tests say so
    out = tmp_path / "with space"
    job = submit(out, "--jobs", str(TASKS))
    (first, preempted, killed) = (f"{job}_{part}" for part in range(TASKS))
    made = stop_midway(slurm, job, out, {1, 2})

    slurm.signal(preempted, "USR2")
    os.kill(slurm.process(preempted), signal.SIGCONT)
    os.kill(slurm.process(killed), signal.SIGKILL)
    assert slurm.until_state(killed, "FAILED")["ExitCode"] == "137:0"
    assert not (out / "activations.h5").exists()  # the others do not join what is not finished

    slurm.requeue(killed)
    capture("--out", str(tmp_path / "alone"))  # the store of one process that nobody disturbs
    restarts = {task: slurm.until_state(task, "COMPLETED")["Restarts"] for task in (first, preempted, killed)}
    assert restarts == {first: "0", preempted: "1", killed: "1"}
    (log,) = out.glob(f"slurm/*/{preempted}_*_log.err")
    assert "this job is preempted" in log.read_text()
    for part, before in made.items():
        assert shards_of(out, part).items() >= before.items()  # what was finished was not made again
    with open_store(out / "activations.h5") as store:
        store.verify()
    assert store_bytes(out) == store_bytes(tmp_path / "alone")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("partition=nowhere", "invalid partition specified: nowhere"),
        ("colour=red", "unrecognized option '--colour=red'"),
        ("gres=gpu:1", "Invalid generic resource"),
    ],
)
def test_slurm_refuses(slurm: Slurm, tmp_path: Path, option: str, said: str) -> None:
    result = CliRunner().invoke(_cli.app, ["capture", "--out", str(tmp_path / "a"), *WHERE, "--slurm", option])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("seamscope: SLURM does not take the job: sbatch: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("jobs", "array"), [(2, "0-1%2"), (1, None)])
def test_slurm_gets_what_was_asked(slurm: Slurm, tmp_path: Path, jobs: int, array: str | None) -> None:
    parameters = {"time": "1-02:00:00", "cpus-per-task": "2", "comment": "a 'b'", "hold": ""}
    job = _slurm.submit(["--task", "nowhere"], jobs=jobs, folder=tmp_path, parameters=parameters)
    found = slurm.task(job)
    slurm.clear()
    names = ("JobState", "TimeLimit", "CPUs/Task", "ArrayTaskId", "Requeue", "JobName")
    assert {name: found.get(name) for name in names} == {
        "JobState": "PENDING",
        "TimeLimit": "1-02:00:00",
        "CPUs/Task": "2",
        "ArrayTaskId": array,
        "Requeue": "1",
        "JobName": "seamscope",
    }


def test_a_task_is_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    task = _slurm.CaptureTask(("--task", "nowhere", "--shard", "0/1"))
    with pytest.raises(SystemExit) as ended:
        task()
    assert ended.value.code == 2
    assert "nowhere" in capfd.readouterr().err
    _slurm.CaptureTask(("--help",))()  # success returns, so that submitit knows
    again = task.checkpoint()
    assert isinstance(again, DelayedSubmission)
    assert (again.function, again.args, again.kwargs) == (task, (), {})


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("60", 60), ("90:30", 90), ("12:30:00", 750), ("1-0", 1440), ("2-01:30", 2970), ("2-01:30:15", 2970)],
)
def test_times(time: str, minutes: int) -> None:
    assert _slurm._minutes(time) == minutes


@pytest.mark.parametrize("time", ["", "soon", "4", "1:2:3:4", "-1", "UNLIMITED"])
def test_times_that_are_none(time: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=f"SLURM's time is '{time}'; expected how long"):
        _slurm.submit([], jobs=1, folder=tmp_path, parameters={"time": time})


def test_what_is_ours_to_choose(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="SLURM's ntasks_per_node is not to be chosen here"):
        _slurm.submit([], jobs=1, folder=tmp_path, parameters={"time": "9", "ntasks-per-node": "2"})
    with pytest.raises(RunError, match="has a % in its name"):
        _slurm.submit([], jobs=1, folder=tmp_path / "%j", parameters={"time": "9"})
    assert not list(tmp_path.iterdir())


def test_nothing_to_submit_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="sbatch was not found"):
        _slurm.submit([], jobs=1, folder=tmp_path, parameters={"time": "9"})
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RunError, match=r"pip install 'seamscope\[slurm\]'"):
        _slurm.submit([], jobs=1, folder=tmp_path / "a", parameters={"time": "9"})
    assert not (tmp_path / "a").exists()
