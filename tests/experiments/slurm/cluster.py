"""A real SLURM of one node, in one folder: its own configuration, ports, key and state; nothing of the machine's."""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
OWNER = "SEAMSCOPE_TEST_SLURM"  # the process that all of it is for, known to daemons and tasks
# cred_expire: how many seconds a requeued task waits, at least 5. The node may claim more cores than there are.
CONF = """\
ClusterName=seamscope
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES State=UP
"""

T = TypeVar("T")


class Unavailable(Exception):
    """Why there can be no SLURM here."""


def until(what: str, ask: Callable[[], T | None], *, seconds: float = 240) -> T:
    """What a call gives, once it gives something that is true."""
    deadline = time.monotonic() + seconds
    while True:
        if found := ask():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.02)


def call(*words: str) -> str:
    """What a command of SLURM prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60).stdout


class Slurm:
    """What the tests ask of SLURM; the environment says where it is."""

    def task(self, name: str) -> dict[str, str]:
        """What SLURM knows of a task, such as 12_1: `JobState`, `ExitCode`, `Restarts`, ..."""
        words = call("scontrol", "show", "job", "--oneliner", name).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def until_state(self, name: str, state: str) -> dict[str, str]:
        """Wait until a task is in a state."""
        return until(f"task {name} {state}", lambda: found if (found := self.task(name))["JobState"] == state else None)

    def process(self, name: str) -> int:
        """The process that does a task's work, which srun began."""
        listed = call("scontrol", "listpids", self.task(name)["JobId"]).splitlines()
        rows = (line.split() for line in listed[1:])
        return next(int(pid) for pid, _, step, *_ in rows if step == "0")

    def requeue(self, name: str) -> None:
        """Have a task run again."""
        call("scontrol", "requeue", name)

    def signal(self, name: str, which: str) -> None:
        """Send a signal to a task, as SLURM does before it takes the machine away."""
        call("scancel", f"--signal={which}", name)

    def clear(self) -> None:
        """Take away all jobs."""
        call("scancel", "--user=root")
        until("no job is left", lambda: not call("squeue", "--noheader"))


@contextmanager
def running(folder: Path) -> Iterator[Slurm]:
    """SLURM, and an environment that leads to it; all of it is gone afterwards. `Unavailable` says why it cannot be."""
    _install()
    _end_orphans()
    for name in ("state", "spool"):
        (folder / name).mkdir(mode=0o755)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    conf = CONF.format(host=_host(), ports=_free_ports(), folder=folder)
    (folder / "slurm.conf").write_text(conf)
    (folder / "cgroup.conf").write_text("IgnoreSystemd=yes\n")
    with pytest.MonkeyPatch.context() as patch, _daemons(folder, patch):
        yield Slurm()


@contextmanager
def _daemons(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    patch.setenv(OWNER, str(os.getpid()))
    with ExitStack() as stack:
        munge = [f"--{each}={folder}/munge.{each}" for each in ("socket", "pid-file", "log-file", "seed-file")]
        key = f"--key-file={folder}/munge.key"
        for words, ready in (
            (("munged", "--foreground", "--force", key, *munge), (folder / "munge.socket").exists),
            (("slurmctld", "-D"), lambda: "is UP" in _printed("scontrol", "ping")),
            (("slurmd", "-D"), lambda: _printed("sinfo", "--noheader", "--format=%T") == "idle\n"),
        ):
            process = stack.enter_context(_daemon(folder / f"{words[0]}.out", *words))
            until(f"{words[0]} is ready", lambda: process.poll() is not None or ready())  # noqa: B023
            if process.poll() is not None:
                said = (folder / f"{words[0]}.out").read_text().splitlines()
                raise Unavailable(f"{words[0]} does not run here: {said[-1] if said else process.returncode}")
        stack.callback(Slurm().clear)
        yield


def _printed(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout


@contextmanager
def _daemon(log: Path, name: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon that ends with this block, and also if this process is killed."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            (str(_found(name)), *words), stdout=out, stderr=out, start_new_session=True, preexec_fn=_end_with_parent
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    set_death_signal = 1
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _end_orphans() -> None:
    """End what is left of owners that were killed: tasks, and what SLURM keeps beside each."""
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            owner = re.search(rf"(?:^|\0){OWNER}=(\d+)\0", file.read_text(errors="replace"))
            if owner and not Path("/proc", owner[1]).exists():
                os.kill(int(file.parent.name), signal.SIGKILL)


def _host() -> str:
    """The node's name, as slurmd finds it."""
    found: str = subprocess.run((str(_found("slurmd")), "-C"), capture_output=True, text=True, timeout=60).stdout
    return found.split()[0].removeprefix("NodeName=")


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def _missing() -> list[str]:
    return [name for name in PROGRAMS if _found(name) is None]


def _install() -> None:
    """Install what is missing, if this process may."""
    if os.name != "posix" or os.geteuid() != 0:
        raise Unavailable("a SLURM of one's own needs root: its daemons start jobs")
    if not _missing():
        return
    if shutil.which("apt-get") is None:
        raise Unavailable(f"{', '.join(_missing())} not found, and no apt-get to install {' '.join(PACKAGES)} with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (("update", "-qq"), ("install", "-qq", "--yes", "--no-install-recommends", *PACKAGES)):
        done = subprocess.run(
            ("apt-get", *words), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )
    if _missing():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"apt-get install {' '.join(PACKAGES)} failed: {said[-1] if said else done.returncode}")
