"""Work that several processes share: what is found, what fails, and what is left when one of them ends."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool

from seamscope.hooks import StoreError
from seamscope.probes import _side_by_side, side_by_side


def test_whoever_is_free_takes_the_next_piece_and_what_is_found_stands_in_order(shared):
    here = os.getpid()

    def fit(k):
        time.sleep(0.02)
        return os.getpid(), 2 * k

    found = side_by_side(fit, range(30), workers=2, what="cells")
    assert [each for _, each in found] == list(range(0, 60, 2))
    assert found[0][0] == here
    assert len({process for process, _ in found}) == 2


def test_long_pieces_are_shared_from_the_first(tmp_path):
    """Each waits until two processes have begun."""

    def fit(k):
        (tmp_path / str(os.getpid())).touch()
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        return k

    assert side_by_side(fit, range(3), workers=2, what="cells", long=True) == [0, 1, 2]
    assert side_by_side(fit, range(0), workers=2, what="cells", long=True) == []


def test_an_error_in_another_process_is_told(shared):
    here = os.getpid()

    def fit(k):
        if os.getpid() != here:
            raise StoreError("this cell is bad")
        return k

    with pytest.raises(StoreError, match="this cell is bad"):
        side_by_side(fit, range(9), workers=2, what="cells")


def test_an_error_in_this_process_ends_the_others(shared, tmp_path):
    here = os.getpid()

    def fit(k):
        if os.getpid() != here:
            (tmp_path / f"{os.getpid()}.busy").touch()
            time.sleep(600)
        elif k:
            while not (busy := list(tmp_path.glob("*.busy"))):
                time.sleep(0.01)
            raise StoreError(busy[0].stem)

    with pytest.raises(StoreError) as told:
        side_by_side(fit, range(9), workers=2, what="cells")
    assert not Path(f"/proc/{told.value}").exists()
    assert side_by_side(lambda k: -k, range(6), workers=2, what="cells") == [0, -1, -2, -3, -4, -5]


def test_joblib_can_be_used_before_and_after(shared):
    def squares():
        return Parallel(n_jobs=2)(delayed(pow)(k, 2) for k in range(4))

    for _ in range(2):
        assert squares() == [0, 1, 4, 9]
        assert side_by_side(lambda k: -k, range(6), workers=2, what="cells") == [0, -1, -2, -3, -4, -5]


def test_what_work_here_changes_does_not_travel(shared):
    here = os.getpid()

    class Counting:
        def __init__(self):
            self.mine = {}

        def __call__(self, k):
            if os.getpid() == here:
                self.mine[k] = k
            return os.getpid(), len(self.mine)

    found = side_by_side(Counting(), range(30), workers=2, what="cells")
    assert {many for process, many in found if process != here} == {1}


def test_a_broken_pool_of_the_work_itself_is_told(shared):
    def fit(k):
        if k:
            raise BrokenProcessPool("mine")

    with pytest.raises(BrokenProcessPool, match="mine"):
        side_by_side(fit, range(6), workers=2, what="cells")


def test_what_is_soon_done_is_done_here():
    found = side_by_side(lambda k: os.getpid(), range(5), workers=2, what="cells")
    assert found == 5 * [os.getpid()]


def test_torch_has_its_threads_again():
    """In a process of its own, which has not used torch's threads before; the others are told to use one."""
    script = (
        "import torch; torch.set_num_threads(2); from seamscope.probes import side_by_side; "
        "assert side_by_side(lambda k: torch.get_num_threads(), [0], workers=1, what='') == [1]; "
        "print(torch.get_num_threads())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["2"]


def test_a_process_that_dies_leaves_its_work_to_this_one(shared):
    here = os.getpid()

    def fit(k):
        if os.getpid() != here:
            os._exit(1)
        return k

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib says that a process has stopped
        assert side_by_side(fit, range(6), workers=2, what="cells") == list(range(6))
    assert shared.exists()


@pytest.mark.parametrize(
    ("each", "pieces", "together"), [(0.6, 99, 1), (0.4, 99, 2), (0.0, 99, 4), (0.0, 9, 2), (0.0, 3, 1), (9.0, 0, 1)]
)
def test_long_pieces_go_one_by_one_and_few_ones_are_spread(each, pieces, together):
    """Else a process may be left with two of them while others have none."""
    assert _side_by_side._together(each, pieces, workers=2) == together


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Killed, it cannot tell them; some have not been given anything yet."""
    script = (
        "import os, sys, time\n"
        "from seamscope.probes import _side_by_side as s\n"
        "s.START = s.WORTH = -1.0\n"
        "s.side_by_side(lambda k, place=sys.argv[1]: k and (open(f'{place}/{os.getpid()}', 'w').close(), "
        "time.sleep(600)), range(3), workers=4, what='')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    threads = Path(f"/proc/{parent.pid}/task").iterdir()
    started = [process for thread in threads for process in (thread / "children").read_text().split()]
    assert len(started) >= 3
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in started) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [process for process in started if Path(f"/proc/{process}").exists()]
