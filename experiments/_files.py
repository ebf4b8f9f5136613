"""Files of a run: each appears whole or not at all, and a table that was changed afterwards is not taken for one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pandas as pd

from seamscope.hooks import RunError

SUMS_FILE: Final = ".sums.json"
MISSING: Final = "nan"  # an empty cell is an empty text
# what a model says may look like a number
TEXT_COLUMNS: Final[dict[str, Any]] = {
    "output": str,
    "said": str,
    "answer": str,
    "id": str,
    "group": str,
    "layer": "Int64",
}
_UNPRINTED: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_ESCAPE: Final = re.compile(r"\\x([0-9a-f]{2})")


def write_table(table: pd.DataFrame, file: Path, *, sums: Sums | None = None) -> None:
    """Write a table; `sums` notes what it holds."""
    written = {name: table[name].map(_written, na_action="ignore") for name in _texts(table)}
    with replacing(file) as temporary:
        table.assign(**written).to_csv(temporary, index=False, na_rep=MISSING)
        if sums is not None:
            sums.note(file.name, temporary.read_bytes())


def read_table(file: Path, *, sums: Sums | None = None) -> pd.DataFrame:
    """Read a table; `RunError` if it is none, or not what `sums` noted."""
    try:
        content = file.read_bytes()
        if sums is not None and not sums.agree(file.name, content):
            raise ValueError("it was changed or cut since it was written")
        table = pd.read_csv(io.BytesIO(content), keep_default_na=False, na_values=[MISSING], dtype=TEXT_COLUMNS)
        return table.assign(**{name: table[name].map(_spoken, na_action="ignore") for name in _texts(table)})
    except (OSError, ValueError) as error:
        raise RunError(f"{file} is no table of a run ({error}); delete it to have it made again") from error


class Sums:
    """Checksums of the tables of a folder; of one that was never noted, nothing is known."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / SUMS_FILE

    def note(self, name: str, content: bytes) -> None:
        """Note what a file is about to hold."""
        held = {**self._held(), name: _sum(content)}
        with replacing(self._file) as temporary:
            temporary.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")

    def agree(self, name: str, content: bytes) -> bool:
        """Whether a file holds what was noted."""
        noted = self._held().get(name)
        return noted is None or bool(noted == _sum(content))

    def _held(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            found = json.loads(self._file.read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}


def _sum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _texts(table: pd.DataFrame) -> list[str]:
    return [name for name, kind in TEXT_COLUMNS.items() if kind is str and name in table]


def _written(text: str) -> str:
    """A model may say anything; what would break a line of the file is written as its code, such as \\x0d."""
    return r"\x6ean" if text == MISSING else _UNPRINTED.sub(lambda found: rf"\x{ord(found[0]):02x}", text)


def _spoken(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def partial_of(path: Path) -> Path:
    """The name of a file while this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, and rename it to `path` when the block has succeeded."""
    temporary = partial_of(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
