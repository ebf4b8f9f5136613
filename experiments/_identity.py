"""What a run was made from, so that a resumed one does not mix results of two models or of two files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from seamscope.hooks import checkpoint_folder

if TYPE_CHECKING:
    from seamscope.hooks import Vlm

    from ._run import Settings

ENDS: Final = 1 << 20  # bytes at either end of a file of weights that are read; all of it would take minutes
WEIGHTS: Final = ".safetensors"


def made_from(settings: Settings) -> dict[str, str]:
    """Digests of the checkpoint, if it is a folder here, and of the user's own records, by what they are of."""
    found = {}
    folder = checkpoint_folder(settings.model)
    if folder is not None:
        found["model"] = _digest(sorted(each for each in folder.iterdir() if each.suffix in (WEIGHTS, ".json")))
    records = Path(settings.task.removeprefix("jsonl:"))
    if records.suffix == ".jsonl" and records.is_file():
        found["task"] = _digest([records])
    return found


def used_by(vlm: Vlm) -> dict[str, str]:
    """What "auto" came to on this machine: numbers in half precision depend on all of it."""
    return {
        "attn_implementation": vlm.attn_implementation,
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "device": vlm.device.type,
    }


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            if file.suffix == WEIGHTS and size > 2 * ENDS:
                digest.update(stream.read(ENDS))
                stream.seek(size - ENDS)
            digest.update(stream.read())
    return digest.hexdigest()
