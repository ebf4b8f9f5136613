"""Processes that do one thing and may be killed: copies of one that has imported everything already."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_FIRST = """
import atexit, ctypes, gc, json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
import hdf5plugin, torch
import making
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    number = os.fork()
    if number == 0:
        out = os.open(order["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = 0
        try:
            getattr(making, order["call"])(*order["args"], **order["options"])
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        if order["ends"]:  # as any process does, HDF5 included, but for clearing a thousand modules one by one
            gc.collect()
            atexit._run_exitfuncs()
            ctypes.CDLL(None).exit(code)
        os._exit(code)
    print(number, flush=True)
"""


class Children:
    """Makes processes that call a function of `making`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        here = str(Path(__file__).parent)
        self._first = subprocess.Popen(
            [sys.executable, "-c", _FIRST, here], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._ready = False

    def start(self, call, *args, ends=False, **options):
        """Begin a process. `ends`: it is not cut short when the call is done."""
        self._count += 1
        out = self._folder / f"{self._count}.txt"
        order = {"call": call.__name__, "args": args, "options": options, "out": str(out), "ends": ends}
        return Child(self, int(self.ask(order)), out)

    def run(self, call, *args, **options):
        """What a process gave back to the system, 0 if it ended as it should, and what it printed."""
        child = self.start(call, *args, **options)
        return child.wait(), child.said

    def ask(self, order):
        if not self._ready:
            assert self._first.stdout.readline() == "ready\n"
            self._ready = True
        self._first.stdin.write(json.dumps(order, default=str) + "\n")
        self._first.stdin.flush()
        return self._first.stdout.readline()

    def close(self):
        self._first.kill()
        self._first.communicate()


class Child:
    """One such process."""

    def __init__(self, children: Children, number: int, out: Path) -> None:
        self._children, self._number, self._out = children, number, out

    @property
    def said(self):
        return self._out.read_text() if self._out.exists() else ""

    def until(self, word):
        """Wait until it has said something."""
        end = time.monotonic() + 30
        while word not in self.said:
            assert time.monotonic() < end, self.said
            time.sleep(0.005)

    def kill(self, number=signal.SIGKILL):
        os.kill(self._number, number)
        return self.wait()

    def wait(self):
        return int(self._children.ask({"wait": self._number}))
