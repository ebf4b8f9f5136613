"""What a store says about itself: model, task, conditions, and how it came about."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from seamscope.activations._layout import FORMAT_VERSION, check_name
from seamscope.hooks import StoreError

_PACKAGES = ("seamscope", "torch", "transformers", "numpy", "h5py")
_OURS = ("created", "format_version", "versions")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a store holds; fixed when the store is created.

    Attributes:
        model: name of the model that was run.
        task: name of the task.
        conditions: conditions that rows may be appended under.
        provenance: anything that JSON can hold, such as the options of the run. The store adds `created`
            (UTC), `format_version` and `versions` of the packages; these three keys are not yours to give.
    """

    model: str
    task: str
    conditions: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.conditions, str) or not self.conditions:
            raise StoreError(f"a store needs a tuple of at least one condition, not {self.conditions!r}")
        for condition in self.conditions:
            check_name("condition", condition)

    def stamped(self) -> Schema:
        """The same with the store's own provenance added; raises `StoreError` if a key of it is taken."""
        taken = sorted(set(_OURS) & set(self.provenance))
        if taken:
            raise StoreError(f"provenance key {taken[0]!r} is written by the store itself; name yours otherwise")
        own = {"created": _now(), "format_version": FORMAT_VERSION, "versions": _versions()}
        return Schema(
            model=self.model,
            task=self.task,
            conditions=tuple(self.conditions),
            provenance={**self.provenance, **own},
        )

    def to_json(self) -> bytes:
        """UTF-8 JSON; raises `StoreError` naming what JSON cannot hold."""
        content = {
            "model": self.model,
            "task": self.task,
            "conditions": list(self.conditions),
            "provenance": dict(self.provenance),
        }
        try:
            return json.dumps(content, ensure_ascii=False, indent=1).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"provenance must be plain JSON: {error}") from error

    @classmethod
    def from_json(cls, raw: bytes) -> Schema:
        """Read what `to_json` wrote; raises `StoreError` for anything else."""
        content = parse_json("schema", raw)
        match content:
            case {
                "model": str(model),
                "task": str(task),
                "conditions": [*names],
                "provenance": dict(provenance),
            }:
                return cls(model=model, task=task, conditions=tuple(names), provenance=provenance)
        raise StoreError("its schema lacks model, task, conditions or provenance")


def parse_json(what: str, raw: bytes) -> Any:
    """Parse JSON from a file that is not trusted."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"its {what} is not JSON") from error


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
