"""A file is data: what a store never contains is refused in one line, whenever it would be touched."""

import hashlib
import json
import os
import shutil
import time

import h5py
import hdf5plugin
import numpy as np
import pandas as pd
import pytest
import torch

from seamscope.activations import create_store, join_stores, open_store
from seamscope.activations._file import seal_of
from seamscope.hooks import Ragged, SiteError, SpanError, StoreError

from .making import SITE, damage

VALUES = f"/conditions/direct/acts/{SITE}/last/values"
CELL = (SITE, "last", "direct")
PACKED = {"fletcher32": True, **hdf5plugin.Bitshuffle()}


def refusal(path, *ways):
    """What is said when a store is opened, or when it is read in some ways; always the same, in one line."""
    messages = set()
    for way in ways or (lambda store: None,):
        with pytest.raises(StoreError) as caught, open_store(path) as store:
            way(store)
        messages.add(str(caught.value))
    (message,) = messages
    assert "\n" not in message
    assert message.startswith(str(path.parent))
    return message


def read(store):
    return store.read(*CELL)


def verify(store):
    return store.verify()


def table(store):
    return store.rows("direct")


def change(path, make, name=None):
    """Change a file as an attacker would: with checksums that fit. `name` is removed first."""
    with h5py.File(path, "r+") as file:
        if name is not None:
            del file[name]
        make(file)
    with path.open("r+b") as file:
        if file.read(9) == b"seamscope":
            file.seek(0)
            file.write(seal_of(path))


def reseal(path, change_manifest):
    def make(file):
        manifest = json.loads(file["manifest"][()].tobytes())
        change_manifest(manifest)
        replace_manifest(file, json.dumps(manifest).encode())

    change(path, make)


def replace_manifest(file, raw, **options):
    del file["manifest"]
    data = file.create_dataset("manifest", data=np.frombuffer(raw, "u1"), **options)
    data.attrs["dtype"] = np.bytes_("uint8")
    file.attrs["manifest_sha256"] = np.bytes_(hashlib.sha256(raw).hexdigest())


def byte_offset(path, name):
    with h5py.File(path) as file:
        return file[name].id.get_offset()


def test_what_is_not_there_or_not_ours(tmp_path):
    assert refusal(tmp_path / "none.h5").endswith("none.h5 is not there")
    assert refusal(tmp_path).endswith("is no file")
    (tmp_path / "text.h5").write_text("hello")
    assert "cannot be read, it is damaged or foreign" in refusal(tmp_path / "text.h5")
    (tmp_path / "empty.h5").touch()
    assert "cannot be read, it is damaged or foreign" in refusal(tmp_path / "empty.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    assert "is not a seamscope store" in refusal(tmp_path / "other.h5")
    os.mkfifo(tmp_path / "pipe.h5")
    assert refusal(tmp_path / "pipe.h5").endswith("is no file")
    (tmp_path / "loop.h5").symlink_to(tmp_path / "loop.h5")
    assert "loop.h5" in refusal(tmp_path / "loop.h5")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "other", "is not a seamscope store"),
        ("format", np.array([b"seamscope-store"]), "is not a seamscope store"),
        ("format", "seamscope-store", "is not a seamscope store"),  # of variable length
        ("format_version", 3, "has format 3, newer than 2: read it with a newer seamscope"),
        ("format_version", 1, "has format 1, which was given up before the first release: capture it anew"),
        ("format_version", np.bytes_("2"), "has no valid format version but '2'"),
        ("format_version", 0, "has no valid format version but 0"),
        ("complete", 0, "was never completed"),
        ("manifest_sha256", "0", "'/manifest' differs from its checksum"),
    ],
)
@pytest.mark.parametrize("kind", ["single", "joined"])
def test_headers(path, kind, name, value, message):
    if kind == "joined":
        join_stores(path.with_name("joined.h5"), [path])
        path = path.with_name("joined.h5")
    change(path, lambda file: file.attrs.__setitem__(name, value))
    assert message in refusal(path)


@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("/etc/hostname", "/x"), h5py.SoftLink("/schema")], ids=["external", "soft"]
)
@pytest.mark.parametrize("name", [VALUES, VALUES.rpartition("/")[0], "/conditions/direct/acts"])
def test_links(path, link, name):
    change(path, lambda file: file.__setitem__(name, link), name)
    assert f"{name!r} is a soft or external link" in refusal(path, read, verify)
    with open_store(path) as store:
        assert len(store.rows("direct")) == 3  # what is not touched does not matter


@pytest.mark.parametrize("name", ["/schema", "/manifest"])
def test_links_to_what_every_reader_needs(path, name):
    change(path, lambda file: file.__setitem__(name, h5py.SoftLink("/conditions")), name)
    assert f"{name!r} is a soft or external link" in refusal(path)


def test_hard_links_that_make_a_circle(path):
    change(path, lambda file: file.__setitem__("conditions/again", file["conditions/direct"]))
    assert "is linked twice" in refusal(path, verify)
    change(path, lambda file: file.__setitem__("conditions/direct/up", file["conditions"]), "conditions/again")
    assert "is linked twice" in refusal(path, verify)


def virtual(file, name=VALUES, shape=(3, 2, 3), kind="<f4"):
    layout = h5py.VirtualLayout(shape, kind)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", shape)
    file.create_virtual_dataset(name, layout).attrs["dtype"] = np.bytes_("float32")


def filled(shape, **options):
    def make(file):
        file.create_dataset(VALUES, data=np.zeros(shape, "f4"), **options).attrs["dtype"] = np.bytes_("float32")

    return make


def declared(shape, **options):
    def make(file):
        file.create_dataset(VALUES, shape, "<f4", **options).attrs["dtype"] = np.bytes_("float32")

    return make


def one_chunk_of_many(file):
    data = file.create_dataset(VALUES, (10**9, 1024), "<f4", chunks=(256, 1024), **PACKED)
    data[:1] = 1


TERABYTE = (2**19, 2**19)
ODD_DATASETS = {
    "virtual": (virtual, "keeps its data in other files"),
    "external": (declared((3, 2, 3), external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]), "keeps its data in other"),
    "text": (lambda f: f.create_dataset(VALUES, data=["x"]), "has the type object"),
    "opaque": (lambda f: f.create_dataset(VALUES, data=np.zeros(3, "V2")), "has the type |V2"),
    "reference": (lambda f: f.create_dataset(VALUES, (2,), h5py.ref_dtype), "has the type object"),
    "compound": (lambda f: f.create_dataset(VALUES, (2,), [("a", "f4")]), "has the type [("),
    "enum": (lambda f: f.create_dataset(VALUES, data=np.zeros(2, bool)), "has the type bool"),
    "big-endian": (lambda f: f.create_dataset(VALUES, data=np.zeros(2, ">f4")), "has the type >f4"),
    "gzip": (filled((3, 2, 3), compression="gzip"), "is filtered in a way that this format does not allow"),
    "three filters": (
        filled((3, 2, 3), shuffle=True, **PACKED),
        "is filtered in a way that this format does not allow",
    ),
    "no checksum": (
        filled((3, 2, 3), **hdf5plugin.Bitshuffle()),
        "is filtered in a way that this format does not allow",
    ),
    "chunks": (filled((3, 2, 3), chunks=(1, 2, 3)), "is cut into chunks without being compressed"),
    "resizable": (filled((3, 2, 3), maxshape=(None, 2, 3)), "is cut into chunks without being compressed"),
    "huge chunks": (declared((5, 2**22), chunks=(5, 2**22), **PACKED), "has chunks that are larger than this format"),
    "no data": (declared(TERABYTE), "declares the shape (524288, 524288) but holds fewer bytes"),
    "no chunks": (declared(TERABYTE, chunks=(1, 1024), **PACKED), "but holds fewer bytes than that"),
    "few chunks": (one_chunk_of_many, "declares the shape (1000000000, 1024) but holds fewer bytes"),
    "scalar": (lambda f: f.create_dataset(VALUES, data=np.float32(1)), "has the shape ()"),
    "null": (lambda f: f.create_dataset(VALUES, data=h5py.Empty("<f4")), "has the shape None"),
    "wide": (filled((1,) * 9), "has the shape (1, 1, 1, 1, 1, 1, 1, 1, 1)"),
    "other shape": (filled((3, 3, 2)), "has not the type and shape that the manifest gives it"),
    "no attribute": (lambda f: f.create_dataset(VALUES, data=np.zeros((3, 2, 3), "f4")), "has not the type and shape"),
}


@pytest.mark.parametrize(("make", "message"), ODD_DATASETS.values(), ids=ODD_DATASETS)
def test_datasets_that_a_store_never_contains(path, make, message):
    change(path, make, VALUES)
    found = refusal(path, read, verify)
    assert message in found
    assert repr(VALUES) in found
    with open_store(path) as store:
        assert len(store.rows("direct")) == 3


@pytest.mark.parametrize("make", [lambda f: f.__setitem__(VALUES, np.dtype("f4")), lambda f: f.create_group(VALUES)])
def test_no_dataset_at_all(path, make):
    change(path, make, VALUES)
    assert f"{VALUES!r} is no dataset" in refusal(path, read)
    refusal(path, verify)


@pytest.mark.parametrize("name", ["/conditions/direct/rows/id/values", "/schema", "/manifest"])
def test_nothing_but_tokens_may_be_compressed(path, name):
    """A file of a few kilobytes would fill the memory."""

    def make(file):
        data = file.create_dataset(name, data=np.zeros(2**20, "u1"), chunks=(2**20,), **PACKED)
        data.attrs["dtype"] = np.bytes_("uint8")

    change(path, make, name)
    assert path.stat().st_size < 2**16
    assert f"{name!r} is filtered in a way that this format does not allow" in refusal(path, table)


def test_a_sparse_file_of_a_terabyte(path):
    """It holds as many bytes as it declares, of which none is on the disk; they do not fit into the memory."""

    def make(file):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple((2**20, 2, 2**18))
        data = h5py.Dataset(h5py.h5d.create(file.id, VALUES.encode(), h5py.h5t.IEEE_F32LE, space, plist))
        data.attrs["dtype"] = np.bytes_("float32")
        entry = json.loads(file["manifest"][()].tobytes())
        entry["datasets"][VALUES]["shape"] = [2**20, 2, 2**18]
        replace_manifest(file, json.dumps(entry).encode())

    change(path, make, VALUES)
    assert path.stat().st_size > 2**40
    assert "lengths of" in refusal(path, read)  # its rows have 3 tokens


def test_groups_without_end(path):
    change(path, lambda file: file.create_group("/".join("x" * 40)))
    assert "lies too deep" in refusal(path, verify)


def test_file_and_manifest_must_name_the_same_datasets(path):
    change(path, lambda file: file.__setitem__("extra", np.zeros(1, "u1")))
    assert "'/extra' stands in only one of file and manifest" in refusal(path, verify)
    change(path, lambda file: file.__delitem__(VALUES), "extra")
    assert f"{VALUES!r} stands in only one" in refusal(path, verify)
    assert f"lacks the dataset {VALUES!r}" in refusal(path, read)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "nonsense", "shape": [3, 2, 3], "sha256": ""},
        {"dtype": ["float32"], "shape": [3]},
        {"dtype": "float32", "shape": 3},
        {"dtype": "float32", "shape": []},
        {"dtype": "float32", "shape": [3, -1]},
        {"dtype": "float32", "shape": [3, 2.0]},
        {"dtype": "float32", "shape": [True]},
        {"dtype": "float32", "shape": ["3"]},
        {"dtype": "float32", "shape": [1] * 9},
        {"shape": [3]},
        {},
        None,
        3,
        "x",
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["datasets", "virtual"])
def test_entries_of_the_manifest_that_say_nothing(path, kind, entry):
    reseal(path, lambda manifest: manifest[kind].__setitem__(VALUES, entry))
    assert f"says of dataset {VALUES!r} what cannot be" in refusal(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "float32", "shape": [3, 2, 4], "sha256": ""},
        {"dtype": "bfloat16", "shape": [3, 2, 3], "sha256": ""},
        {"dtype": "float32", "shape": [3, 10**30], "sha256": ""},
        {"dtype": "float32", "shape": [10**30, 10**30], "sha256": ""},
    ],
    ids=str,
)
def test_types_and_shapes_must_be_the_manifests(path, entry):
    reseal(path, lambda manifest: manifest["datasets"].__setitem__(VALUES, entry))
    assert f"{VALUES!r} has not the type and shape that the manifest gives it" in refusal(path, verify)
    refusal(path, read)


@pytest.mark.parametrize("checksum", [None, 3, "", ["x"], "0" * 64])
def test_checksums_must_be_right(path, checksum):
    reseal(path, lambda manifest: manifest["datasets"][VALUES].__setitem__("sha256", checksum))
    assert f"1 datasets differ from their checksums: {VALUES}" in refusal(path, verify)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"3", b'{"datasets": {}}', b'{"datasets": [], "virtual": {}}'],
    ids=["empty", "list", "broken", "bytes", "deep", "number", "half", "wrong"],
)
def test_a_manifest_that_is_no_table(path, raw):
    change(path, lambda file: replace_manifest(file, raw))
    assert "manifest" in refusal(path)


def test_a_manifest_that_is_huge(path):
    """Thousands of entries are no trouble; that they lead nowhere is found."""
    more = {f"/conditions/direct/acts/{k}/x/values": {"dtype": "float32", "shape": [2**40]} for k in range(20_000)}
    reseal(path, lambda manifest: manifest["datasets"].update(more))
    start = time.monotonic()
    with open_store(path) as store:
        assert len(store.sites) == 20_001
        with pytest.raises(StoreError, match="lacks the dataset"):
            store.read("7", "x", "direct")
    assert "stands in only one of file and manifest" in refusal(path, verify)
    assert time.monotonic() - start < 10


TRICKS = [
    "",
    "/",
    "/..",
    "relative",
    "/conditions/direct/else",
    f"/conditions/direct/acts/{SITE}/../{SITE}/last/values",
    f"/conditions/direct/acts/{SITE}/last/values/",
    f"//conditions/direct/acts/{SITE}/last/values",
    "/conditions/direct/rows/id/offsets",
    "/manifest",
    "/conditions/direct/acts/a/b/c/values",
]


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("kind", ["datasets", "virtual"])
def test_paths_in_the_manifest_that_lead_elsewhere(path, kind, trick):
    reseal(path, lambda manifest: manifest[kind].__setitem__(trick, {"dtype": "float32", "shape": [1], "sha256": ""}))
    assert f"dataset {trick!r} is not where a store keeps anything" in refusal(path)


@pytest.mark.parametrize("site", [".", "..", "", "\0", "\ud800", "x" * 10**6])
def test_names_in_the_manifest_that_no_file_has(path, site):
    entry = {"dtype": "float32", "shape": [1, 1], "sha256": ""}
    more = {f"/conditions/direct/acts/{site}/last/{name}": entry for name in ("values", "lengths")}
    reseal(path, lambda manifest: manifest["datasets"].update(more))
    refusal(path, lambda store: store.read(site, "last", "direct"))
    refusal(path, verify)


def test_lengths_that_do_not_fit(path):
    lengths = VALUES.replace("values", "lengths")
    for wrong in ([0, 3, 2], [-1, 2, 2], [2**31 - 1] * 3):
        change(path, lambda file, wrong=wrong: file[lengths].__setitem__(slice(None), wrong))
        assert "do not fit its values" in refusal(path, read)


def test_more_rows_than_lengths(path):
    """The sum is right, so only a row that is not there tells."""
    lengths = VALUES.replace("values", "lengths")

    def make(file):
        file.create_dataset(lengths, data=np.array([3], "<i4")).attrs["dtype"] = np.bytes_("int32")

    change(path, make, lengths)
    reseal(path, lambda manifest: manifest["datasets"][lengths].__setitem__("shape", [1]))
    assert "has 1 rows only" in refusal(path, read)


@pytest.mark.parametrize("wrong", [[1, 9, 5], [-1, 1, 5], [2**31 - 1] * 3])
def test_text_whose_lengths_do_not_fit(path, wrong):
    change(path, lambda file: file["conditions/direct/rows/id/lengths"].__setitem__(slice(None), wrong))
    assert "lengths of a text column do not fit its bytes" in refusal(path, table)


def test_text_that_is_none(path):
    change(path, lambda file: file["conditions/direct/rows/id/values"].__setitem__(0, 0xFF))
    assert "cannot be read, it is damaged or foreign: 'utf-8' codec" in refusal(path, table)


@pytest.mark.parametrize("raw", [b"{}", b"[]", b"\xff", b'{"model": 1}', b"[" * 100_000])
def test_a_schema_that_is_none(path, raw):
    change(path, lambda file: file.create_dataset("schema", data=np.frombuffer(raw, "u1")), "schema")
    assert "schema" in refusal(path)


def test_conditions_that_cannot_be(path):
    raw = json.dumps({"model": "m", "task": "t", "conditions": ["a/b", 3], "provenance": {}}).encode()
    change(path, lambda file: file.create_dataset("schema", data=np.frombuffer(raw, "u1")), "schema")
    assert "condition 'a/b' cannot name a part of a store" in refusal(path)


@pytest.mark.parametrize(
    ("name", "at"), [(VALUES, 0), (VALUES, 71), ("/conditions/direct/rows/id/values", 0), ("/schema", 14)]
)
def test_a_flipped_bit_is_found_by_name(path, name, at):
    with open_store(path) as store:
        assert store.verify() == 22
    damage(path, byte_offset(path, name) + at)
    assert refusal(path, verify).endswith(f"1 datasets differ from their checksums: {name}")


def test_a_flipped_bit_in_the_manifest_is_found_at_once(path):
    damage(path, byte_offset(path, "manifest") + 5)
    assert "'/manifest' differs from its checksum" in refusal(path)


def test_names_that_are_not_there(path):
    with open_store(path) as store:
        with pytest.raises(SiteError, match=r"unknown site 'lm.1.resid_post'.*lm.0.resid_post"):
            store.read("lm.1.resid_post", "last", "direct")
        with pytest.raises(SpanError, match=r"unknown span 'lats'.*last"):
            store.read(SITE, "lats", "direct")
        with pytest.raises(StoreError, match=r"unknown condition 'cascaded'.*direct"):
            store.read(SITE, "last", "cascaded")
        for rows in ([3], [-4], [0.5], ["a"], [True], [[0], [1, 2]], [[0, 1], [1, 2]], {"a": 1}, 3):
            with pytest.raises(StoreError, match="cannot select those of its 3 rows"):
                store.read(*CELL, rows)
    for do in (read, verify, table):
        with pytest.raises(StoreError, match="is closed"):
            do(store)


def test_two_readers_at_once(path):
    with open_store(path) as one, open_store(path) as two:
        assert one.verify() == two.verify()
    assert "1 sites" in repr(one)


# Files that join others.


@pytest.fixture(scope="module")
def made_pair(tmp_path_factory, schema):
    folder = tmp_path_factory.mktemp("pair") / "made"
    folder.mkdir()
    for number in range(2):
        with create_store(folder / f"{number}.h5", schema) as writer:
            tokens = Ragged(torch.arange(3.0)[:, None] + 10 * number, torch.ones(3).long())
            writer.append("direct", pd.DataFrame({"id": [f"{number}{k}" for k in "abc"]}), {(SITE, "last"): tokens})
    join_stores(folder / "run.h5", [folder / "0.h5", folder / "1.h5"])
    return folder


@pytest.fixture
def pair(tmp_path, made_pair):
    """Two stores of equal form, each of three rows, and the file that joins them."""
    shutil.copytree(made_pair, tmp_path, dirs_exist_ok=True)
    return tmp_path / "run.h5"


def source(path, shape=(3, 1), kind="<f4"):
    return h5py.VirtualSource(path, VALUES, shape, kind)


def showing(*pieces, shape=(6, 1), name=VALUES, dtype="float32", kind="<f4"):
    def make(file):
        layout = h5py.VirtualLayout(shape, kind)
        for where, what in pieces:
            layout[where] = what
        file.create_virtual_dataset(name, layout).attrs["dtype"] = np.bytes_(dtype)

    return make


def counted(file):
    """The right data, by "%b" in the name: as many files as there are."""
    whole, block = (h5py.h5s.create_simple((6, 1), (h5py.h5s.UNLIMITED, 1)) for _ in range(2))
    block.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (3, 1), (3, 1))
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_virtual(block, b"%b.h5", VALUES.encode(), h5py.h5s.create_simple((3, 1)))
    data = h5py.Dataset(h5py.h5d.create(file.id, VALUES.encode(), h5py.h5t.IEEE_F32LE, whole, plist))
    data.attrs["dtype"] = np.bytes_("float32")


OTHER_SOURCES = {
    "another file": showing((np.s_[:3], source("0.h5")), (np.s_[3:], source("evil.h5"))),
    "an absolute path": showing((np.s_[:3], source("0.h5")), (np.s_[3:], source("/etc/passwd"))),
    "another order": showing((np.s_[:3], source("1.h5")), (np.s_[3:], source("0.h5"))),
    "one twice": showing((np.s_[:3], source("0.h5")), (np.s_[3:], source("0.h5"))),
    "itself": showing((np.s_[:3], source("0.h5")), (np.s_[3:], source("."))),
    "a part": showing((np.s_[:3], source("0.h5")), (np.s_[3:5], source("1.h5")[:2])),
    "other rows": showing((np.s_[:3], source("0.h5")), (np.s_[3:], source("1.h5")[[0, 1, 2]])),
    "another dataset": showing(
        (np.s_[:3], source("0.h5")), (np.s_[3:], h5py.VirtualSource("1.h5", VALUES + "x", (3, 1), "<f4"))
    ),
    "nothing": showing((np.s_[:3], source("0.h5"))),
    "no source": showing(shape=(6, 1)),
    "files by a pattern": counted,
}


@pytest.mark.parametrize("make", OTHER_SOURCES.values(), ids=OTHER_SOURCES)
def test_virtual_datasets_that_show_something_else(tmp_path, pair, make):
    """Our reader never looks through them; whoever does, is warned by verify."""
    shutil.copy(tmp_path / "0.h5", tmp_path / "evil.h5")
    change(pair, make, VALUES)
    with open_store(pair) as store:
        assert store.read(*CELL).values.flatten().tolist() == [0, 1, 2, 10, 11, 12]
        store.rows("direct")
    told = refusal(pair, verify)
    assert repr(VALUES) in told or "cannot be read, it is damaged or foreign" in told


def test_virtual_datasets_that_are_none(pair):
    def make(file):
        file.create_dataset(VALUES, data=np.zeros((6, 1), "<f4")).attrs["dtype"] = np.bytes_("float32")

    change(pair, make, VALUES)
    assert f"lacks the virtual dataset {VALUES!r}" in refusal(pair, verify)
    change(pair, lambda file: None, VALUES)
    assert f"lacks the virtual dataset {VALUES!r}" in refusal(pair, verify)
    with open_store(pair) as store:
        assert store.read(*CELL).values.flatten().tolist() == [0, 1, 2, 10, 11, 12]


def test_virtual_datasets_that_no_shard_holds(pair):
    more = f"/conditions/direct/acts/{SITE}/more/values"
    change(pair, showing((np.s_[:3], source("evil.h5")), name=more))
    entry = {"dtype": "float32", "shape": [6, 1]}
    reseal(pair, lambda manifest: manifest["virtual"].__setitem__(more, entry))
    assert f"no shard holds {more!r}" in refusal(pair, verify)
    with open_store(pair) as store:  # no row has any of it
        assert store.read(SITE, "more", "direct").lengths.tolist() == [0] * 6


def test_a_table_that_is_virtual(pair):
    name = "/conditions/direct/rows/id/missing"
    sources = [(np.s_[3 * k : 3 * k + 3], h5py.VirtualSource(f"{k}.h5", name, (3,), "u1")) for k in range(2)]
    change(pair, showing(*sources, name=name, shape=(6,), kind="u1", dtype="bool"), name)
    assert f"{name!r} keeps its data in other files" in refusal(pair, table, verify)


def test_a_single_file_with_virtual_datasets(path):
    """Its manifest says so itself, but there are no shards that it could show."""
    change(path, virtual, VALUES)

    def move(manifest):
        manifest["virtual"][VALUES] = manifest["datasets"].pop(VALUES)

    reseal(path, move)
    assert f"{VALUES!r} keeps its data in other files" in refusal(path, read)
    assert f"no shard holds {VALUES!r}" in refusal(path, verify)


def shards_set(**changes):
    return lambda manifest: manifest["shards"][1].update(changes)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda m: m.__setitem__("shards", {"0": 1}),
        lambda m: m.__setitem__("shards", "0.h5"),
        lambda m: m.__setitem__("shards", None),
        lambda m: m["shards"].append(3),
        lambda m: m["shards"].append({}),
        lambda m: m["shards"][1].pop("rows"),
        shards_set(file=3),
        shards_set(file=None),
        shards_set(file="1.h5\0"),
        shards_set(bytes="5"),
        shards_set(bytes=None),
        shards_set(manifest_sha256=5),
        shards_set(rows=[3]),
        shards_set(rows={"direct": "3"}),
        shards_set(rows={"direct": -3}),
        shards_set(rows={"direct": 3.0}),
    ],
)
def test_lists_of_shards_that_say_nothing(pair, wrong):
    reseal(pair, wrong)
    told = refusal(pair)
    assert "has a list of shards that is none" in told or "has a shard of which it does not say" in told


@pytest.mark.parametrize(
    "file",
    [
        "",
        ".",
        "..",
        "/",
        "none.h5",
        "/dev/zero",
        "../../../../../../etc/shadow_",
        "x" * 10**5,
        "\ud800",
        "run.h5",
        "2.h5",
    ],
)
def test_shards_that_are_somewhere_else(pair, file):
    """Whatever the list says: a file is opened as a store, or not at all."""
    reseal(pair, shards_set(file=file))
    with pytest.raises(StoreError) as caught:
        open_store(pair)
    assert "\n" not in str(caught.value)
    assert "is missing" in str(caught.value) or "is damaged" in str(caught.value) or "has a shard" in str(caught.value)


def test_a_store_that_joins_itself(pair):
    """Its size can be told right, its checksum cannot."""
    reseal(pair, shards_set(file="run.h5", bytes=10**5))
    os.truncate(pair, 10**5)
    assert "run.h5 is not the file that was joined: its checksum is another" in refusal(pair, read, verify)


def test_shards_with_another_number_of_rows(pair):
    reseal(pair, lambda m: [m["shards"][k]["rows"].update(direct=n) for k, n in enumerate((2, 4))])
    assert "0.h5 has not 2 rows of direct, as the joined file says" in refusal(pair, read, verify)
    reseal(pair, shards_set(rows={"direct": 10**30}))
    assert "has another number of rows than its shards together" in refusal(pair)


def test_the_same_shard_twice(pair):
    reseal(pair, lambda m: m["shards"].__setitem__(1, m["shards"][0]))
    with open_store(pair) as store:
        assert store.read(*CELL).values.flatten().tolist() == [0, 1, 2, 0, 1, 2]  # as it says; but see below
    assert "shows something else than its shards hold" in refusal(pair, verify)


def test_shards_of_another_form(pair, schema):
    """A valid store with a valid checksum, but not what the joined file says of it."""
    other = pair.with_name("1.h5")
    other.unlink()
    with create_store(other, schema) as writer:
        tokens = Ragged(torch.zeros(3, 1, dtype=torch.int64), torch.ones(3).long())
        writer.append("direct", pd.DataFrame({"id": ["1a", "1b", "1c"]}), {(SITE, "last"): tokens})
    with h5py.File(other) as file:
        sha256 = file.attrs["manifest_sha256"].decode()
    reseal(pair, shards_set(bytes=other.stat().st_size, manifest_sha256=sha256))
    assert r"1.h5 holds lm.0.resid_post at last as int64 of shape (1,), not as float32" in refusal(pair, read)
    refusal(pair, verify)


def test_a_shard_that_is_joined_itself(tmp_path, pair):
    """What joins is never a shard: its virtual datasets are not followed."""
    join_stores(tmp_path / "inner.h5", [tmp_path / "1.h5"])
    with h5py.File(tmp_path / "inner.h5") as file:
        sha256 = file.attrs["manifest_sha256"].decode()
    size = (tmp_path / "inner.h5").stat().st_size
    reseal(pair, shards_set(file="inner.h5", bytes=size, manifest_sha256=sha256))
    assert f"inner.h5 {VALUES.replace('values', 'lengths')!r} keeps its data in other files" in refusal(pair, read)
    refusal(pair, verify)


def test_thousands_of_shards(pair):
    reseal(pair, lambda m: m.__setitem__("shards", [m["shards"][0]] * 30_000))
    start = time.monotonic()
    assert "has another number of rows than its shards together" in refusal(pair)
    assert time.monotonic() - start < 5


def test_the_seal_is_the_checksum_of_the_rest(pair):
    content = pair.read_bytes()
    assert content[:512] == f"seamscope-store sha256 {hashlib.sha256(content[512:]).hexdigest()}".encode().ljust(
        512, b"\n"
    )
    pair.write_bytes(b"\n" * 512 + content[512:])
    assert "differs from the checksum that it begins with" in refusal(pair, verify)
