"""A file is data and may come from anywhere: what it may contain is checked before anything in it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import prod
from typing import Any, Final

import h5py
import numpy as np

from seamscope.activations._bits import Array
from seamscope.activations._compression import FILTERS, HIGHEST_RATIO, LARGEST_CHUNK, require_filter
from seamscope.activations._file import Entry
from seamscope.activations._layout import FILE_DTYPES, FORMAT, FORMAT_VERSION, MANIFEST, is_tokens
from seamscope.activations._schema import parse_json
from seamscope.hooks import StoreError

STEP: Final = 2**24  # bytes that are in memory at once
_DEEPEST: Final = 8  # groups inside groups; the layout has five
_LONGEST: Final = 64  # bytes of an attribute; a sha256 in hexadecimal
_WIDEST: Final = 8  # dimensions of a dataset; an activation has three
_DTYPES: Final = {np.dtype(name) for name in FILE_DTYPES.values()}


def check_header(file: h5py.File) -> None:
    """Raise `StoreError` unless the file is a finished store of a format that we read."""
    if attribute(file, "format") != FORMAT:
        raise StoreError("is not a seamscope store")
    found = attribute(file, "format_version")
    if not isinstance(found, int) or found < 1:
        raise StoreError(f"has no valid format version but {found!r}")
    if found > FORMAT_VERSION:
        raise StoreError(f"has format {found}, newer than {FORMAT_VERSION}: read it with a newer seamscope")
    if found < FORMAT_VERSION:
        raise StoreError(f"has format {found}, which was given up before the first release: capture it anew")
    if attribute(file, "complete") != 1:
        raise StoreError("was never completed: its writer stopped before the end")


def read_text(file: h5py.File, name: str) -> bytes:
    """The bytes of `/schema` or `/manifest`."""
    return bytes(plain_dataset(file, f"/{name}")[()].tobytes())


def read_manifest(file: h5py.File) -> dict[str, Any]:
    """The manifest, compared with its checksum; what it says of the datasets is checked when they are read."""
    if MANIFEST not in file:
        raise StoreError("has no manifest")
    raw = read_text(file, MANIFEST)
    if hashlib.sha256(raw).hexdigest() != attribute(file, "manifest_sha256"):
        raise StoreError("is damaged: dataset '/manifest' differs from its checksum")
    manifest = parse_json("manifest", raw)
    match manifest:
        case {"datasets": dict(real), "virtual": dict(virtual)}:
            for path, entry in (*real.items(), *virtual.items()):
                _check_entry(path, entry)
            return dict(manifest)
    raise StoreError("has a manifest without datasets")


def _check_entry(path: str, entry: Any) -> None:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape]} if dtype in FILE_DTYPES:
            if shape and len(shape) <= _WIDEST and all(type(size) is int and size >= 0 for size in shape):
                return
    raise StoreError(f"says of dataset {path!r} what cannot be")


def plain_dataset(file: h5py.File, path: str, entry: Entry | None = None) -> h5py.Dataset:
    """Find a dataset whose data are plain, inside the file, and as the manifest says; `StoreError` otherwise."""
    here: Any = file
    for part in path.split("/")[1:]:
        if not isinstance(here, h5py.Group) or part not in here:
            raise StoreError(f"lacks the dataset {path!r}")
        here = _member(here, part)
    if not isinstance(here, h5py.Dataset):
        raise StoreError(f"{path!r} is no dataset")
    _check_plain(path, here)
    if entry is not None:
        _check_fits(path, here, entry)
    return here


def virtual_dataset(file: h5py.File, path: str, entry: Entry) -> h5py.Dataset:
    """Find a virtual dataset; it may be looked at, not read."""
    group, _, name = path.rpartition("/")
    here: Any = file.get(group)
    if here is None or name not in here or not isinstance(here[name], h5py.Dataset) or not here[name].is_virtual:
        raise StoreError(f"lacks the virtual dataset {path!r}")
    _check_fits(path, here[name], entry)
    return here[name]


def walk(group: h5py.Group, seen: set[Any] | None = None, depth: int = 0) -> Iterator[str]:
    """The path of every dataset of the tree; raises `StoreError` at what a store never contains."""
    seen = set() if seen is None else seen
    for name in group:
        path = f"{group.name.rstrip('/')}/{name}"
        child = _member(group, name)
        address = h5py.h5o.get_info(child.id).addr
        if address in seen or depth > _DEEPEST:
            raise StoreError(f"{path!r} is linked twice or lies too deep")
        seen.add(address)
        if isinstance(child, h5py.Group):
            yield from walk(child, seen, depth + 1)
        elif isinstance(child, h5py.Dataset):
            yield path
        else:
            raise StoreError(f"{path!r} is neither group nor dataset")


def blocks(data: h5py.Dataset) -> Iterator[Array]:
    """A dataset, about `STEP` bytes at a time."""
    rows = max(1, STEP // max(1, data.dtype.itemsize * prod(data.shape[1:])))
    for start in range(0, len(data), rows):
        yield data[start : start + rows]


def checksum(data: h5py.Dataset) -> str:
    """sha256 of a dataset's bytes."""
    digest = hashlib.sha256()
    for block in blocks(data):
        digest.update(block.tobytes())
    return digest.hexdigest()


def attribute(owner: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Value of a scalar attribute, ASCII text or a whole number; None if there is none or it is another thing.

    Its type is looked at first: variable-length values lie in a heap, which the library reads without care.
    """
    if name not in owner.attrs:
        return None
    identity = owner.attrs.get_id(name)
    if identity.shape != () or identity.dtype.kind not in "Siu" or identity.dtype.itemsize > _LONGEST:
        return None
    value = owner.attrs[name].item()
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _member(group: h5py.Group, name: str) -> Any:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        path = f"{group.name.rstrip('/')}/{name}"
        raise StoreError(f"{path!r} is a soft or external link, which a store never contains")
    return group[name]


def _check_plain(path: str, data: h5py.Dataset) -> None:
    """Raise `StoreError` unless as many bytes are there as are declared, so that to read them is to read the file."""
    if data.is_virtual or data.external:
        raise StoreError(f"{path!r} keeps its data in other files")
    if data.dtype not in _DTYPES or data.dtype.metadata:
        raise StoreError(f"{path!r} has the type {data.dtype}, which a store never contains")
    if not data.shape or len(data.shape) > _WIDEST:
        raise StoreError(f"{path!r} has the shape {data.shape}, which a store never contains")
    declared, stored, whole = data.size * data.dtype.itemsize, data.id.get_storage_size(), data.file.id.get_filesize()
    if data.id.get_create_plist().get_nfilters():
        _check_filter(path, data)
        stored *= HIGHEST_RATIO
        whole *= HIGHEST_RATIO
    elif data.chunks is not None:
        raise StoreError(f"{path!r} is cut into chunks without being compressed, which a store never contains")
    elif declared and (data.id.get_offset() is None or data.id.get_offset() + declared > whole):
        stored = 0
    if declared > min(stored, whole):
        raise StoreError(f"{path!r} declares the shape {data.shape} but holds fewer bytes than that")


def _check_filter(path: str, data: h5py.Dataset) -> None:
    plist = data.id.get_create_plist()
    if tuple(plist.get_filter(k)[0] for k in range(plist.get_nfilters())) != FILTERS or not is_tokens(path):
        raise StoreError(f"{path!r} is filtered in a way that this format does not allow")
    if prod(data.chunks) * data.dtype.itemsize > LARGEST_CHUNK:
        raise StoreError(f"{path!r} has chunks that are larger than this format allows")
    require_filter()


def _check_fits(path: str, data: h5py.Dataset, entry: Entry) -> None:
    dtype = entry["dtype"]
    fits = np.dtype(FILE_DTYPES[dtype]) == data.dtype and tuple(entry["shape"]) == data.shape
    if not fits or attribute(data, "dtype") != dtype:
        raise StoreError(f"dataset {path!r} has not the type and shape that the manifest gives it")
