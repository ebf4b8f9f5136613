"""A file is data: what a store never contains is refused in one line, and damage is found by name."""

import hashlib
import json

import h5py
import numpy as np
import pytest

from seamscope.activations import open_store
from seamscope.hooks import SiteError, SpanError, StoreError

SITE = "lm.0.resid_post"
VALUES = f"conditions/direct/acts/{SITE}/last/values"


def refusal(path):
    with pytest.raises(StoreError) as caught:
        open_store(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith((str(path), "there is no store"))
    return message


def replace(path, name, make):
    """Put something else in the place of a dataset or group."""
    with h5py.File(path, "r+") as file:
        del file[name]
        make(file)


def reseal(path, change):
    """Change the manifest and give it a checksum that fits, as an attacker would."""
    with h5py.File(path, "r+") as file:
        entries = json.loads(file["manifest"][()].tobytes())
        change(file, entries)
        raw = json.dumps(entries).encode()
        del file["manifest"]
        file["manifest"] = np.frombuffer(raw, "u1")
        file.attrs["manifest_sha256"] = np.bytes_(hashlib.sha256(raw).hexdigest())


def byte_offset(path, name):
    with h5py.File(path) as file:
        return file[name].id.get_chunk_info(0).byte_offset


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))


def test_what_is_not_there_or_not_ours(tmp_path):
    assert "there is no store" in refusal(tmp_path / "none.h5")
    assert "there is no store" in refusal(tmp_path)
    (tmp_path / "text.h5").write_text("hello")
    assert "cannot be read as a store" in refusal(tmp_path / "text.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    assert "is not a seamscope store" in refusal(tmp_path / "other.h5")


def test_a_truncated_file(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refusal(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", "other", "is not a seamscope store"),
        ("format", np.array([b"seamscope-store"]), "is not a seamscope store"),
        ("format", "seamscope-store", "is not a seamscope store"),  # of variable length
        ("format_version", 2, "has format 2, newer than 1: read it with a newer seamscope"),
        ("format_version", np.bytes_("1"), "has no valid format version but '1'"),
        ("format_version", 0, "has no valid format version but 0"),
        ("complete", 0, "was never completed"),
        ("manifest_sha256", "0", "'/manifest' differs from its checksum"),
    ],
)
def test_headers(path, name, value, message):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    assert message in refusal(path)


@pytest.mark.parametrize(
    "link", [h5py.ExternalLink("/etc/hostname", "/x"), h5py.SoftLink("/schema")], ids=["external", "soft"]
)
def test_links(path, link):
    replace(path, VALUES, lambda file: file.__setitem__(VALUES, link))
    assert f"'/{VALUES}' is a soft or external link" in refusal(path)


def test_hard_links_that_make_a_circle(path):
    with h5py.File(path, "r+") as file:
        file["conditions/again"] = file["conditions/direct"]
    assert "is linked twice" in refusal(path)
    with h5py.File(path, "r+") as file:
        del file["conditions/again"]
        file["conditions/direct/up"] = file["conditions"]
    assert "is linked twice" in refusal(path)


def virtual(file):
    layout = h5py.VirtualLayout((3, 2, 3), "<f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (3, 2, 3))
    file.create_virtual_dataset(VALUES, layout)


def external(file):
    file.create_dataset(VALUES, (3, 2, 3), "<f4", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)])


ODD_DATASETS = {
    "virtual": (virtual, "keeps its data in other files"),
    "external": (external, "keeps its data in other files"),
    "text": (lambda f: f.create_dataset(VALUES, data=["x"]), "has the type object"),
    "opaque": (lambda f: f.create_dataset(VALUES, data=np.zeros(3, "V2")), "has the type |V2"),
    "reference": (lambda f: f.create_dataset(VALUES, (2,), h5py.ref_dtype), "has the type object"),
    "compound": (lambda f: f.create_dataset(VALUES, (2,), [("a", "f4")]), "has the type [("),
    "enum": (lambda f: f.create_dataset(VALUES, data=np.zeros(2, bool)), "has the type bool"),
    "big-endian": (lambda f: f.create_dataset(VALUES, data=np.zeros(2, ">f4")), "has the type >f4"),
    "compressed": (
        lambda f: f.create_dataset(VALUES, data=np.zeros((3, 2, 3), "f4"), compression="gzip"),
        "is filtered or compressed",
    ),
    "enormous": (
        lambda f: f.create_dataset(VALUES, (10**9, 10**9), "<f4", chunks=(1, 1024)),
        "declares the shape (1000000000, 1000000000) but holds fewer bytes",
    ),
    "scalar": (lambda f: f.create_dataset(VALUES, data=np.float32(1)), "declares the shape ()"),
    "type": (lambda f: f.__setitem__(VALUES, np.dtype("f4")), "is neither group nor dataset"),
}


@pytest.mark.parametrize(("make", "message"), ODD_DATASETS.values(), ids=ODD_DATASETS)
def test_datasets_that_a_store_never_contains(path, make, message):
    replace(path, VALUES, make)
    found = refusal(path)
    assert message in found
    assert VALUES in found


def test_groups_without_end(path):
    with h5py.File(path, "r+") as file:
        file.create_group("/".join("x" * 40))
    assert "lies too deep" in refusal(path)


def test_file_and_manifest_must_name_the_same_datasets(path):
    with h5py.File(path, "r+") as file:
        file["extra"] = np.zeros(1, "u1")
    assert "'/extra' stands in only one of file and manifest" in refusal(path)
    replace(path, "extra", lambda file: file.__delitem__(VALUES))
    assert f"'/{VALUES}' stands in only one" in refusal(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "float32", "shape": [3, 2, 4], "sha256": ""},
        {"dtype": "bfloat16", "shape": [3, 2, 3], "sha256": ""},
        {"dtype": "nonsense", "shape": [3, 2, 3], "sha256": ""},
        {"dtype": ["float32"], "shape": 3},
        None,
    ],
)
def test_types_and_shapes_must_be_the_manifests(path, entry):
    reseal(path, lambda _, entries: entries.__setitem__(f"/{VALUES}", entry))
    assert f"'/{VALUES}' has not the type and shape that the manifest gives it" in refusal(path)


@pytest.mark.parametrize("raw", [b"[]", b"{", b"\xff", b"[" * 100_000], ids=["list", "broken", "bytes", "deep"])
def test_a_manifest_that_is_no_table(path, raw):
    with h5py.File(path, "r+") as file:
        del file["manifest"]
        file["manifest"] = np.frombuffer(raw, "u1")
        file.attrs["manifest_sha256"] = np.bytes_(hashlib.sha256(raw).hexdigest())
    assert "manifest" in refusal(path)


def test_a_dataset_in_a_strange_place(path):
    def move(file, entries):
        file.move(VALUES, "conditions/direct/else")
        entries["/conditions/direct/else"] = entries.pop(f"/{VALUES}")

    reseal(path, move)
    assert "'/conditions/direct/else' has no place in a store" in refusal(path)


def test_offsets_that_do_not_fit(path):
    offsets = f"conditions/direct/acts/{SITE}/last/offsets"
    with h5py.File(path, "r+") as file:
        file[offsets][:] = [0, 3, 2, 3]
    with open_store(path) as store, pytest.raises(StoreError, match=r"offsets of .* do not fit its values"):
        store.read(SITE, "last", "direct")


def test_text_whose_offsets_do_not_fit(path):
    with h5py.File(path, "r+") as file:
        file["conditions/direct/rows/id/offsets"][:] = [0, 1, 9**9, 5]
    with open_store(path) as store, pytest.raises(StoreError, match="offsets of a text column"):
        store.rows("direct")


@pytest.mark.parametrize(
    ("name", "at"), [(VALUES, 0), (VALUES, 71), ("conditions/direct/rows/id/values", 0), ("schema", 14)]
)
def test_a_flipped_bit_is_found_by_name(path, name, at):
    with open_store(path) as store:
        assert store.verify() == 22
    flip(path, byte_offset(path, name) + at)
    with open_store(path) as store, pytest.raises(StoreError, match="1 datasets differ .*: /" + name) as caught:
        store.verify()
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_the_manifest_is_found_at_once(path):
    flip(path, byte_offset(path, "manifest") + 5)
    assert "'/manifest' differs from its checksum" in refusal(path)


def test_any_flipped_byte_gives_our_error_or_the_same_data(path):
    """Damage anywhere in the file never shows as another library's exception."""
    clean = path.read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for offset in rng.integers(0, len(clean), 150):
        flip(path, int(offset))
        try:
            with open_store(path) as store:
                store.verify()
                store.rows("direct")
                store.read(SITE, "last", "direct")
        except StoreError as error:
            messages.append(str(error))
        path.write_bytes(clean)
    assert len(messages) > 5
    assert not any("\n" in message for message in messages)


def test_names_that_are_not_there(path):
    with open_store(path) as store:
        with pytest.raises(SiteError, match=r"unknown site 'lm.1.resid_post'.*lm.0.resid_post"):
            store.read("lm.1.resid_post", "last", "direct")
        with pytest.raises(SpanError, match=r"unknown span 'lats'.*last"):
            store.read(SITE, "lats", "direct")
        with pytest.raises(StoreError, match=r"unknown condition 'cascaded'.*direct"):
            store.read(SITE, "last", "cascaded")
        with pytest.raises(StoreError, match="cannot select those of its 3 rows"):
            store.read(SITE, "last", "direct", [3])
        with pytest.raises(StoreError, match="cannot select those of its 3 rows"):
            store.read(SITE, "last", "direct", [0.5])
    with pytest.raises(StoreError, match="is closed"):
        store.rows("direct")


def test_two_readers_at_once(path):
    with open_store(path) as one, open_store(path) as two:
        assert one.verify() == two.verify()
    assert "1 sites" in repr(one)
