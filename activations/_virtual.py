"""Virtual datasets: what of which file stands where."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import h5py

from seamscope.activations._layout import FILE_DTYPES


class Source(NamedTuple):
    """Rows `start` to `stop` are those of the dataset of the same path in `file`."""

    start: int
    stop: int
    file: str


@dataclass(frozen=True)
class Virtual:
    """A dataset that is put together of whole datasets, end to end; zeros where there is no source."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[Source, ...]

    def layout(self) -> h5py.VirtualLayout:
        """The same for h5py."""
        kind, feature = FILE_DTYPES[self.dtype], self.shape[1:]
        made = h5py.VirtualLayout(self.shape, kind)
        for start, stop, file in self.sources:
            shape = (stop - start, *feature)
            made[start:stop] = h5py.VirtualSource(_escaped(file), _escaped(self.path), shape, kind)
        return made


def shown(data: h5py.Dataset) -> list[Source]:
    """What a virtual dataset is put together of, whether or not it is there.

    A source that is not a whole dataset of the same path, all of its features included, shows as the file "".
    """
    found = []
    for each in data.virtual_sources() if data.is_virtual else ():
        (low, *_), (high, *_) = each.vspace.get_select_bounds()
        same = each.dset_name == _escaped(data.name) and each.src_space.get_select_type() == h5py.h5s.SEL_ALL
        same = same and each.vspace.get_select_npoints() == prod((high - low + 1, *data.shape[1:]))
        found.append(Source(int(low), int(high) + 1, each.file_name.replace("%%", "%") if same else ""))
    return sorted(found)


def _escaped(name: str) -> str:
    """HDF5 counts files by "%b" in their names."""
    return name.replace("%", "%%")
