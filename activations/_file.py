"""Writing one file: datasets with their checksums, then the manifest, then its name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from seamscope.activations import _layout as layout
from seamscope.activations._bits import Array
from seamscope.activations._compression import filter_of
from seamscope.activations._schema import Schema
from seamscope.activations._virtual import Virtual
from seamscope.hooks import StoreError

Entry = dict[str, Any]  # of the manifest: type, shape and sha256 of a dataset
_OVERHEAD: Final = 2**12  # bytes that HDF5 takes for a dataset and its groups, at most, and the manifest for its entry
_CHUNK: Final = 2**20  # bytes of a chunk where a dataset is compressed


class StoreFile:
    """A file that is being written under a temporary name; use it in a `with` block, and end with `finish`.

    Room for `reserve` bytes of data in `datasets` datasets is taken first, because HDF5 cannot recover when a disk is
    full. A file that is not finished is removed.
    """

    def __init__(
        self, partial: Path, schema: Schema, *, reserve: int = 0, datasets: int = 0, compression: str | None = None
    ) -> None:
        self._partial, self._filter = partial, filter_of(compression)
        self._entries: dict[str, Entry] = {}
        self._virtual: dict[str, Entry] = {}
        described = schema.to_json()
        with as_store_error(partial):
            self._file = h5py.File(partial, "w", libver=("v110", "v110"), locking="best-effort")
        with self._whole_or_gone():
            attrs = {"format": np.bytes_(layout.FORMAT), "format_version": layout.FORMAT_VERSION, "complete": 0}
            self._file.attrs.update(attrs)
            self._reserve(reserve + len(described) + _OVERHEAD * (datasets + 4))
            self.add(f"/{layout.SCHEMA}", "uint8", np.frombuffer(described, "|u1"))

    def _reserve(self, size: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            return
        self._file.flush()
        with self._partial.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)

    def add(self, path: str, dtype: str, array: Array) -> None:
        """Write a dataset; values of activations are compressed if this was asked for."""
        with self._whole_or_gone():
            packed = self._filter if path.startswith(f"/{layout.CONDITIONS}/") and path.endswith("/values") else {}
            if packed and array.size:
                row = array.nbytes // len(array)
                packed = {**packed, "chunks": (min(len(array), max(1, _CHUNK // row)), *array.shape[1:])}
            data = self._file.create_dataset(path, data=array, **(packed if array.size else {}))
            data.attrs["dtype"] = np.bytes_(dtype)
            digest = hashlib.sha256(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
            self._entries[path] = {"dtype": dtype, "shape": list(array.shape), "sha256": digest.hexdigest()}

    def add_virtual(self, virtual: Virtual) -> None:
        """Write a dataset whose data are in other files."""
        with self._whole_or_gone():
            data = self._file.create_virtual_dataset(virtual.path, virtual.layout(), fillvalue=0)
            data.attrs["dtype"] = np.bytes_(virtual.dtype)
            self._virtual[virtual.path] = {"dtype": virtual.dtype, "shape": list(virtual.shape)}

    def finish(self, final: Path, *, replace: bool = False, **more: Any) -> None:
        """Complete the file, see it on the disk, and give it its name.

        `more` goes into the manifest. Raises `StoreError` if the name is taken, unless it may be replaced.
        """
        with self._whole_or_gone():
            content = {"datasets": self._entries, "virtual": self._virtual, **more}
            manifest = json.dumps(content, ensure_ascii=False, indent=1).encode()
            data = self._file.create_dataset(layout.MANIFEST, data=np.frombuffer(manifest, "|u1"))
            data.attrs["dtype"] = np.bytes_("uint8")
            self._file.attrs["manifest_sha256"] = np.bytes_(hashlib.sha256(manifest).hexdigest())
            self._file.attrs["complete"] = 1
            self._file.flush()
            size = self._file.id.get_filesize()
            self._file.close()
            os.truncate(self._partial, size)  # gives back what was reserved and not needed
            _sync(self._partial)
            if final.exists() and not replace:
                raise StoreError(f"{final} appeared meanwhile; it was left as it is")
            os.replace(self._partial, final)
            _sync(final.parent)

    def discard(self) -> None:
        """Close the file if it is open, and remove what was not finished."""
        try:
            self._file.close()
        except (OSError, RuntimeError):  # what could not be written before cannot be written now
            pass
        finally:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> StoreFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @contextmanager
    def _whole_or_gone(self) -> Iterator[None]:
        try:
            with as_store_error(self._partial):
                yield
        except BaseException:
            self.discard()
            raise


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def as_store_error(path: Path) -> Iterator[None]:
    """Raise what goes wrong with a file that is written as one `StoreError`."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(f"{path} cannot be written: {' '.join(str(error).split())}") from error
