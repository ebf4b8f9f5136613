"""What a run was made from, so that a resumed one does not mix results of two models or of two files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import torch

from seamscope.hooks import checkpoint_folder

from . import tasks

if TYPE_CHECKING:
    from seamscope.hooks import Vlm

    from ._run import Settings
    from .tasks import Item

BLOCKS: Final = 256  # pieces of a file of weights that are read; all of it would take minutes
BLOCK: Final = 1 << 16  # bytes
# what a run may be continued with otherwise: it changes results by rounding at most, or only how they are kept
UNCOUNTED: Final = ("batch_size", "engine", "device", "compression", "rows_per_shard")
WEIGHTS: Final = ".safetensors"


def made_from(settings: Settings) -> dict[str, str]:
    """Digests of the checkpoint, if it is a folder here, and of the user's own records and pictures.

    Of large files of weights the digest covers name, size and `BLOCKS` blocks from end to end, not every byte.
    """
    found = {}
    folder = checkpoint_folder(settings.model)
    if folder is not None:
        found["model"] = _digest(sorted(each for each in folder.iterdir() if each.suffix in (WEIGHTS, ".json")))
    files = tasks.get(settings.task).files
    if files:
        found["task"] = _digest(files)
    return found


def provenance(
    vlm: Vlm,
    settings: Settings,
    item: Item,
    *,
    sites: Sequence[str],
    conditions: Sequence[str],
    digests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a store says about how it came about: all that was asked, the model's and the processor's identity.

    `prompts` are those of one item; call 2 of the cascade is shown with the right intermediate. `digests` are those
    of `made_from`, where they are known already.
    """
    asked = {name: value for name, value in asdict(settings).items() if name not in UNCOUNTED}
    heard = item.saying(item.intermediate)
    return {
        **asked,
        "used": used_by(vlm),
        "sites": list(sites),
        "made_from": dict(made_from(settings) if digests is None else digests),
        "revision": getattr(vlm.model.config, "_commit_hash", None),
        "processor_sha256": _processor_digest(vlm.processor),
        "prompts": {name: vlm.encode([heard], condition=name).texts[0] for name in ("perceive", *conditions)},
    }


def made_with(vlm: Vlm, settings: Settings) -> dict[str, Any]:
    """What does not change results beyond rounding."""
    kind = torch.cuda.get_device_name(vlm.device) if vlm.device.type == "cuda" else vlm.device.type
    return {"device": kind, **{name: getattr(settings, name) for name in ("batch_size", "engine", "compression")}}


def _processor_digest(processor: Any) -> str:
    """sha256 of the files as which a processor is saved."""
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        return _digest(sorted(file for file in Path(folder).rglob("*") if file.is_file()))


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
            if file.suffix == WEIGHTS and size > BLOCKS * BLOCK:
                for k in range(BLOCKS):
                    stream.seek(k * (size - BLOCK) // (BLOCKS - 1))
                    digest.update(stream.read(BLOCK))
            else:
                digest.update(stream.read())
    return digest.hexdigest()
