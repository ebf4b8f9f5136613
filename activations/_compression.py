"""Compression, which is optional: it saves room, and costs more time than a fast disk."""

from __future__ import annotations

import contextlib
from typing import Any, Final

import h5py

from seamscope.hooks import StoreError, choose

COMPRESSIONS: Final = ("bitshuffle",)
BITSHUFFLE: Final = 32008  # the number under which HDF5 registers the filter
HIGHEST_RATIO: Final = 512  # LZ4 gives 255 at most; a file that claims more is made to fill the memory


def filter_of(name: str | None) -> dict[str, Any]:
    """Give the options of `create_dataset` for a compression; `StoreError` if its package is not there."""
    if name is None:
        return {}
    choose("compression", name, COMPRESSIONS, StoreError)
    require_filter()
    import hdf5plugin

    return dict(hdf5plugin.Bitshuffle(cname="lz4"))


def require_filter() -> None:
    """Make the filter known to HDF5; `StoreError` if its package is not there."""
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401
    if not h5py.h5z.filter_avail(BITSHUFFLE):
        raise StoreError("needs Bitshuffle: pip install 'seamscope[compression]'")
