"""Compression, which is optional: it saves room, and costs more time than a fast disk."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import h5py
from numpy.typing import NDArray

from seamscope.hooks import StoreError, choose

COMPRESSIONS: Final = ("bitshuffle",)
BITSHUFFLE: Final = 32008  # the number under which HDF5 registers the filter
# Bitshuffle may end the process where its data are damaged, so that a checksum of them is looked at before
FILTERS: Final = (BITSHUFFLE, h5py.h5z.FILTER_FLETCHER32)
LARGEST_CHUNK: Final = 2**24  # bytes; one is read at a time, and holds whole rows: larger ones stay as they are
_LZ4: Final = 2  # which codec the filter uses
_CHUNK: Final = 2**20  # bytes
HIGHEST_RATIO: Final = 512  # LZ4 gives 255 at most; a file that claims more is made to fill the memory


def check_compression(name: str | None) -> None:
    """Raise `StoreError` for an unknown compression, or one whose package is not there."""
    if name is not None:
        choose("compression", name, COMPRESSIONS, StoreError)
        require_filter()


def creation_plist(array: NDArray[Any], compression: str | None) -> h5py.h5p.PropDCID:
    """How HDF5 lays a dataset out: in one piece, or in compressed chunks of about a megabyte."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_obj_track_times(False)  # equal stores have equal bytes
    plist.set_obj_track_times(False)  # the same data make the same file, whenever they are written
    row = array.nbytes // max(1, len(array))
    if compression is not None and array.size and row <= LARGEST_CHUNK:
        plist.set_chunk((min(len(array), max(1, _CHUNK // row)), *array.shape[1:]))
        plist.set_filter(BITSHUFFLE, h5py.h5z.FLAG_MANDATORY, (0, _LZ4))
        plist.set_fletcher32()
    return plist


def require_filter() -> None:
    """Make the filter known to HDF5; `StoreError` if its package is not there."""
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401
    if not h5py.h5z.filter_avail(BITSHUFFLE):
        raise StoreError("needs Bitshuffle: pip install 'seamscope[compression]'")
