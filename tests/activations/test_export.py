"""Exports are read with safetensors, zarr and json alone: bit for bit what was stored, as a whole or not at all."""

import json
import os
import sys
from hashlib import sha256
from urllib.parse import unquote

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from seamscope.activations import Schema, Shards, _sinks, _trust, create_store, export_store, open_store
from seamscope.activations._partial import new_folder
from seamscope.activations._sinks import safe_name
from seamscope.hooks import Ragged, SiteError, SpanError, StoreError

from .making import export_within, noise, same

zarr = pytest.importorskip("zarr", reason="zarr 3.1 needs Python 3.11")

DTYPES = [
    *(torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
]
FORMS = ("safetensors", "zarr")
SITE = "lm.0.resid_post"
ODD = (
    "%",
    "..x",
    "...",
    "zarr.json",
    "__meta__",
    "-rf",
    "A",
    "a",
    "♥ é",
    "x" * 300,
    "x" * 301,
    "a\\b",
    "~",
    "c:",
    "nul.",
)


def write(place, cells, condition="direct", table=None):
    rows = table or {"id": [str(k) for k in range(len(next(iter(cells.values()))))]}
    with create_store(place, Schema(model="m", task="t", conditions=(condition,), provenance={"é": [1]})) as writer:
        writer.append(condition, pd.DataFrame(rows), cells)


def export(store, path, **options):
    with open_store(store) as opened:
        export_store(opened, path, **options)
    return path


def refusal(store, path, error=StoreError, **options):
    """The one line of a refusal, after which everything is as it was."""
    before = tree(store.parent)
    with pytest.raises(error) as caught:
        export(store, path, **options)
    assert tree(store.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


def read(path, form, condition, site, span):
    """Values and lengths of a cell, found by the index, read by the form's own library."""
    if form == "safetensors":
        index = json.loads((path / "index.json").read_text(encoding="utf-8"))
        tensors = load_file(path / index["conditions"][condition]["acts"][site][span])
        return tensors[f"{span}.values"], tensors[f"{span}.lengths"]
    group = zarr.open_group(path, mode="r")
    cell = group[group.attrs["index"]["conditions"][condition]["acts"][site][span]]
    values = torch.from_numpy(cell["values"][:])
    dtype = cell["values"].attrs["dtype"]
    return values.view(torch.bfloat16) if dtype == "bfloat16" else values, torch.from_numpy(cell["lengths"][:])


@pytest.fixture
def shards(tmp_path):
    """A store of four shards under two conditions; one cell is missing from the second of them."""
    schema = Schema(model="m", task="t", conditions=("direct", "cascaded"))
    with Shards(tmp_path / "run.h5", schema, rows=7, rows_per_shard=2) as made:
        for number in made.missing():
            rows = [str(row) for row in made.rows_of(number)]
            lengths = torch.tensor([(number + k) % 3 for k in range(len(rows))])
            acts = {(SITE, "image"): Ragged(noise(torch.bfloat16, (int(lengths.sum()), 2, 3), number), lengths)}
            if number != 1:
                acts["projector.out", "last"] = Ragged(
                    noise(torch.bool, (len(rows), 4), number), torch.ones(len(rows), dtype=torch.long)
                )
            with made.create(number) as writer:
                for condition in schema.conditions:
                    writer.append(condition, pd.DataFrame({"id": rows}), acts)
        assert made.join()
    return tmp_path / "run.h5"


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_shape_type_length_and_name_comes_back_bit_for_bit(tmp_path_factory, form, data):
    name = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=6)
    name = name.filter(lambda text: text not in {".", ".."}) | st.sampled_from(ODD)
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=5)))
    feature = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    keys = data.draw(st.lists(st.tuples(name, name), min_size=1, max_size=3, unique=True))
    dtypes = data.draw(st.lists(st.sampled_from(DTYPES), min_size=len(keys), max_size=len(keys)))
    condition = data.draw(name)
    cells = {
        key: Ragged(noise(dtype, (int(lengths.sum()), *feature), seed), lengths)
        for seed, (key, dtype) in enumerate(zip(keys, dtypes, strict=True))
    }
    folder = tmp_path_factory.mktemp("s")
    write(folder / "s.h5", cells, condition)
    path = export(folder / "s.h5", folder / "out", form=form)
    for (site, span), ragged in cells.items():
        values, found = read(path, form, condition, site, span)
        assert same(values, ragged.values)
        assert same(found, lengths.int())
    assert {entry.name for entry in folder.iterdir()} == {"s.h5", "out"}


@pytest.mark.parametrize("form", FORMS)
def test_shards_come_end_to_end_and_rows_without_tokens_have_none(tmp_path, shards, form):
    path = export(shards, tmp_path / "out", form=form)
    with open_store(shards) as store:
        for condition in store.conditions:
            for site, span in store.cells(condition):
                values, lengths = read(path, form, condition, site, span)
                expected = store.read(site, span, condition)
                assert same(values, expected.values)
                assert lengths.tolist() == expected.lengths.tolist()
    assert read(path, form, "direct", "projector.out", "last")[1].tolist() == [1, 1, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("form", FORMS)
def test_blocks_that_end_anywhere_make_no_difference_and_bound_the_memory(tmp_path, shards, form, monkeypatch):
    whole = tree(export(shards, tmp_path / "whole", form=form))
    blocks = []
    original = getattr(_sinks, form.capitalize()).write

    def spy(self, tensor, start, block):
        blocks.append(block.nbytes)
        original(self, tensor, start, block)

    monkeypatch.setattr(_trust, "STEP", 24)
    monkeypatch.setattr(getattr(_sinks, form.capitalize()), "write", spy)
    assert tree(export(shards, tmp_path / "small", form=form)) == whole
    assert max(blocks) == 24
    assert len(blocks) > 20


def test_more_shards_than_files_that_may_be_open(tmp_path):
    resource = pytest.importorskip("resource")
    schema = Schema(model="m", task="t", conditions=("direct",))
    count = 80
    with Shards(tmp_path / "run.h5", schema, rows=count, rows_per_shard=1) as made:
        for number in made.missing():
            with made.create(number) as writer:
                one = Ragged(torch.tensor([[float(number)]]), torch.tensor([1]))
                writer.append("direct", pd.DataFrame({"id": [str(number)]}), {(SITE, "last"): one})
        made.join()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_store(tmp_path / "run.h5") as store:
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, before[1]))
        try:
            export_store(store, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert read(tmp_path / "out", "safetensors", "direct", SITE, "last")[0].flatten().tolist() == [*range(count)]


def test_zarr_is_read_in_part_and_keeps_what_it_takes_for_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(_sinks, "_CHUNK", 64)
    zeros = torch.full((40, 4), -0.0)
    zeros[:8] = 0.0
    write(tmp_path / "s.h5", {(SITE, "image"): Ragged(zeros, torch.tensor([40]))})
    path = export(tmp_path / "s.h5", tmp_path / "out", form="zarr")
    array = zarr.open_group(path, mode="r")[f"conditions/direct/acts/{SITE}/image/values"]
    assert array.chunks == (4, 4)
    assert np.signbit(array[:]).all(axis=1).tolist() == [False] * 8 + [True] * 32
    chunks = [file for file in (path / array.path / "c").rglob("*") if file.is_file()]
    assert len(chunks) == 10
    for file in chunks:
        if file.parent.name != "5":  # a partial read opens no other chunk
            file.unlink()
    assert np.signbit(array[20:24]).all()
    assert not np.signbit(array[24:28]).any()  # gone, which shows that the read above was partial


def test_safetensors_are_aligned_and_read_in_part(tmp_path):
    cells = {
        (SITE, "byte"): Ragged(noise(torch.uint8, (3, 1)), torch.tensor([3])),
        (SITE, "double"): Ragged(noise(torch.float64, (3, 1)), torch.tensor([3])),
        (SITE, "none"): Ragged(noise(torch.float16, (0, 2)), torch.tensor([0])),
    }
    write(tmp_path / "s.h5", cells)
    file = export(tmp_path / "s.h5", tmp_path / "out") / f"conditions/direct/acts/{SITE}.safetensors"
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    for name, entry in header.items():
        if name != "__metadata__":
            width = {"U8": 1, "F64": 8, "F16": 2, "I32": 4}[entry["dtype"]]
            assert (8 + size + entry["data_offsets"][0]) % width == 0
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"condition": "direct", "site": SITE}
        assert same(opened.get_slice("double.values")[1:2], cells[SITE, "double"].values[1:2])


def test_the_tables_are_exact(tmp_path):
    table = {
        "id": ["a", "♥\n\u2028", "c" * 1000],
        "said": ["", None, "\0x"],
        "n": pd.array([1, None, 2**63 - 1], "Int64"),
        "ok": [True, False, True],
        "score": [0.1, float("-inf"), None],
        "var:card.0.rank": [None, None, None],
    }
    expected = {
        **table,
        "n": [1, None, 2**63 - 1],
    }
    write(tmp_path / "s.h5", {(SITE, "last"): Ragged(torch.zeros(3, 1), torch.tensor([1, 1, 1]))}, table=table)
    with open_store(tmp_path / "s.h5") as store:
        schema = json.loads(store.schema.to_json())
    path = export(tmp_path / "s.h5", tmp_path / "lines")
    lines = (path / "conditions/direct/rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {name: column[k] for name, column in expected.items()} for k in range(3)
    ]
    assert json.loads((path / "schema.json").read_text(encoding="utf-8")) == schema

    group = zarr.open_group(export(tmp_path / "s.h5", tmp_path / "zarr", form="zarr"), mode="r")
    columns = group.attrs["index"]["conditions"]["direct"]["rows"]
    assert list(columns) == list(table)
    for name, column in expected.items():
        values, missing = (group[f"{columns[name]}/{part}"][:].tolist() for part in ("values", "missing"))
        assert [None if gap else value for value, gap in zip(values, missing, strict=True)] == column
    assert group.attrs["schema"] == schema
    assert group["conditions/direct/rows/n/values"].dtype == "int64"


@pytest.mark.parametrize("form", FORMS)
def test_only_what_was_asked_for_is_written(tmp_path, shards, form):
    path = export(shards, tmp_path / "out", form=form, conditions="direct", sites=["lm.*"], spans=["im*"])
    found = [name for name in tree(path) if "/acts/" in name and name.endswith((".safetensors", "values"))]
    suffix = ".safetensors" if form == "safetensors" else "/image/values"
    assert found == [f"conditions/direct/acts/{SITE}{suffix}"]
    with open_store(shards) as store:
        assert same(read(path, form, "direct", SITE, "image")[0], store.read(SITE, "image", "direct").values)


def test_what_does_not_exist_is_refused_with_the_nearest(tmp_path, shards):
    out = tmp_path / "new" / "out"
    out.parent.mkdir()
    assert "unknown site 'lm.0.resid'" in refusal(shards, out, SiteError, sites="lm.0.resid")
    assert "unknown span 'imag'; nearest: image" in refusal(shards, out, SpanError, spans=["imag"])
    assert "unknown condition 'cot'" in refusal(shards, out, conditions=["cot"])
    assert "unknown form 'npz'; one of: safetensors, zarr" in refusal(shards, out, form="npz")
    assert "none of these sites at these spans" in refusal(shards, out, sites="projector.out", spans="image")


@pytest.mark.parametrize("form", FORMS)
def test_what_stands_there_is_left_alone(tmp_path, shards, form):
    out = tmp_path / "new" / "out"
    out.mkdir(parents=True)
    assert f"{out} exists already" in refusal(shards, out, form=form)
    (out.parent / "file").write_text("mine")
    assert "exists already" in refusal(shards, out.parent / "file", form=form)
    assert "cannot be written" in refusal(shards, out.parent / "file" / "below", form=form)
    (out.parent / "other.partial").mkdir()
    (out.parent / "other.partial" / "mine").touch()
    assert "was left by an export that was ended early" in refusal(shards, out.parent / "other", form=form)
    assert (out.parent / "other.partial" / "mine").exists()
    with new_folder(out.parent / "busy.partial"):
        assert "another process exports to this place" in refusal(shards, out.parent / "busy", form=form)
    (out.parent / "link").symlink_to("nowhere")
    assert "exists already" in refusal(shards, out.parent / "link", form=form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["values", "lengths", "rows"])
def test_damage_is_not_passed_on(tmp_path, shards, form, what):
    file = shards if what == "rows" else shards.with_suffix(".shards") / "00002.h5"
    path = "conditions/direct/rows/id/values" if what == "rows" else f"conditions/direct/acts/{SITE}/image/{what}"
    with h5py.File(file) as opened:
        offset = opened[path].id.get_offset()
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(raw)
    told = refusal(shards, tmp_path / "new" / "out", form=form)
    assert f"{file} is damaged" in told
    assert path.rpartition("/")[0] in told


def reseal(file, change):
    """Change a file and its manifest together, as an attacker would."""
    with h5py.File(file, "r+") as opened:
        manifest = json.loads(opened["manifest"][()].tobytes())
        change(opened, manifest)
        raw = json.dumps(manifest).encode()
        del opened["manifest"]
        opened["manifest"] = np.frombuffer(raw, "u1")
        opened.attrs["manifest_sha256"] = np.bytes_(sha256(raw).hexdigest())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("tokens", "told"), [(1, "do not hold all"), (-1, "does not go with")])
def test_a_file_that_tells_of_more_or_less_than_its_shards_hold(tmp_path, shards, form, tokens, told):
    def lie(opened, manifest):
        manifest["virtual"][f"/conditions/direct/acts/{SITE}/image/values"]["shape"][0] += tokens

    reseal(shards, lie)
    assert told in refusal(shards, tmp_path / "out", form=form)


@pytest.mark.parametrize("form", FORMS)
def test_no_room_is_taken_for_what_a_file_only_says_it_holds(tmp_path, monkeypatch, form):
    place, name = tmp_path / "s.h5", f"conditions/direct/acts/{SITE}/last/values"
    write(place, {(SITE, "last"): Ragged(torch.ones(2, 4), torch.tensor([1, 1]))})

    def lie(opened, manifest):
        del opened[name]
        opened.create_dataset(name, (10**7, 4), "<f4").attrs["dtype"] = np.bytes_("float32")
        manifest["datasets"][f"/{name}"]["shape"] = [10**7, 4]

    reseal(place, lie)
    taken = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *size: taken.append(size))
    assert "declares the shape (10000000, 4) but holds fewer bytes" in refusal(place, tmp_path / "out", form=form)
    assert not taken


def test_lengths_and_truth_values_that_cannot_be(tmp_path):
    def put(name, value):
        def change(opened, manifest):
            opened[name][0] = value
            manifest["datasets"][f"/{name}"]["sha256"] = sha256(opened[name][()].tobytes()).hexdigest()

        return change

    write(tmp_path / "s.h5", {(SITE, "last"): Ragged(torch.tensor([[False], [True]]), torch.tensor([1, 1]))})
    group = f"conditions/direct/acts/{SITE}/last"
    reseal(tmp_path / "s.h5", put(f"{group}/values", 2))
    for form in FORMS:
        path = export(tmp_path / "s.h5", tmp_path / form, form=form)
        assert read(path, form, "direct", SITE, "last")[0].tolist() == [[True], [True]]
    raw = (tmp_path / f"safetensors/{group.rpartition('/')[0]}.safetensors").read_bytes()
    assert raw.endswith(b"\1\1")  # other bytes are not truth values that every tool can read
    reseal(tmp_path / "s.h5", put(f"{group}/lengths", 5))
    assert "do not fit its values" in refusal(tmp_path / "s.h5", tmp_path / "out")


@pytest.mark.parametrize("form", FORMS)
def test_a_shard_that_is_lost_or_another_meanwhile(tmp_path, shards, form):
    lost = shards.with_suffix(".shards") / "00001.h5"
    with open_store(shards) as store:
        lost.rename(tmp_path / "kept.h5")
        with pytest.raises(StoreError, match=r"00001.h5 is missing"):
            export_store(store, tmp_path / "out", form=form)
        lost.write_bytes((lost.parent / "00000.h5").read_bytes())
        with pytest.raises(StoreError, match=r"00001.h5 is (damaged|not the file)"):
            export_store(store, tmp_path / "out", form=form)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("form", FORMS)
def test_an_interrupt_leaves_nothing(tmp_path, shards, form, monkeypatch):
    def interrupt(self, tensor, start, block):
        raise KeyboardInterrupt

    monkeypatch.setattr(getattr(_sinks, form.capitalize()), "write", interrupt)
    with open_store(shards) as store, pytest.raises(KeyboardInterrupt):
        export_store(store, tmp_path / "new" / "deep" / "out", form=form)
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing_and_is_told(tmp_path, children):
    write(tmp_path / "s.h5", {(SITE, "image"): Ragged(torch.ones(100, 100), torch.tensor([100]))})
    out = tmp_path / "new" / "out"
    for form in FORMS:
        code, said = children.run(export_within, tmp_path / "s.h5", out, 20_000, form)
        assert code == 2, said
        assert said.startswith(f"StoreError: {out} cannot be written: ")
        assert "File too large" in said
        assert said.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.h5"]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system does not take room for files")
def test_room_is_taken_before_anything_is_read(tmp_path, monkeypatch):
    taken = []

    def see(self, tensor, start, block):
        taken.append(sum(512 * file.stat().st_blocks for file in tmp_path.rglob("*.safetensors")))

    write(tmp_path / "s.h5", {(SITE, "image"): Ragged(torch.ones(100, 1000), torch.tensor([100]))})
    monkeypatch.setattr(_sinks.Safetensors, "write", see)
    export(tmp_path / "s.h5", tmp_path / "out")
    assert taken[0] >= 4 * 100 * 1000


@pytest.mark.parametrize("version", [None, "2.18.7", "3.0.10"])
def test_zarr_that_is_missing_or_old_is_told_in_one_line(tmp_path, shards, version, monkeypatch):
    if version is None:
        monkeypatch.setitem(sys.modules, "zarr", None)
    else:
        monkeypatch.setattr(zarr, "__version__", version)
    told = refusal(shards, tmp_path / "new" / "out", form="zarr")
    assert told == "an export to zarr needs zarr 3.1 or newer: pip install 'seamscope[export]'"
    export(shards, tmp_path / "plain")


def test_names_become_safe_and_differ_on_any_file_system():
    safe = [safe_name(name) for name in ODD]
    assert len({name.lower() for name in safe}) == len(ODD)
    for name, made in zip(ODD, safe, strict=True):
        assert len(made) <= 120
        assert made.isascii()
        assert not {*made} & set('/\\:*?"<>| ')
        assert made[0] not in "._-"
        assert made[-1] not in ". "
        assert made != "zarr.json"
        assert unquote(made) == name or len(name) > 100
    assert safe_name(SITE) == SITE
    assert safe_name("image.object.0") == "image.object.0"
    assert safe_name("objects+reading") == "objects+reading"
    assert safe_name("x" * 300) != safe_name("x" * 301)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1), unique=True))
def test_no_two_names_become_one(names):
    assert len({safe_name(name).lower() for name in names}) == len(names)
