"""What a store says about itself: model, task, conditions, and how it came about."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from seamscope.activations._layout import FORMAT_VERSION, check_name
from seamscope.hooks import StoreError

_PACKAGES = ("seamscope", "torch", "transformers", "numpy", "h5py", "pillow", "tokenizers", "torchvision")
_LONGEST = 80  # characters of a value in a message
_OURS = ("format_version", "versions")


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What a store holds; fixed when the store is created.

    Attributes:
        model: name of the model that was run.
        task: name of the task.
        conditions: conditions that rows may be appended under.
        provenance: anything that JSON can hold, such as the options of the run. The store adds
            `format_version` and the `versions` of the packages; these two keys are not yours to give.
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
        """The same with the store's own provenance added; raises `StoreError` for what cannot be kept."""
        taken = sorted(set(_OURS) & set(self.provenance))
        if taken:
            raise StoreError(f"provenance key {taken[0]!r} is written by the store itself; name yours otherwise")
        own = {"format_version": FORMAT_VERSION, "versions": _versions()}
        stamped = replace(self, conditions=tuple(self.conditions), provenance={**self.provenance, **own})
        stamped.to_json()
        return stamped

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

    def differences(self, other: Schema) -> list[str]:
        """What another schema says otherwise, as "name: theirs, not ours"."""
        mine, theirs = (_flat(json.loads(each.to_json())) for each in (self, other))
        names = dict.fromkeys([*mine, *theirs])
        return [
            f"{name}: {_told(theirs, name)}, not {_told(mine, name)}"
            for name in names
            if mine.get(name, _ABSENT) != theirs.get(name, _ABSENT)
        ]

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


_ABSENT = object()


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """One entry for each leaf, by the keys that lead there: `provenance` itself is not worth a word."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        inner = _flat(value) if isinstance(value, Mapping) and value else None
        found |= {key: value} if inner is None else {f"{key}.{name}": leaf for name, leaf in inner.items()}
    return {name.removeprefix("provenance."): leaf for name, leaf in found.items()}


def _told(content: Mapping[str, Any], name: str) -> str:
    text = repr(content[name]) if name in content else "nothing"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
