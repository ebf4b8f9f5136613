"""A run's folder: what it was asked, its tables, and resume."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd
from filelock import FileLock, Timeout

from seamscope.hooks import RunError, choose
from seamscope.probes import side_by_side

from ._files import Sums, read_table, replacing, write_table
from ._identity import UNCOUNTED, made_from

SETTINGS_FILE: Final = "run.json"
LOCK_FILE: Final = ".lock"
JOBS_FOLDER: Final = "slurm"  # logs of a job array, which may be there before the run
MADE_FROM: Final = "made_from"
USED: Final = "used"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is asked to do; two runs with equal settings give equal tables on one machine."""

    model: str = "organism"
    task: str = "cards.sum"
    n: int = 200
    profile: str = "small"
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: str = "auto"
    engine: str = "torch"
    batch_size: int = 64
    untrained: bool = False
    sites: tuple[str, ...] = ("vision.*.resid_post", "projector.out", "lm.embed", "lm.*.resid_post")
    spans: tuple[str, ...] = ("objects", "question", "last", "reading", "objects+reading")
    pool: str = "mean"
    compression: str = "none"
    rows_per_shard: int = 0

    def __post_init__(self) -> None:
        choose("pool", self.pool, ("mean", "last", "none"), RunError)
        choose("compression", self.compression, ("none", "bitshuffle"), RunError)
        if self.rows_per_shard < 0:
            raise RunError(f"rows_per_shard is {self.rows_per_shard}; expected at least 1, or 0 to have it chosen")
        if self.batch_size < 1:
            raise RunError(f"batch_size is {self.batch_size}; expected at least 1")

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What another run was asked otherwise, as "name: theirs, not ours", but for what changes no table."""
        mine = asdict(self)
        return [
            f"{name}: {other.get(name)!r}, not {mine[name]!r}"
            for name in mine
            if name not in UNCOUNTED and _listed(other.get(name)) != _listed(mine[name])
        ]


class Run:
    """A folder with the settings of one run and the tables that it has finished.

    Opening is cheap and writes nothing; the first finished table creates the folder. Every file is written
    under a temporary name and renamed, so an interrupted run leaves only whole tables, which are not computed
    again.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = Path(folder), settings
        self.made_from = made_from(settings)
        self._used: dict[str, str] = {}
        self._sums = Sums(self.folder)
        self._lock = FileLock(self.folder / LOCK_FILE, timeout=0, is_singleton=True)
        self._check()

    def _check(self) -> None:
        check_place(self.folder)
        if not self.folder.exists():
            return
        known = self.folder / SETTINGS_FILE
        if not known.exists():
            ours = (f".{SETTINGS_FILE}", LOCK_FILE, JOBS_FOLDER)
            strange = any(not file.name.startswith(ours) for file in self.folder.iterdir())
            if strange and not known.exists():  # else another process has just begun this run
                raise RunError(f"{self.folder} holds something that is not a run; choose another --out")
        if not known.exists():
            return
        before = read_settings(self.folder)
        differences = self.settings.differences(before)
        if differences:
            raise RunError(
                f"{self.folder} holds another run ({'; '.join(differences)}); choose another --out, "
                "or repeat that run's options to continue it"
            )
        for name, digest in before.get(MADE_FROM, {}).items():
            if self.made_from.get(name, digest) != digest:
                raise RunError(
                    f"{self.folder} was made from another {name}: its files have changed; choose another --out"
                )

    def path(self, name: str, *, alone: bool = True) -> Path:
        """A file of the run; the folder and its settings exist afterwards.

        Unless `alone` is False, because the file knows several writers, no other process may write here from now on.
        """
        known = self.folder / SETTINGS_FILE
        self.folder.mkdir(parents=True, exist_ok=True)
        if alone:
            self._hold()
        if not known.exists():
            with replacing(known) as temporary:
                settings = {**asdict(self.settings), MADE_FROM: self.made_from, USED: self._used}
                temporary.write_text(json.dumps(settings, indent=2) + "\n")
        return self.folder / name

    def uses(self, found: dict[str, str]) -> None:
        """Note what the settings came to, such as a dtype; `RunError` if the run was begun with something else."""
        before = read_settings(self.folder).get(USED, {}) if self.has(SETTINGS_FILE) else {}
        other = [
            f"{name}: {before[name]}, not {value}" for name, value in found.items() if before.get(name, value) != value
        ]
        if other:
            raise RunError(f"{self.folder} was begun otherwise ({'; '.join(other)}); choose another --out")
        self._used = found

    def _hold(self) -> None:
        """Keep other processes from writing here, until this one ends."""
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire()
        except Timeout as error:
            raise RunError(
                f"{self.folder} is being written by another process; wait, or choose another --out"
            ) from error

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table of that name: read if it is finished, made and written otherwise."""
        finished = self.folder / f"{name}.csv"
        if not finished.exists():
            self.derive(name, make())
            shutil.rmtree(self.folder / _parts(name), ignore_errors=True)
        return read_table(finished, sums=self._sums)

    def in_parts(
        self,
        name: str,
        count: int,
        make: Callable[[int], pd.DataFrame],
        *,
        workers: int = 1,
        progress: bool = False,
    ) -> pd.DataFrame:
        """The parts of a table that takes long, for `table` to keep; each is kept once made, and not made again.

        `workers`: processes in which they may be made.
        """
        folder = self.path(_parts(name)).absolute()  # other processes may be elsewhere
        folder.mkdir(exist_ok=True)
        missing = [k for k in range(count) if not _part(folder, k).exists()]
        side_by_side(partial(_keep, make, folder), missing, workers=workers, what=name, unit="item", progress=progress)
        tables = [read_table(_part(folder, k)) for k in range(count) if _part(folder, k).stat().st_size > 1]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["id", "group"])

    def derive(self, name: str, table: pd.DataFrame) -> pd.DataFrame:
        """Write a table that follows quickly from finished ones, anew each time; gives it back."""
        write_table(table, self.path(f"{name}.csv"), sums=self._sums)
        return table

    def finished(self, stem: str) -> list[str]:
        """The X of every finished table `stem.X.csv`, in alphabetical order."""
        files = self.folder.glob(f"{stem}.*.csv") if self.folder.is_dir() else []
        return sorted(file.name.removeprefix(f"{stem}.").removesuffix(".csv") for file in files)

    def tables(self, names: Iterable[str]) -> dict[str, pd.DataFrame]:
        """Those of some tables that are finished."""
        return {
            name: read_table(self.folder / f"{name}.csv", sums=self._sums) for name in names if self.has(f"{name}.csv")
        }

    def has(self, name: str) -> bool:
        """Whether a file of the run is finished."""
        return (self.folder / name).exists()


def _parts(name: str) -> str:
    """The folder of the parts of a table that is not finished."""
    return f".{name}.parts"


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number}.csv"


def _keep(make: Callable[[int], pd.DataFrame], folder: Path, number: int) -> None:
    write_table(make(number), _part(folder, number))


def read_settings(folder: Path) -> dict[str, Any]:
    """What the run in a folder was asked."""
    file = Path(folder) / SETTINGS_FILE
    if not file.exists():
        raise RunError(f"{folder} holds no run; give the --out folder of an earlier command")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{file} is not the settings of a run")
    return found


def settings_of(folder: Path) -> Settings:
    """The settings of the run in a folder; `RunError` where one of them is not of its kind."""
    found, usual = read_settings(folder), asdict(Settings())
    for name in usual.keys() & found.keys():
        if not _alike(found[name], usual[name]):
            raise RunError(f"{folder / SETTINGS_FILE}: {name} is {found[name]!r}; expected such as {usual[name]!r}")
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in usual}
    return replace(Settings(), **known)


def _alike(value: Any, usual: Any) -> bool:
    if isinstance(usual, tuple):
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return type(value) is type(usual)


def _listed(value: Any) -> Any:
    """A tuple as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def check_place(folder: Path) -> None:
    """Refuse a folder that is a file, lies below one, or may not be written, before any work is done."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise RunError(f"{nearest} is a file; --out must name a folder")
    if not os.access(nearest, os.W_OK):
        raise RunError(f"{nearest} may not be written; choose another --out")
