"""Writing one file: datasets with their checksums, then the manifest, then its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import h5py
import numpy as np

from seamscope.activations import _layout as layout
from seamscope.activations._bits import Array
from seamscope.activations._compression import check_compression, creation_plist
from seamscope.activations._partial import Partial
from seamscope.activations._schema import Schema
from seamscope.activations._virtual import Virtual
from seamscope.hooks import StoreError

Taken = Literal["refuse", "keep", "replace"]
Entry = dict[str, Any]  # of the manifest: type, shape and sha256 of a dataset
_OVERHEAD: Final = 2**12  # bytes that HDF5 takes for a dataset and its groups, beside its data and names, at most
_WORST: Final = 64  # what cannot be compressed grows by less than a part in as many


class StoreFile:
    """A file that is being written under a temporary name; use it in a `with` block, and end with `finish`.

    Call `reserve` before anything is added: HDF5 cannot recover when a disk is full, and may then end the process.
    A file that is not finished is removed. One with virtual datasets is `sealed`: it begins with a checksum of the
    rest, because HDF5 has none for what they are put together of, and may end the process where that is damaged.
    """

    def __init__(
        self, partial: Partial, schema: Schema, *, compression: str | None = None, sealed: bool = False
    ) -> None:
        check_compression(compression)
        self._partial, self._compression, self._sealed = partial, compression, sealed
        self._groups: set[str] = set()
        self._entries: dict[str, Entry] = {}
        self._virtual: dict[str, Entry] = {}
        described = schema.to_json()
        try:
            with as_store_error(partial.path):
                block = {"userblock_size": layout.SEAL} if sealed else {}
                self._file = h5py.File(partial.path, "w", libver=("v110", "v110"), locking=False, **block)
        except BaseException:
            partial.remove()
            raise
        with self._whole_or_gone():
            self._reserve(len(described), ["", layout.SCHEMA])
            attrs = {"format": np.bytes_(layout.FORMAT), "format_version": layout.FORMAT_VERSION, "complete": 0}
            self._file.attrs.update(attrs)
            self.add(f"/{layout.SCHEMA}", "uint8", np.frombuffer(described, "|u1"))

    def reserve(self, size: int, paths: Iterable[str]) -> None:
        """Take room for datasets at these paths that hold `size` bytes together."""
        with self._whole_or_gone():
            packed = size // _WORST if self._compression else 0
            self._reserve(size + packed, paths)

    def _reserve(self, size: int, paths: Iterable[str]) -> None:
        names = sum(_OVERHEAD + 2 * len(path.encode()) for path in paths)
        # what HDF5 has given out already is counted, since it may have written nothing of it so far
        self._partial.reserve(self._file.id.get_filesize() + size + names)

    def add(self, path: str, dtype: str, array: Array) -> None:
        """Write a dataset; values of activations are compressed if this was asked for."""
        with self._whole_or_gone():
            self._write(path, array, dtype, self._compression if layout.is_tokens(path) else None)
            digest = hashlib.sha256(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
            self._entries[path] = {"dtype": dtype, "shape": list(array.shape), "sha256": digest.hexdigest()}

    def _write(self, path: str, array: Array, dtype: str, compression: str | None) -> None:
        """What `create_dataset` does, in a third of its time: a file has thousands of small datasets."""
        group = path.rpartition("/")[0]
        if group and group not in self._groups:  # made by name: as intermediate groups they would keep the time
            self._groups.add(group)
            self._file.require_group(group)
        kind = h5py.h5t.py_create(array.dtype, logical=1)
        plist = creation_plist(array, compression)
        data = h5py.h5d.create(self._file.id, None, kind, h5py.h5s.create_simple(array.shape), plist)
        h5py.h5o.link(data, self._file.id, path.encode(), lcpl=_linked())
        if array.size:
            data.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array))
        name = np.array(dtype.encode())
        text = h5py.h5t.py_create(name.dtype)
        h5py.h5a.create(data, b"dtype", text, h5py.h5s.create(h5py.h5s.SCALAR)).write(name)

    def add_virtual(self, virtual: Virtual) -> None:
        """Write a dataset whose data are in other files."""
        with self._whole_or_gone():
            data = self._file.create_virtual_dataset(virtual.path, virtual.layout(), fillvalue=0)
            data.attrs["dtype"] = np.bytes_(virtual.dtype)
            self._virtual[virtual.path] = {"dtype": virtual.dtype, "shape": list(virtual.shape)}

    def finish(self, final: Path, *, taken: Taken = "refuse", **more: Any) -> None:
        """Complete the file, see it on the disk, and give it its name.

        `more` goes into the manifest. `taken` says what to do about a file of that name: raise `StoreError`, keep it
        and forget this one, or replace it.
        """
        with self._whole_or_gone():
            content = {"datasets": self._entries, "virtual": self._virtual, **more}
            manifest = json.dumps(content, ensure_ascii=False, indent=1).encode()
            self._reserve(len(manifest), [layout.MANIFEST])
            self._write(f"/{layout.MANIFEST}", np.frombuffer(manifest, "|u1"), "uint8", None)
            self._file.attrs["manifest_sha256"] = np.bytes_(hashlib.sha256(manifest).hexdigest())
            self._file.attrs["complete"] = 1
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            self._partial.cut(size)  # and HDF5 may need less than it said
            if self._sealed:
                self._partial.begin(seal_of(self._partial.path))
            if taken == "replace":
                self._partial.replace(final)
            elif not self._partial.name(final) and taken == "refuse":
                raise StoreError(f"{final} appeared meanwhile; it was left as it is")

    def discard(self) -> None:
        """Close the file if it is open, and remove what was not finished."""
        try:
            self._file.close()
        except (OSError, RuntimeError):  # what could not be written before cannot be written now
            pass
        finally:
            self._partial.remove()

    def __enter__(self) -> StoreFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @contextmanager
    def _whole_or_gone(self) -> Iterator[None]:
        try:
            with as_store_error(self._partial.path):
                yield
        except BaseException:
            self.discard()
            raise


def seal_of(path: Path) -> bytes:
    """What a sealed file begins with: the checksum of all that follows."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(layout.SEAL)
        while block := file.read(2**20):
            digest.update(block)
    return f"{layout.FORMAT} sha256 {digest.hexdigest()}".encode().ljust(layout.SEAL, b"\n")


def _linked() -> h5py.h5p.PropLCID:
    """How a dataset gets its name: in UTF-8."""
    plist = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    plist.set_char_encoding(h5py.h5t.CSET_UTF8)
    return plist


@contextmanager
def as_store_error(path: Path) -> Iterator[None]:
    """Raise what goes wrong with a file that is written as one `StoreError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path} cannot be written: {in_short(error)}") from error


def in_short(error: Exception) -> str:
    """What went wrong with a file, in one line; HDF5 tells of addresses and times too."""
    if isinstance(error, BlockingIOError):
        return "another process is writing it"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())
