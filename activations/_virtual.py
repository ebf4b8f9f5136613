"""Virtual datasets: what of which file stands where."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

import h5py

from seamscope.activations._layout import FILE_DTYPES, acts_path
from seamscope.hooks import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seamscope.activations._part import Form, Key, Part

_LINK: Final = 128  # bytes of a source in the file, beside its names, at most


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
        made.dcpl.set_obj_track_times(False)  # equal stores have equal bytes
        for start, stop, file in self.sources:
            shape = (stop - start, *feature)
            made[start:stop] = h5py.VirtualSource(_escaped(file), _escaped(self.path), shape, kind)
        return made


class Contents:
    """What the files hold that a store joins: the numbers of their rows and tokens, but no data."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._rows: dict[str, list[int | None]] = {}
        self._forms: dict[str, dict[Key, Form]] = {}
        self._tokens: dict[tuple[str, Key], list[int | None]] = {}  # a number for each file, None where it has none

    def add(self, part: Part, file: str) -> None:
        """Note what a file holds; `StoreError` if its activations are of another form than those before."""
        for condition in part.columns:
            _put(self._rows.setdefault(condition, []), len(self.files), part.n_rows(condition))
            forms = self._forms.setdefault(condition, {})
            for key, form in part.cells.get(condition, {}).items():
                if forms.setdefault(key, form) != form:
                    what = " at ".join(key)
                    raise StoreError(f"{part.path} holds {what} as {form}; a store before it as {forms[key]}")
                tokens = part.entries[f"{acts_path(condition, *key)}/values"]["shape"][0]
                _put(self._tokens.setdefault((condition, key), []), len(self.files), tokens)
        self.files.append(file)

    @property
    def paths(self) -> list[str]:
        """The virtual datasets."""
        return [f"{acts_path(condition, *key)}/{name}" for condition, key in self._tokens for name in _NAMES]

    @property
    def links(self) -> int:
        """About how many bytes their sources take, and not less."""
        longest = max(len(file.encode()) for file in self.files)
        return sum(len(self.files) * (len(path.encode()) + longest + _LINK) for path in self.paths)

    def virtual(self, condition: str) -> Iterator[Virtual]:
        """Every activation's values and lengths, end to end; rows of a file that lacks it have no tokens."""
        rows = [count or 0 for count in self._whole(self._rows[condition])]
        for key, form in self._forms[condition].items():
            tokens = self._whole(self._tokens[condition, key])
            held = [count is not None for count in tokens]
            path = acts_path(condition, *key)
            sources = self._sources([count or 0 for count in tokens], held)
            yield Virtual(f"{path}/values", form.dtype, (sum(count or 0 for count in tokens), *form.feature), sources)
            yield Virtual(f"{path}/lengths", "int32", (sum(rows),), self._sources(rows, held))

    def _sources(self, sizes: list[int], held: list[bool]) -> tuple[Source, ...]:
        pieces = zip(accumulate(sizes), sizes, self.files, held, strict=True)
        return tuple(Source(end - size, end, file) for end, size, file, there in pieces if there and size)

    def _whole(self, counts: list[int | None]) -> list[int | None]:
        return counts + [None] * (len(self.files) - len(counts))


_NAMES: Final = ("values", "lengths")


def _put(counts: list[int | None], at: int, count: int) -> None:
    counts += [None] * (at - len(counts))
    counts.append(count)


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
