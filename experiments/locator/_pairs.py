"""Probes along the way: do they tell an item from its counterfactual partner here?"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from seamscope.activations import Store
from seamscope.hooks import RunError, Site
from seamscope.probes import control_labels, pair_contrast

from .._probing import object_of

OWN: Final = {"direct": "image.object.{}", "oracle": "intermediate.{}"}
COARSE: Final = 20  # places that are measured at first, where there are more
KEYS: Final = ["condition", "site", "kind", "object", "group"]
NONE: Final = [*KEYS, "span", "right", "control", "named", "named_control", "floor"]
NO_OBJECT: Final = -1  # of what is true of all objects together

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


class Pairs:
    """Items and their partners in a store, what tells them apart, and probes for it at any place.

    Args:
        store: pooled activations of direct and oracle runs.
        needs: globs of the variables that the answer depends on.
        seed: of folds and of control labels.
    """

    def __init__(self, store: Store, *, needs: Sequence[str], seed: int) -> None:
        self._store, self._seed = store, seed
        rows = store.rows("direct")
        members = rows.groupby("group", sort=False).indices
        self.groups = [str(group) for group, held in members.items() if len(held) == 2]
        self._rows = np.array([members[group] for group in self.groups], dtype=np.int64).reshape(-1, 2)
        names = [str(name).removeprefix("var:") for name in rows.columns if str(name).startswith("var:")]
        wanted = [name for name in names if any(fnmatchcase(name, glob) for glob in needs)]
        varied = [name for name in wanted if len(set(rows[f"var:{name}"]) - {""}) > 1]
        self._labels = {name: self._codes(rows, name) for name in varied}
        self._objects = {name: number for name in self._labels if (number := object_of(name)) is not None}
        if not self._objects or not self.groups:
            raise RunError("there is nothing to probe for: items need partners, and variables such as object.0.name")

    def _codes(self, rows: pd.DataFrame, name: str) -> tuple[Codes, Codes]:
        """Codes of a variable and of its control task, (pairs, 2); -1 where a row has no label."""
        column, kinds = rows[f"var:{name}"], rows[f"type:{name}"]
        real = pd.factorize(column.where(column != ""), sort=True)[0].astype(np.int64)
        types = pd.factorize(kinds.where(kinds != ""), sort=True)[0].astype(np.int64)
        rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
        return real[self._rows], control_labels(real, types, rng)[self._rows]

    def own(self, site: str, condition: str) -> pd.DataFrame:
        """At each object's own tokens: the variables of that object."""
        found = []
        for number in sorted(set(self._objects.values())):
            names = [name for name, own in self._objects.items() if own == number]
            found.append(self._contrast(site, OWN[condition].format(number), condition, names).assign(span="objects"))
        return _joined(found)

    def at(self, site: str, *, span: str, condition: str) -> pd.DataFrame:
        """At a span that all objects share: the variables of all of them, and those of the answer."""
        return self._contrast(site, span, condition, list(self._labels)).assign(span=span)

    def form(self, site: str, *, span: str) -> pd.DataFrame:
        """At a span of direct runs, by probes that were fitted on text runs: is it there in their form?"""
        return self._contrast(site, span, "oracle", list(self._objects), scored="direct").assign(span=span)

    def _contrast(
        self, site: str, span: str, condition: str, names: Sequence[str], *, scored: str | None = None
    ) -> pd.DataFrame:
        if any((site, span) not in self._store.cells(each) for each in (condition, scored or condition)):
            return pd.DataFrame(columns=NONE)
        labels = {name: self._labels[name][0] for name in names}
        labels |= {f"control of {name}": self._labels[name][1] for name in names}
        others = self._features(site, span, scored) if scored else None
        hits = pair_contrast(self._features(site, span, condition), labels, scored=others, seed=self._seed)
        rows = [
            pd.DataFrame(
                {
                    "condition": scored or condition,
                    "site": site,
                    "kind": "object" if name in self._objects else "answer",
                    "object": self._objects.get(name, NO_OBJECT),
                    "group": self.groups,
                    "right": hits.right[name],
                    "control": hits.right[f"control of {name}"],
                    "named": hits.named[name],
                    "named_control": hits.named[f"control of {name}"],
                    "floor": _commonest(labels[name]),
                }
            )
            for name in names
        ]
        long = pd.concat(rows).dropna(subset=["right", "named"], how="all")
        return long.groupby(KEYS, sort=False, as_index=False).mean(numeric_only=True)

    def _features(self, site: str, span: str, condition: str) -> Floats:
        """Mean activations, (pairs, 2, d), NaN where a row has no tokens."""
        held = self._store.read(site, span, condition)
        values = held.values.double().flatten(1)
        sums = torch.zeros(len(held), values.shape[1], dtype=torch.float64)
        sums.index_add_(0, held.row_of.to(sums.device), values)
        means = (sums / held.lengths[:, None]).numpy()
        found: Floats = means[self._rows]
        return found


def _commonest(codes: Codes) -> float:
    """The share of the commonest label: what naming that one always would get right."""
    known = codes[codes >= 0]
    return float(np.bincount(known).max() / len(known)) if len(known) else 0.0


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    held = [table for table in tables if len(table)]
    return pd.concat(held, ignore_index=True) if held else pd.DataFrame(columns=NONE)


def along(
    places: Sequence[str],
    measure: Callable[[str], pd.DataFrame],
    *,
    level: Callable[[pd.DataFrame], float],
    there: float,
) -> dict[str, pd.DataFrame]:
    """Measure places along a way, all if they are few, else some, and more between where what they hold changes.

    `level` says how much a table found; what has `there` of the most counts as holding it.

    Returns the tables of those that were measured, in their order; places where nothing is held are left out.
    """
    step = max(1, -(-len(places) // COARSE))
    chosen = sorted({*range(0, len(places), step), len(places) - 1}) if places else []
    found = {number: measure(places[number]) for number in chosen}
    while (between := _gap(found, level, there)) is not None:
        found[between] = measure(places[between])
    return {places[number]: found[number] for number in sorted(found) if len(found[number])}


def _gap(found: Mapping[int, pd.DataFrame], level: Callable[[pd.DataFrame], float], there: float) -> int | None:
    """A place halfway between two neighbours that differ, if any."""
    numbers = sorted(found)
    levels = {number: level(table) if len(table) else 0.0 for number, table in found.items()}
    holds = {number: levels[number] >= there * max(levels.values()) for number in numbers}
    for before, after in pairwise(numbers):
        if after - before > 1 and holds[before] != holds[after]:
            return (before + after) // 2
    return None


def named(table: pd.DataFrame) -> float:
    """How many are named rightly, of those that are not by chance."""
    return float(((table.named - table.floor) / (1 - table.floor)).mean())


def apart(table: pd.DataFrame) -> float:
    """How well items are told from their partners; 0 is chance."""
    return float(2 * table.right.mean() - 1)


def way(sites: Sequence[str]) -> list[str]:
    """The sites that an intermediate passes at its own tokens, from the tower's first layer to the decoder's last."""
    parsed = [(site, Site.parse(site)) for site in sites]
    return [site for site, each in parsed if each.kind == "resid_post" or site in ("projector.out", "lm.embed")]
