"""What can go wrong, as types.

SeamscopeError
├── ModelError   a checkpoint that cannot be loaded, or a model whose sites cannot be trusted
├── SiteError    an unknown site, or one that cannot be read or written here
├── SpanError    an unknown span, or token positions that do not fit
├── StoreError   a file of activations that cannot be written, read or believed
├── TaskError    an unknown task or condition, or an item that does not fit its task
└── RunError     a run asked for with arguments that do not fit together
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SeamscopeError(Exception):
    """Base of every error that seamscope raises on purpose; its text is one line for the user."""


class ModelError(SeamscopeError):
    """A checkpoint cannot be loaded, or a model's sites cannot be trusted."""


class SiteError(SeamscopeError):
    """A site does not exist, or cannot be read or written in this model."""


class SpanError(SeamscopeError):
    """A span does not exist, or its positions do not fit what is done with them."""


class StoreError(SeamscopeError):
    """A file of activations cannot be written, read or believed."""


class TaskError(SeamscopeError):
    """A task or condition does not exist, or an item does not fit it."""


class RunError(SeamscopeError):
    """The arguments of a run do not fit together."""


def choose(what: str, got: str, choices: Iterable[str], error: type[SeamscopeError]) -> str:
    """Give `got` back if it is one of `choices`; else raise `error`, naming the nearest and all of them."""
    known = list(dict.fromkeys(choices))
    if got in known:
        return got
    near = get_close_matches(got, known, n=3, cutoff=0.5)
    hint = f" nearest: {', '.join(near)};" if near else ""
    raise error(f"unknown {what} {got!r};{hint} one of: {_listed(known)}")


def _listed(choices: list[str], limit: int = 24) -> str:
    shown = ", ".join(choices[:limit]) or "(none)"
    return shown if len(choices) <= limit else f"{shown}, … ({len(choices)} in all)"
