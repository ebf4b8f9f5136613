"""Datasets that grow by batches and know the checksum of what they were given."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import h5py
import numpy as np

from seamscope.activations._bits import Array, dtype_name, to_array
from seamscope.hooks import Ragged, StoreError

_LARGEST_CHUNK = 2**20  # bytes
_SMALLEST_CHUNK = 2**12

Entries = dict[str, dict[str, Any]]  # manifest: path of a dataset -> its type, shape and checksum


class Growing:
    """One dataset of a store that is being written; grows along its first axis."""

    def __init__(self, group: h5py.Group, name: str, *, like: Array, dtype: str) -> None:
        self.dtype = dtype
        self._sha256 = hashlib.sha256()
        self._data = group.create_dataset(
            name,
            shape=(0, *like.shape[1:]),
            maxshape=(None, *like.shape[1:]),
            dtype=like.dtype,
            chunks=(_chunk_rows(like), *like.shape[1:]),
        )
        self._data.attrs["dtype"] = np.bytes_(dtype)

    def append(self, array: Array) -> None:
        """Write more rows, which must have the type and feature shape of the first."""
        old = len(self._data)
        self._data.resize(old + len(array), axis=0)
        if len(array):
            self._data[old:] = array
        self._sha256.update(array.tobytes())

    def entry(self) -> Entries:
        """Manifest entry under the path of the dataset."""
        shape = [int(size) for size in self._data.shape]
        return {self._data.name: {"dtype": self.dtype, "shape": shape, "sha256": self._sha256.hexdigest()}}


def _chunk_rows(first: Array) -> int:
    """Chunks of four first batches, at most about a megabyte: small stores stay small, large ones fast."""
    row = first.itemsize * math.prod(first.shape[1:])
    size = min(max(4 * first.nbytes, _SMALLEST_CHUNK), _LARGEST_CHUNK)
    return max(1, size // row)


class GrowingRagged:
    """One activation of one condition: the tokens of all rows end to end, and where each row begins."""

    def __init__(self, group: h5py.Group, *, like: Ragged) -> None:
        self._values = Growing(group, "values", like=to_array(like.values), dtype=dtype_name(like.values))
        self._offsets = Growing(group, "offsets", like=np.zeros(len(like), "<i8"), dtype="int64")
        self._offsets.append(np.zeros(1, "<i8"))
        self._end = 0

    def append(self, rows: Ragged) -> None:
        """Write the tokens of more rows."""
        self._values.append(to_array(rows.values))
        ends = self._end + np.cumsum(rows.lengths.cpu().numpy(), dtype="<i8")
        self._offsets.append(ends)
        self._end = int(ends[-1])

    def entry(self) -> Entries:
        """Manifest entries of both datasets."""
        return self._values.entry() | self._offsets.entry()


class ActsBuffer:
    """All activations of one condition; the first batch fixes their names, types and feature shapes."""

    def __init__(self) -> None:
        self._like: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}
        self._growing: dict[tuple[str, str], GrowingRagged] = {}

    def check(self, rows: int, acts: dict[tuple[str, str], Ragged]) -> None:
        """Raise `StoreError` if a batch does not fit the batches before it; changes nothing."""
        if self._like and acts.keys() != self._like.keys():
            odd = sorted(f"{site} {span}" for site, span in acts.keys() ^ self._like.keys())
            raise StoreError(f"every batch of a condition needs the same activations; differing: {', '.join(odd)}")
        for (site, span), ragged in acts.items():
            what = f"{site} {span}"
            form = dtype_name(ragged.values), tuple(ragged.values.shape[1:])
            if len(ragged) != rows:
                raise StoreError(f"{what} has {len(ragged)} rows of activations for {rows} rows")
            if 0 in form[1]:
                raise StoreError(f"{what} has empty features of shape {form[1]}")
            if self._like and form != self._like[site, span]:
                raise StoreError(f"{what} was {self._like[site, span]} in the first batch and is {form} now")

    def extend(self, group: h5py.Group, acts: dict[tuple[str, str], Ragged]) -> None:
        """Write a batch that `check` passed."""
        for (site, span), ragged in acts.items():
            if (site, span) not in self._growing:
                self._like[site, span] = dtype_name(ragged.values), tuple(ragged.values.shape[1:])
                self._growing[site, span] = GrowingRagged(group.create_group(f"acts/{site}/{span}"), like=ragged)
            self._growing[site, span].append(ragged)

    def entries(self) -> Entries:
        """Manifest entries of all datasets."""
        merged: Entries = {}
        for growing in self._growing.values():
            merged |= growing.entry()
        return merged
