"""What is read is what was written, bit for bit, by `open_store` and by h5py alone."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seamscope.activations import Schema, Shards, create_store, join_stores, open_store
from seamscope.activations._file import StoreFile
from seamscope.hooks import Ragged

from .making import DTYPES, SITE, bits, noise, same, write
from .test_format_page import page

SPECIAL = {
    torch.bfloat16: [0x7FC1, 0xFFC0, 0x7F81, 0x8000, 0x7F80, 0xFF80, 0x0001],
    torch.float16: [0x7E01, 0xFE00, 0x7C01, 0x8000, 0x7C00, 0xFC00, 0x0001],
    torch.float32: [0x7FC00001, 0xFFC00000, 0x7F800001, 0x80000000, 0x7F800000, 0xFF800000, 1],
}
ODD_NAMES = [
    "%",
    "%b",
    "%%b%d",
    '"',
    "'",
    " ",
    "a b",
    "♥ é 😀",
    "x" * 300,
    "..x",
    "#",
    "\\",
    "\n",
    "values",
    "lengths",
    SITE,
]


def read(place, rows=None):
    with open_store(place) as store:
        store.verify()
        return store.read(SITE, "image", "direct", rows)


@pytest.mark.parametrize("dtype", SPECIAL, ids=str)
def test_nan_payloads_negative_zero_and_infinities_survive(tmp_path, dtype):
    width = torch.empty(0, dtype=dtype).element_size()
    raw = np.array(SPECIAL[dtype], dtype=f"<u{width}")
    values = torch.from_numpy(raw.view(f"<i{width}")).view(dtype)[:, None]
    assert values.isnan().any()
    assert values.isinf().any()
    write(tmp_path / "s.h5", Ragged(values, torch.tensor([len(raw)])))
    assert same(read(tmp_path / "s.h5").values, values)


class Plan:
    """A store drawn at random, and what it must hold: every row of every cell, and every column, as plain lists."""

    def __init__(self, draw):
        text = st.sampled_from(ODD_NAMES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        name = text.filter(lambda each: each not in {"", ".", ".."} and not {"/", "\0"} & set(each))
        self.n = draw(st.integers(1, 6))
        self.conditions = draw(st.lists(name, min_size=1, max_size=2, unique=True))
        self.compression = draw(st.sampled_from([None, "bitshuffle"]))
        self.ids = {
            each: draw(st.lists(text, min_size=self.n, max_size=self.n, unique=True)) for each in self.conditions
        }
        self.columns = {each: self._columns(draw, name, text) for each in self.conditions}
        self.cells = {each: self._cells(draw, name) for each in self.conditions}
        self.per_shard = draw(st.integers(1, self.n))
        self.seed = draw(st.integers(0, 2**16))
        self.rng = np.random.default_rng(self.seed)

    def _columns(self, draw, name, text):
        kinds = {
            "text": text,
            "int": st.integers(-(2**63), 2**63 - 1),
            "float": st.floats(allow_nan=False),
            "bool": st.booleans(),
        }
        columns = {}
        for column in draw(st.lists(name.filter(lambda each: each != "id"), max_size=3, unique=True)):
            cell = st.none() | kinds[draw(st.sampled_from(sorted(kinds)))]
            columns[column] = draw(st.lists(cell, min_size=self.n, max_size=self.n))
        return columns

    def _cells(self, draw, name):
        """Rows of each cell, as tensors; some cells have tokens only in some rows, or in none."""
        cells = {}
        for key in draw(st.lists(st.tuples(name, name), max_size=3, unique=True)):
            dtype = draw(st.sampled_from(DTYPES))
            feature = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
            lengths = draw(st.lists(st.integers(0, 3), min_size=self.n, max_size=self.n))
            cells[key] = [noise(dtype, (size, *feature), seed) for seed, size in enumerate(lengths)]
        return cells

    def rows(self, condition, numbers):
        table = {"id": self.ids[condition], **self.columns[condition]}
        return pd.DataFrame(
            {name: pd.Series([cells[k] for k in numbers], dtype=object) for name, cells in table.items()}
        )

    def append(self, writer, numbers):
        """Append rows batch by batch, in any order; a batch may lack a cell if none of its rows has a token there."""
        for condition in self.conditions:
            order = self.rng.permutation(numbers).tolist()
            cuts = np.sort(self.rng.integers(0, len(order) + 1, 2))
            for part in np.split(np.array(order), cuts):
                places = part.tolist()
                acts = {}
                for key, tokens in self.cells[condition].items():
                    held = [tokens[k] for k in places]
                    if places and (sum(map(len, held)) or self.rng.integers(2)):
                        acts[key] = Ragged.from_list(held)
                writer.append(condition, self.rows(condition, places), acts, places=places)

    def write(self, place):
        """As one file, as shards that are joined, or as stores of any size that are joined."""
        schema = Schema(model="m", task="t", conditions=tuple(self.conditions))
        way = self.rng.integers(3)
        if way == 0:
            with create_store(place, schema, compression=self.compression) as writer:
                self.append(writer, range(self.n))
        elif way == 1:
            plan = {"rows": self.n, "rows_per_shard": self.per_shard}
            with Shards(place, schema, **plan, compression=self.compression) as shards:
                for number in shards.missing():
                    with shards.create(number) as writer:
                        self.append(writer, shards.rows_of(number))
            assert shards.join()
        else:
            cuts = np.sort(self.rng.integers(0, self.n + 1, 2))
            parts = np.split(np.arange(self.n), cuts)
            files = [place.with_name(f"part %b {k}.h5") for k in range(len(parts))]
            for file, part in zip(files, parts, strict=True):
                with create_store(file, schema, compression=self.compression) as writer:
                    self.append(writer, part.tolist())
            join_stores(place, files)

    def held(self, condition):
        """Cells that the file has: those that any batch had."""
        return {key: tokens for key, tokens in self.cells[condition].items() if sum(map(len, tokens))}


def selections(n):
    numbers = st.lists(st.integers(-n, n - 1), max_size=6)
    ends = st.none() | st.integers(-n - 1, n + 1)
    slices = st.builds(slice, ends, ends, st.none() | st.sampled_from([-2, -1, 1, 2]))
    return numbers | slices | st.lists(st.booleans(), min_size=n, max_size=n) | st.none()


def picked(n, rows):
    """Row numbers as plain Python selects them."""
    if rows is None:
        return list(range(n))
    if isinstance(rows, slice):
        return list(range(n))[rows]
    if rows and isinstance(rows[0], bool):
        return [k for k, chosen in enumerate(rows) if chosen]
    return [range(n)[k] for k in rows]


@pytest.fixture
def reserved(monkeypatch):
    """How far into each file room was taken, by inode; checks that HDF5 never needed more than that."""
    ends, plain = {}, StoreFile._reserve

    def spy(file, *args):
        inode, needed = file._partial.path.stat().st_ino, file._file.id.get_filesize()
        assert needed <= ends.get(inode, needed)
        plain(file, *args)
        ends[inode] = file._partial.path.stat().st_size

    monkeypatch.setattr(StoreFile, "_reserve", spy)
    return ends


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_store_is_read_as_it_was_written(tmp_path_factory, reserved, data):
    plan = Plan(data.draw)
    folder = tmp_path_factory.mktemp("♥ a#%b")
    plan.write(folder / "ru n%b.h5")
    for file in folder.rglob("*.h5"):
        assert file.stat().st_size <= reserved[file.stat().st_ino]
    reserved.clear()  # inodes are used again
    alone = page()
    with open_store(folder / "ru n%b.h5") as store, h5py.File(folder / "ru n%b.h5") as file:
        assert store.verify() > 0
        alone["check_shards"](file)
        assert list(store.conditions) == plan.conditions
        for condition in plan.conditions:
            back = store.rows(condition)
            expected = {"id": plan.ids[condition], **plan.columns[condition]}
            group = file["conditions"][condition]
            for name, cells in expected.items():
                assert [None if pd.isna(cell) else cell for cell in back[name]] == cells
                assert alone["column"](group["rows"][name]) == cells
            assert set(plan.held(condition)) <= set(store.cells(condition)) <= set(plan.cells[condition])
            rows = data.draw(selections(plan.n))
            for site, span in store.cells(condition):
                tokens = plan.cells[condition][site, span]
                got, numbers = store.read(site, span, condition, rows), picked(plan.n, rows)
                assert got.lengths.tolist() == [len(tokens[k]) for k in numbers]
                assert all(same(one, tokens[k]) for one, k in zip(got.split(), numbers, strict=True))
                for k, each in enumerate(tokens):
                    found = alone["tokens"](group["acts"][site][span], k)
                    assert found.shape == each.shape
                    assert found.tobytes() == plain(each).tobytes()


def plain(tokens):
    """What h5py alone gives: bfloat16 as float32, bool as numbers, the rest as it is."""
    if tokens.dtype == torch.bfloat16:
        return (bits(tokens).numpy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return tokens.numpy()


def test_every_row_is_read_back_with_its_column_types(path, rows, acts):
    with open_store(path) as store:
        back = store.rows("direct")
        for (site, span), ragged in acts.items():
            got = store.read(site, span, "direct")
            assert same(got.values, ragged.values)
            assert torch.equal(got.lengths, ragged.lengths)
    assert list(back) == list(rows)
    assert back["var:card.0.rank"].isna().tolist() == [False, True, False]
    assert back["var:sum"].dtype == "int64"
    assert back["correct"].dtype == "bool"
    assert back["score"].tolist()[:2] == [0.5, float("-inf")]
    assert back["var:count"].isna().tolist() == [False, False, True]


def test_a_column_may_come_late_and_whole_numbers_may_have_gaps(tmp_path):
    one = {(SITE, "image"): Ragged(torch.zeros(1, 2), torch.tensor([1]))}
    with create_store(tmp_path / "s.h5", Schema(model="m", task="t", conditions=("direct",))) as writer:
        writer.append("direct", pd.DataFrame({"id": ["a"], "n": [None]}), one)
        writer.append("direct", pd.DataFrame({"id": ["b"], "n": [2], "ok": [True]}), one)
    with open_store(tmp_path / "s.h5") as store:
        back = store.rows("direct")
    assert back["n"].dtype == "Int64"
    assert back["ok"].dtype == "boolean"
    assert back["n"].isna().tolist() == back["ok"].isna().tolist() == [True, False]
    assert (back["n"][1], back["ok"][1]) == (2, True)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([2, 0], [2, 0]),
        ([1, 1, -1], [1, 1, 2]),
        (slice(1, None), [1, 2]),
        ([True, False, True], [0, 2]),
        (np.array([2]), [2]),
        ([], []),
    ],
)
def test_rows_are_selected_like_an_array(tmp_path, rows, expected):
    whole = Ragged(torch.arange(6.0)[:, None], torch.tensor([2, 3, 1]))
    write(tmp_path / "s.h5", whole)
    got = read(tmp_path / "s.h5", rows)
    assert [row.flatten().tolist() for row in got.split()] == [whole.split()[i].flatten().tolist() for i in expected]


def test_a_token_too_large_for_a_chunk_is_kept_uncompressed(tmp_path):
    wide = Ragged(noise(torch.float32, (2, 2**21 + 1)), torch.tensor([1, 1]))
    huge = Ragged(noise(torch.uint8, (1, 2**24 + 1)), torch.tensor([1]))
    for name, ragged, chunked in (("wide.h5", wide, True), ("huge.h5", huge, False)):
        write(tmp_path / name, ragged, compression="bitshuffle")
        assert same(read(tmp_path / name).values, ragged.values)
        with h5py.File(tmp_path / name) as file:
            assert (file[f"conditions/direct/acts/{SITE}/image/values"].chunks is not None) == chunked


def test_compression_cuts_values_into_chunks_of_a_megabyte_and_saves_room(tmp_path):
    ragged = Ragged(torch.zeros(8192, 256), torch.full((8,), 1024))
    write(tmp_path / "plain.h5", ragged)
    write(tmp_path / "packed.h5", ragged, compression="bitshuffle")
    with h5py.File(tmp_path / "packed.h5") as file:
        group = file[f"conditions/direct/acts/{SITE}/image"]
        assert group["values"].chunks == (1024, 256)
        plist = group["values"].id.get_create_plist()
        assert [plist.get_filter(k)[0] for k in range(plist.get_nfilters())] == [32008, 3]
        assert group["lengths"].chunks is None
    assert (tmp_path / "plain.h5").stat().st_size > 2**23 > 20 * (tmp_path / "packed.h5").stat().st_size
    assert same(read(tmp_path / "packed.h5").values, ragged.values)


def bytes_read(call):
    """How many bytes this process reads from files meanwhile."""
    before = _counted()
    call()
    return _counted() - before


def _counted():
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what is read in /proc, which is not there")
@pytest.mark.parametrize("compression", [None, "bitshuffle"])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_partial_read_touches_only_its_bytes(tmp_path, compression, shards):
    """A row is 1 of 160 parts of what is there; only its bytes are read, and what says where they are."""
    schema = Schema(model="m", task="t", conditions=("direct", "cascaded"))
    row = 2**17
    with Shards(tmp_path / "s.h5", schema, rows=32, rows_per_shard=32 // shards, compression=compression) as plan:
        for number in plan.missing():
            with plan.create(number) as writer:
                numbers = plan.rows_of(number)
                for condition in schema.conditions:
                    acts = {}
                    for seed, key in enumerate([(SITE, "image"), (SITE, "last"), ("lm.1.mlp_out", "image")]):
                        values = noise(torch.uint8, (len(numbers) * 32, row // 32), seed=seed + 10 * number)
                        acts[key] = Ragged(values, torch.full((len(numbers),), 32))
                    writer.append(condition, pd.DataFrame({"id": [str(k) for k in numbers]}), acts)
    assert plan.join()
    chunk = 0 if compression is None else 2 * 2**20
    with open_store(tmp_path / "s.h5") as store:
        store.read(SITE, "image", "direct", [0, 9, 17, 25])  # opens the files, so that their manifests are not counted
        one = bytes_read(lambda: store.read(SITE, "last", "cascaded", [9]))
        some = bytes_read(lambda: store.read("lm.1.mlp_out", "image", "direct", [9, 17, 18]))
        whole = bytes_read(lambda: store.read(SITE, "image", "direct"))
        table = bytes_read(lambda: store.rows("direct"))
    slack = 2**15  # lengths, and what HDF5 needs to find a dataset
    assert row <= one + chunk <= row + 2 * chunk + slack
    assert one <= row + chunk + slack
    assert some <= 3 * row + 2 * chunk + 2 * slack
    assert table <= slack
    assert whole >= 32 * row  # the control: reading is counted


def test_another_process_opens_the_same_store(joined, monkeypatch, tmp_path):
    with open_store(joined) as store:
        sent = pickle.dumps(store)
        monkeypatch.chdir(tmp_path)
        with pickle.loads(sent) as other:
            where = "lm.1.mlp_out", "last", "direct"
            assert other.sites == store.sites
            assert torch.equal(other.read(*where).values, store.read(*where).values)


def test_threads_may_read_one_store(joined, monkeypatch):
    """Also where fewer shards stay open than there are."""
    monkeypatch.setattr("seamscope.activations._store._OPEN", 1)
    with open_store(joined) as store, ThreadPoolExecutor(4) as pool:
        cell = ("lm.1.mlp_out", "last", "direct")
        expected = store.read(*cell)
        wanted = [[k % 7, (k * 3) % 7] for k in range(60)]
        for rows, got in zip(wanted, pool.map(lambda rows: store.read(*cell, rows), wanted), strict=True):
            assert same(got.values, expected[rows].values)


@pytest.mark.parametrize("nbytes", [1, 40, 10**9])
def test_a_cell_is_streamed_in_blocks_of_bounded_size(joined, nbytes):
    """End to end they are the whole; none has more bytes than asked for, give or take a row."""
    most = 0
    with open_store(joined) as store:
        for condition in store.conditions:
            for site, span in store.cells(condition):
                whole = store.read(site, span, condition)
                parts = list(store.stream(site, span, condition, nbytes=nbytes))
                assert [rows.start for rows, _ in parts] == [0, *(rows.stop for rows, _ in parts[:-1])]
                assert parts[-1][0].stop == len(whole)
                assert same(torch.cat([acts.values for _, acts in parts]), whole.values)
                assert torch.equal(torch.cat([acts.lengths for _, acts in parts]), whole.lengths)
                token = whole.values[:1].numel() * whole.values.element_size()
                longest = int(whole.lengths.max()) * token
                assert all(acts.values.shape[0] * token <= nbytes + longest for _, acts in parts)
                most = max(most, len(parts))
        assert (most == 1) == (nbytes == 10**9)
