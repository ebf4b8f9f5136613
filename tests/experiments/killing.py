"""Captures in processes that are killed with SIGKILL: `python killing.py FOLDER KILLS SEED`, prints JSON.

Every attempt is a fork of this process, which has loaded the model, so that moments are spread over the capture, not
over imports. It tells how many shards each process that was killed left, and whether the bytes of every store in the
end were those of a store that nobody interrupted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)  # a fork has none of its parent's threads

from seamscope.experiments import Settings, tasks  # noqa: E402
from seamscope.experiments._capture import Capture  # noqa: E402
from seamscope.experiments._members import Members  # noqa: E402
from seamscope.hooks import load_vlm  # noqa: E402

SETTINGS = Settings(n=12, batch_size=4, rows_per_shard=2, sites=("lm.*.resid_post",))
SHARDS = 12  # of the capture below: items and partners, two in each
TASK = tasks.get("cards.sum")
VLM = load_vlm("organism", device="cpu", check=False)


def capture(path: Path, part: tuple[int, int] = (0, 1)) -> bool:
    """What `seamscope capture` does; tells whether the store is finished."""
    members = Members(TASK, SETTINGS)
    sites, conditions = VLM.expand(SETTINGS.sites), ("direct", "cascaded")
    made = Capture(VLM, TASK, members, path=path, conditions=conditions, sites=sites, settings=SETTINGS, part=part)
    return made.run()


def start(path: Path, part: tuple[int, int] = (0, 1)) -> int:
    """Capture in another process; gives its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            capture(path, part)
            status = 0
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int:
    """Wait for a process; gives its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(path: Path) -> dict[str, bytes]:
    """Every file of a store by its name."""
    files = [path, *sorted(path.with_suffix(".shards").glob("*.h5"))]
    return {file.name: file.read_bytes() for file in files}


def shards(path: Path) -> int:
    """How many shards are finished."""
    return len(list(path.with_suffix(".shards").glob("*.h5")))


def wait(child: int, path: Path, count: int) -> None:
    """Wait until so many shards are finished, or all are, or the process has ended."""
    while (
        shards(path) < min(count, SHARDS) and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    ):
        time.sleep(0.002)


def kill_often(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Interrupt captures of one store after another, until so many were killed; finish and compare them all."""
    rng = random.Random(seed)
    begun = time.perf_counter()
    assert ended(start(folder / "whole" / "store.h5")) == 0
    takes = time.perf_counter() - begun
    pace = takes / SHARDS  # seconds of a shard, at the fastest so far: what else the machine does, comes and goes
    whole = content(folder / "whole" / "store.h5")
    left: list[int] = []
    same: list[bool] = []
    while len(left) < kills:
        path = folder / str(len(same)) / "store.h5"
        while not path.exists():
            held, begun = shards(path), time.perf_counter()
            child = start(path)
            if len(left) < kills:  # soon, or when it has made some shards; by time alone a busy machine decides
                wait(child, path, held + rng.choice((0, 0, 1, 2)))
                made = shards(path) - held
                pace = min(pace, (time.perf_counter() - begun) / made) if made else pace
                time.sleep(rng.uniform(0, takes if held == SHARDS else 2 * pace))
                os.kill(child, signal.SIGKILL)
            status = ended(child)
            assert status in (0, -signal.SIGKILL), status
            left += [shards(path)] * (status != 0)
        same.append(content(path) == whole)
    return {"left": left, "same": same, "seconds": takes}


def kill_one_of_four(folder: Path) -> dict[str, object]:
    """Four processes make a store; one is killed when it has made a shard, and started again."""
    path = folder / "parts" / "store.h5"
    children = {part: start(path, (part, 4)) for part in range(4)}
    while not (path.with_suffix(".shards") / "00002.h5").exists():
        time.sleep(0.005)
    os.kill(children[2], signal.SIGKILL)
    statuses = [ended(child) for child in children.values()]
    before = path.exists()
    again = ended(start(path, (2, 4)))
    same = content(path) == content(folder / "whole" / "store.h5")
    return {"statuses": statuses, "before": before, "again": again, "same": same}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = kill_often(place, int(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.write(json.dumps({**found, "parts": kill_one_of_four(place)}) + "\n")
