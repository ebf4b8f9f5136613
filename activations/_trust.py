"""A file is data and may come from anywhere: what it may contain is checked before anything in it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from seamscope.activations._growing import Entries
from seamscope.activations._layout import FILE_DTYPES, FORMAT, FORMAT_VERSION, MANIFEST
from seamscope.activations._schema import parse_json
from seamscope.hooks import StoreError

_DEEPEST = 8  # groups inside groups; the layout has five
_LONGEST = 64  # bytes of an attribute; a sha256 in hexadecimal
_DTYPES = {np.dtype(name) for name in FILE_DTYPES.values()}


def check_header(file: h5py.File) -> None:
    """Raise `StoreError` unless the file is a finished store of a format that we read."""
    if attribute(file, "format") != FORMAT:
        raise StoreError("is not a seamscope store")
    found = attribute(file, "format_version")
    if not isinstance(found, int) or found < 1:
        raise StoreError(f"has no valid format version but {found!r}")
    if found > FORMAT_VERSION:
        raise StoreError(f"has format {found}, newer than {FORMAT_VERSION}: read it with a newer seamscope")
    if attribute(file, "complete") != 1:
        raise StoreError("was never completed: its writer stopped before the end")


def check_manifest(file: h5py.File) -> Entries:
    """The manifest, after every dataset was found plain, inside the file, and as the manifest says."""
    found = dict(_datasets(file, set()))
    claimed = sum(data.size * data.dtype.itemsize for data in found.values())
    if claimed > file.id.get_filesize():
        raise StoreError(f"declares {claimed} bytes of data, more than the whole file has")
    entries = _read_manifest(file)
    differing = sorted(found.keys() ^ {*entries, f"/{MANIFEST}"})
    if differing:
        raise StoreError(f"dataset {differing[0]!r} stands in only one of file and manifest")
    for name, entry in entries.items():
        _check_entry(found[name], entry)
    return entries


def checksum(data: h5py.Dataset, step: int = 2**24) -> str:
    """sha256 of a dataset's bytes, read about `step` bytes at a time."""
    digest = hashlib.sha256()
    rows = max(1, step // max(1, data.nbytes // max(1, len(data))))
    for start in range(0, len(data), rows):
        digest.update(data[start : start + rows].tobytes())
    return digest.hexdigest()


def _datasets(group: h5py.Group, seen: set[Any], depth: int = 0) -> Iterator[tuple[str, h5py.Dataset]]:
    """Every dataset of the tree; raises `StoreError` at the first thing that a store never contains."""
    for name in group:
        path = f"{group.name.rstrip('/')}/{name}"
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise StoreError(f"{path!r} is a soft or external link, which a store never contains")
        child = group[name]
        address = h5py.h5o.get_info(child.id).addr
        if address in seen or depth > _DEEPEST:
            raise StoreError(f"{path!r} is linked twice or lies too deep")
        seen.add(address)
        if isinstance(child, h5py.Group):
            yield from _datasets(child, seen, depth + 1)
        elif isinstance(child, h5py.Dataset):
            _check_plain(path, child)
            yield path, child
        else:
            raise StoreError(f"{path!r} is neither group nor dataset")


def _check_plain(path: str, data: h5py.Dataset) -> None:
    if data.is_virtual or data.external:
        raise StoreError(f"{path!r} keeps its data in other files")
    if data.dtype not in _DTYPES or data.dtype.metadata:
        raise StoreError(f"{path!r} has the type {data.dtype}, which a store never contains")
    if data.id.get_create_plist().get_nfilters():
        raise StoreError(f"{path!r} is filtered or compressed, which this format does not allow")
    if not data.shape or data.size * data.dtype.itemsize > data.id.get_storage_size():
        raise StoreError(f"{path!r} declares the shape {data.shape} but holds fewer bytes than that")


def _read_manifest(file: h5py.File) -> Entries:
    if not isinstance(file.get(MANIFEST), h5py.Dataset):
        raise StoreError("has no manifest")
    raw = file[MANIFEST][()].tobytes()
    if hashlib.sha256(raw).hexdigest() != attribute(file, "manifest_sha256"):
        raise StoreError("is damaged: dataset '/manifest' differs from its checksum")
    entries = parse_json("manifest", raw)
    if not isinstance(entries, dict):
        raise StoreError("has a manifest that is no table")
    return entries


def _check_entry(data: h5py.Dataset, entry: Any) -> None:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "sha256": str()} if dtype in FILE_DTYPES:
            fits = np.dtype(FILE_DTYPES[dtype]) == data.dtype and tuple(shape) == data.shape
            if fits and attribute(data, "dtype") == dtype:
                return
    raise StoreError(f"dataset {data.name!r} has not the type and shape that the manifest gives it")


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
