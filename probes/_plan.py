"""Which cells a grid has: names resolved and checked before anything is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from seamscope.activations import Store
from seamscope.hooks import SpanError, StoreError, choose, expand_sites

_OWN = "{k}"  # in a span: the number of the target's own object

Names = str | Sequence[str] | None


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One (site, span, condition) and the targets to probe for there."""

    site: str
    span: str
    condition: str
    targets: tuple[str, ...]


def plan_cells(store: Store, *, targets: Sequence[str], sites: Names, spans: Names, conditions: Names) -> list[Planned]:
    """Every cell that the store has and that was asked for, in the store's order.

    Raises:
        StoreError, SiteError, SpanError: for an unknown name, or if nothing is left.
    """
    wanted_conditions = [
        choose("condition", c, store.conditions, StoreError) for c in _named(conditions, store.conditions)
    ]
    wanted_sites = expand_sites(_named(sites, store.sites), store.sites)
    targets_at = _resolve(_named(spans, store.spans), targets, store.spans)
    cells = [
        Planned(site=site, span=span, condition=condition, targets=targets_at[span])
        for condition in wanted_conditions
        for site, span in store.cells(condition)
        if site in wanted_sites and span in targets_at
    ]
    if not cells:
        raise StoreError(f"{store.path} has none of these sites at these spans under {', '.join(wanted_conditions)}")
    return cells


def _named(names: Names, default: Sequence[str]) -> list[str]:
    return list(default) if names is None else [names] if isinstance(names, str) else list(names)


def _resolve(spans: Sequence[str], targets: Sequence[str], known: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The targets to probe for at each span; `{k}` becomes the first number in the name of a target."""
    found: dict[str, dict[str, None]] = {}
    for span in spans:
        own = [(span.replace(_OWN, number), t) for t in targets if (number := _number(t)) or _OWN not in span]
        if not own:
            raise SpanError(f"span {span!r} needs a target with a number in its name; got {', '.join(targets)}")
        for name, target in own:
            found.setdefault(choose("span", name, known, SpanError), {})[target] = None
    return {span: tuple(names) for span, names in found.items()}


def _number(target: str) -> str:
    parts = [part for part in target.split(".") if re.fullmatch(r"\d+", part)]
    return parts[0] if parts else ""
