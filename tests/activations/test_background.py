"""Calls in another thread: in order, few at a time, none after one that failed; copies to the host."""

import threading
import time
import tracemalloc
import weakref

import pandas as pd
import pytest
import torch

from seamscope.activations import Background, Schema, create_store, open_store, to_host
from seamscope.hooks import Ragged, StoreError

from .making import SITE, same


class Failure(Exception):
    pass


def fail():
    raise Failure("first")


def test_calls_are_made_in_order_in_another_thread_before_the_block_ends():
    done = []

    def call(number, *, slow):
        time.sleep(slow)
        done.append((number, threading.get_ident()))

    with Background() as background:
        for number in range(20):
            background.submit(call, number, slow=0.002 * (number % 3))
    assert [number for number, _ in done] == list(range(20))
    assert {thread for _, thread in done}.isdisjoint({threading.get_ident()})


def test_a_call_does_not_wait_for_those_before_it():
    gate = threading.Event()
    with Background(4) as background:
        for _ in range(3):
            background.submit(gate.wait)
        gate.set()  # reached although none of them is done


@pytest.mark.parametrize("waiting", [1, 4])
def test_only_so_many_calls_wait(waiting):
    gate, done = threading.Event(), []
    submitted = []

    def submit_all():
        with Background(waiting) as background:
            for number in range(20):
                background.submit(lambda number=number: (gate.wait(), done.append(number)))
                submitted.append(number)

    thread = threading.Thread(target=submit_all)
    thread.start()
    time.sleep(0.1)
    assert len(submitted) == waiting
    gate.set()
    thread.join()
    assert done == list(range(20))


def test_memory_stays_flat_while_calls_are_slow():
    """A hundred arrays of a megabyte pass; of what was passed, only what waits is held."""
    alive = weakref.WeakSet()
    most = 0

    def keep(tensor):
        nonlocal most
        most = max(most, len(alive))

    tracemalloc.start()
    with Background(3) as background:
        for _ in range(100):
            tensor = torch.zeros(2**18)
            alive.add(tensor)
            background.submit(keep, tensor)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most <= 3 + 2  # those that wait, the one that is being made, and the next
    assert peak < 2**20  # of Python's own
    del tensor
    assert not alive


def test_what_goes_wrong_comes_out_at_the_next_call_and_no_call_is_made_after_it():
    done = []

    def run():
        with Background(4) as background:
            background.submit(fail)
            background.submit(done.append, 1)
            background.submit(done.append, 2)
            time.sleep(0.05)
            background.submit(done.append, 3)
            done.append("the error did not come out")

    with pytest.raises(Failure, match="first"):
        run()
    assert done == []


def test_what_goes_wrong_at_last_comes_out_at_the_end():
    done = []

    def run():
        with Background(4) as background:
            background.submit(done.append, 0)
            background.submit(fail)

    with pytest.raises(Failure):
        run()
    assert done == [0]


def test_the_first_error_is_the_one_that_comes_out():
    def other():
        raise ValueError("second")

    def run():
        with Background(4) as background:
            background.submit(fail)
            background.submit(other)

    with pytest.raises(Failure):
        run()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, StoreError])
def test_any_kind_of_error_comes_out(kind):
    def stop():
        raise kind

    background = Background()
    with pytest.raises(kind), background:
        background.submit(stop)


def test_an_error_in_the_block_drops_calls_that_wait_and_is_the_one_that_comes_out():
    begun, gate, done = threading.Event(), threading.Event(), []
    background = Background(8)

    def first():
        begun.set()
        gate.wait()
        done.append("first")
        raise Failure("hidden")

    def run():
        with background:
            background.submit(first)
            for number in range(5):
                background.submit(done.append, number)
            begun.wait()
            threading.Timer(0.05, gate.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert done == ["first"]  # what had begun came to its end, and nothing else began


def test_no_thread_is_left():
    before = threading.active_count()
    with Background() as background:
        background.submit(len, [])
    assert threading.active_count() == before


def acts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        (SITE, "image"): Ragged(torch.randn(5, 4, generator=generator).bfloat16(), torch.tensor([2, 0, 3])),
        (SITE, "last"): Ragged(torch.randn(3, 2, generator=generator), torch.tensor([1, 1, 1])),
    }


def test_on_the_cpu_nothing_is_copied():
    given = acts()
    copies = to_host(given)()
    assert list(copies) == list(given)
    for key, ragged in given.items():
        assert same(copies[key].values, ragged.values)
        assert torch.equal(copies[key].lengths, ragged.lengths)
        assert copies[key].values.data_ptr() == ragged.values.data_ptr()


def test_what_changes_after_it_was_appended_is_not_seen_in_the_store(tmp_path):
    given, expected = acts(), acts()
    with create_store(tmp_path / "s.h5", Schema(model="m", task="t", conditions=("direct",))) as writer:
        wait = to_host(given)
        with Background() as background:
            background.submit(lambda: writer.append("direct", pd.DataFrame({"id": list("abc")}), wait()))
        for ragged in given.values():
            ragged.values.zero_()
    with open_store(tmp_path / "s.h5") as store:
        for (site, span), ragged in expected.items():
            assert same(store.read(site, span, "direct").values, ragged.values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_gpu_are_whole_although_the_model_goes_on():
    """The source is made by work that takes a while, and its memory is given back at once and asked for again."""
    wide = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        wide = (wide @ wide).clamp(-1, 1)
    expected = wide.clone()
    wait = to_host({(SITE, "image"): Ragged(wide, torch.tensor([4096]))})
    del wide
    others = [torch.zeros(4096, 4096, device="cuda") for _ in range(4)]
    (copy,) = wait().values()
    assert copy.values.is_pinned()
    assert same(copy.values, expected.cpu())
    assert len(others) == 4
