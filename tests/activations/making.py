"""Stores that tests make, here or in processes of their own: content that depends on nothing but its row."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from random import Random

import pandas as pd
import torch

from seamscope.activations import (
    Background,
    Schema,
    Shards,
    create_store,
    export_store,
    join_stores,
    open_store,
    to_host,
)
from seamscope.hooks import Ragged, StoreError

SITE = "lm.0.resid_post"
DTYPES = [
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]
SCHEMA = Schema(model="m", task="t", conditions=("direct", "cascaded"), provenance={"n": 7, "seed": 0})
ROWS, PER_SHARD = 7, 3  # of the capture below
_WRITING = {"_partial.py", "_file.py", "_writer.py", "_shards.py", "_join.py"}
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor):
    return tensor if tensor.dtype == torch.bool else tensor.contiguous().view(_WORDS[tensor.element_size()])


def same(one, other):
    """Whether two tensors are the same bit for bit, NaN included."""
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(bits(one), bits(other))


def noise(dtype, shape, seed=0):
    """Every bit pattern is as likely as any other: NaN payloads, infinities, subnormals and -0.0 included."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > 0.5
    size = torch.empty(0, dtype=dtype).element_size()
    word = torch.randint(0, 256, (*shape, size), generator=generator, dtype=torch.uint8)
    return word.view(dtype).reshape(shape)


def write(place, ragged, ids=None, condition="direct", **options):
    """A store of one file with one cell."""
    rows = pd.DataFrame({"id": ids or [str(i) for i in range(len(ragged))]})
    with create_store(place, Schema(model="m", task="t", conditions=(condition,)), **options) as writer:
        writer.append(condition, rows, {(SITE, "image"): ragged})


def batch(numbers, width=8):
    """Some rows and their activations, of several types and lengths; some have no object."""
    rows = pd.DataFrame({"id": [f"item {k}" for k in numbers], "label": [None if k == 2 else f"l{k}" for k in numbers]})
    image = [noise(torch.bfloat16, (2 + k % 3, width), seed=k) for k in numbers]
    last = [noise(torch.float32, (1, 4), seed=100 + k) for k in numbers]
    acts = {("lm.0.resid_post", "image"): Ragged.from_list(image), ("lm.1.mlp_out", "last"): Ragged.from_list(last)}
    if any(k % 2 for k in numbers):
        objects = [noise(torch.int16, (k % 2, 3), seed=k) for k in numbers]
        acts["lm.0.resid_post", "image.object.0"] = Ragged.from_list(objects)
    return rows, acts


def shards_of(path, part=(0, 1), schema=SCHEMA, rows=ROWS, per_shard=PER_SHARD, **options):
    return Shards(path, schema, rows=rows, rows_per_shard=per_shard, part=tuple(part), **options)


def capture(path, part=(0, 1), width=8, **options):
    """Make the shards of one part that are missing, out of order and in the background, and join all that are there."""
    shards = shards_of(path, part, **options)
    with shards, Background() as background:
        for number in shards.missing():
            file = shards.create(number)
            numbers = list(shards.rows_of(number))
            for condition in SCHEMA.conditions:
                for places in ([each for each in numbers if each % 2], [each for each in numbers if not each % 2]):
                    if places:
                        rows, acts = batch(places, width)
                        background.submit(_keep, file, condition, rows, to_host(acts), places)
            background.submit(file.close)
    return shards.join()


def _keep(file, condition, rows, wait, places):
    file.append(condition, rows, wait(), places=places)


def contents(folder):
    """The bytes of all files of a folder that are no locks."""
    files = [each for each in sorted(Path(folder).rglob("*")) if each.is_file() and not each.name.endswith(".lock")]
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in files}


def damage(path, offset, mask=0x10):
    """Flip bits of one byte."""
    with Path(path).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ mask]))


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


# What follows is done in processes of their own.


@contextmanager
def told():
    """Print an error of ours as the command line does; anything else is a failure."""
    try:
        yield
    except StoreError as error:
        say("StoreError:", error)
        sys.exit(2)


def make(path, part=(0, 1), **options):
    with told():
        say(capture(path, part, **options))


def make_within(path, size, **options):
    """Make a store in a process whose files may not be larger than `size`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    make(path, **options)


def make_as_nobody(path):
    """Make a store, and read it, as a user who may not do all that root may."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        open_store(path)
    except StoreError as error:
        say(error)
    make(path)


def one_file(path, compression=None, texts=0):
    """A store of one file with 4 MB of activations that cannot be compressed, and some text."""
    tokens = Ragged(noise(torch.uint8, (64, 2**16)), torch.ones(64).long())
    rows = pd.DataFrame({"id": [str(k) for k in range(64)], "text": ["♥" * texts] * 64})
    with told(), create_store(path, SCHEMA, compression=compression) as writer:
        writer.append("direct", rows, {(SITE, "last"): tokens})


def join(path, stores):
    with told():
        join_stores(path, stores)


def export_within(path, out, size, form):
    """Export a store in a process whose files may not be larger than `size`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    with told(), open_store(path) as store:
        export_store(store, out, form=form)


def make_and_die(path, moment, part=(0, 1)):
    """Kill this process at the n-th call that is made where files are written; tells how many there are."""
    left = moment

    def watch(frame, event, _):
        nonlocal left
        if event in {"call", "c_call"} and Path(frame.f_code.co_filename).name in _WRITING:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    threading.setprofile(watch)
    sys.setprofile(watch)
    make(path, part)
    sys.setprofile(None)
    say(moment - left)


def hold(path, part=(0, 1)):
    """Be the writer of a part until killed."""
    with told(), shards_of(path, part):
        say("held")
        signal.pause()


def hold_file(path):
    """Be the writer of a file until a signal comes, and then finish it."""
    with told(), create_store(path, SCHEMA) as writer:
        writer.append("direct", *batch(range(ROWS)))
        signal.signal(signal.SIGUSR1, lambda *_: None)
        say("held")
        signal.pause()
    say("finished")


def harm(path, file, seed, count):
    """Damage a file of a store in many ways, one at a time, and read the store in every way.

    Ends with an error unless each time one of ours came, in one line, or the data were what they had been.
    """
    file, random = Path(file), Random(seed)
    clean, expected = file.read_bytes(), _read(path)
    refused = 0
    for _ in range(count):
        file.write_bytes(_harmed(clean, random))
        results = [_tried(way, path) for way in (_read, _verify)]
        refused += results[1] is None
        assert results[0] in (None, expected) or results[1] is None, "other data, and verify did not see it"
    file.write_bytes(clean)
    say(refused)


def _harmed(clean, random):
    content, at = bytearray(clean), random.randrange(len(clean))
    match random.choice(["bit", "bit", "bit", "bits", "noise", "full", "cut", "more"]):
        case "bit":
            content[at] ^= 1 << random.randrange(8)
        case "bits":
            for _ in range(8):
                content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        case "noise":
            content[at : at + 64] = random.randbytes(len(content[at : at + 64]))
        case "full":
            content[at : at + 8] = b"\xff" * len(content[at : at + 8])
        case "cut":
            del content[at:]
        case "more":
            content[at:at] = bytes(random.choice([1, 8, 4096]))
    return bytes(content)


def _tried(way, path):
    try:
        return way(path)
    except StoreError as error:
        return None if "\n" not in str(error) else sys.exit(f"not one line: {error}")


def _read(path):
    """A digest of all that a store gives."""
    digest = sha256()
    with open_store(path) as store:
        for condition in store.conditions:
            digest.update(store.rows(condition).to_json().encode())
            for site, span in store.cells(condition):
                for rows in (None, [-1]):
                    ragged = store.read(site, span, condition, rows)
                    digest.update(bits(ragged.values).numpy().tobytes() + ragged.lengths.numpy().tobytes())
    return digest.hexdigest()


def _verify(path):
    with open_store(path) as store:
        return store.verify()
