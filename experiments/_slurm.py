"""A capture as a SLURM job array: every task makes one part of the shards."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from seamscope.hooks import RunError

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

TIMEOUTS: Final = 100  # a task that runs out of time so often is not begun again
SHORTEST: Final = 5  # minutes; SLURM tells a task to stop up to two and a half before its end
OURS: Final = ("array", "nodes", "ntasks", "ntasks_per_node", "signal", "output", "error", "open_mode", "requeue")
# [days-]hours:minutes:seconds, and what SLURM lets be left out of it
_TIME: Final = re.compile(r"(\d+)(?::\d+)?|(\d+):(\d+):\d+|(\d+)-(\d+)(?::(\d+))?(?::\d+)?")
# srun asks for one core only, whatever sbatch was asked for, unless this is set
_SETUP: Final = '[ -z "$SLURM_CPUS_PER_TASK" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'


@dataclass(frozen=True)
class CaptureTask:
    """`seamscope capture` in the task's own process, so that SLURM's signals reach it.

    What is finished is not made again, so a task is taken up again by running it again.
    """

    arguments: tuple[str, ...]

    def __call__(self) -> None:
        from ._cli import app

        try:
            app(args=["capture", *self.arguments], prog_name="seamscope")
        except SystemExit as end:
            if end.code:  # SLURM is to see a task that failed; submitit takes returning for success
                raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit requeues when the task is pre-empted or runs out of time."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)


def submit(arguments: Sequence[str], *, jobs: int, folder: Path, parameters: Mapping[str, str]) -> str:
    """Submit an array of `jobs` tasks; task i runs `seamscope capture ARGUMENTS --shard i/jobs`.

    Args:
        arguments: options of the command, which must mean the same on every machine.
        jobs: how many tasks there are.
        folder: every submission gets a folder in it, for its script and logs; all machines must see it.
        parameters: long options of sbatch, without dashes; a flag has the value "". `time` must be there.

    Returns:
        The number of the array's job.

    Raises:
        RunError: if submitit or SLURM is not there, or SLURM refuses the job. Nothing is left in `folder` then.
    """
    asked = {name.replace("-", "_"): value or True for name, value in parameters.items()}
    for name in sorted(asked.keys() & OURS):
        raise RunError(f"SLURM's {name} is not to be chosen here: a task is one process, and --jobs says how many run")
    minutes = _minutes(parameters.get("time", ""))
    if "%" in str(folder.absolute()):
        raise RunError(f"{folder} has a % in its name, which SLURM takes for something else; choose another --out")
    executor_class = _executor_class()
    place = folder.absolute() / f"{datetime.now():%Y%m%d-%H%M%S-%f}"
    with _made(place), redirect_stderr(StringIO()):  # submitit prints what it also raises
        executor = executor_class(place, max_num_timeout=TIMEOUTS)
        # what was asked comes last and counts: SLURM's names, and its words for what is wrong with them
        executor.update_parameters(
            job_name="seamscope",
            time=minutes,
            wckey=None,
            setup=[_SETUP],
            additional_parameters={"requeue": True, **asked},
        )
        tasks = [CaptureTask((*arguments, "--shard", f"{number}/{jobs}")) for number in range(jobs)]
        return str(executor.submit_array(tasks)[0].job_id).partition("_")[0]


@contextmanager
def _made(place: Path) -> Iterator[None]:
    """Let a submission make a folder; if it fails, say why, and take away what was made for it."""
    above = [folder for folder in place.parents if not folder.exists()]
    try:
        yield
    except RuntimeError as error:
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # others have put something there
            for folder in above:
                folder.rmdir()
        raise RunError(f"SLURM does not take the job: {'; '.join(str(error).splitlines())}") from error


def _executor_class() -> Any:
    """submitit's way to SLURM, if both are there."""
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise RunError(f"{program} was not found: submit where SLURM is, on a login node, or leave out --submit")
    try:
        from submitit import SlurmExecutor
    except ImportError as error:
        raise RunError("submitit is not installed: pip install 'seamscope[slurm]'") from error
    return SlurmExecutor


def _minutes(time: str) -> int:
    """A time as SLURM understands it, in whole minutes; submitit tells by it what ran out of time."""
    found = _TIME.fullmatch(time)
    numbers = [int(each or 0) for each in found.groups()] if found else [0] * 6
    only, hours, minutes, days, more_hours, more_minutes = numbers
    total = only + ((days * 24) + hours + more_hours) * 60 + minutes + more_minutes
    if total < SHORTEST:
        raise RunError(
            f"SLURM's time is {time!r}; expected how long a task may run, of {SHORTEST} minutes or more, "
            "such as time=60 or time=12:00:00"
        )
    return total
