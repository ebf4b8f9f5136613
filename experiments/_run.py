"""A run's folder: what it was asked, its tables, and resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from seamscope.hooks import RunError

SETTINGS_FILE: Final = "run.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is asked to do; two runs with equal settings give equal tables on one machine."""

    model: str = "organism"
    task: str = "cards.sort"
    n: int = 200
    profile: str = "small"
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    batch_size: int = 64
    untrained: bool = False
    sites: tuple[str, ...] = ("vision.*.resid_post", "projector.out", "lm.embed", "lm.*.resid_post")
    spans: tuple[str, ...] = ("objects", "question", "last", "reading", "objects+reading")

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """What another run was asked otherwise, as "name: theirs, not ours"; the batch size does not count."""
        mine = asdict(self)
        return [
            f"{name}: {other.get(name)!r}, not {mine[name]!r}"
            for name in mine
            if name != "batch_size" and _listed(other.get(name)) != _listed(mine[name])
        ]


class Run:
    """A folder with the settings of one run and the tables that it has finished.

    Opening is cheap and writes nothing; the first finished table creates the folder. Every file is written
    under a temporary name and renamed, so an interrupted run leaves only whole tables, which are not computed
    again.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = Path(folder), settings
        self._check()

    def _check(self) -> None:
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise RunError(f"{self.folder} is a file; --out must name a folder")
        known = self.folder / SETTINGS_FILE
        if not known.exists():
            if any(self.folder.iterdir()):
                raise RunError(f"{self.folder} holds something that is not a run; choose another --out")
            return
        differences = self.settings.differences(read_settings(self.folder))
        if differences:
            raise RunError(
                f"{self.folder} holds another run ({'; '.join(differences)}); choose another --out, "
                "or repeat that run's options to continue it"
            )

    def path(self, name: str) -> Path:
        """A file of the run; the folder and its settings exist afterwards."""
        known = self.folder / SETTINGS_FILE
        if not known.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(known) as temporary:
                temporary.write_text(json.dumps(asdict(self.settings), indent=2) + "\n")
        return self.folder / name

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table of that name: read if it is finished, made and written otherwise."""
        finished = self.folder / f"{name}.csv"
        if not finished.exists():
            made = make()
            with replacing(self.path(finished.name)) as temporary:
                made.to_csv(temporary, index=False)
        return pd.read_csv(finished, keep_default_na=False, na_values=["nan"], dtype=TEXT_COLUMNS)

    def has(self, name: str) -> bool:
        """Whether a file of the run is finished."""
        return (self.folder / name).exists()


# what a model says may look like a number
TEXT_COLUMNS: Final = {"output": str, "said": str, "answer": str, "id": str, "group": str, "layer": "Int64"}


def read_settings(folder: Path) -> dict[str, Any]:
    """What the run in a folder was asked."""
    file = Path(folder) / SETTINGS_FILE
    if not file.exists():
        raise RunError(f"{folder} holds no run; give the --out folder of an earlier command")
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RunError(f"{file} is not the settings of a run")
    return found


def settings_of(folder: Path) -> Settings:
    """The settings of the run in a folder."""
    found = read_settings(folder)
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in asdict(Settings())}
    return replace(Settings(), **known)


def _listed(value: Any) -> Any:
    """A tuple as JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it to `path` when the block has succeeded."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
