"""Facts and tables of experiments that were made up, for tests of the locator's procedure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments.locator import Decision, Thresholds, decide
from seamscope.experiments.locator._evidence import Findings

T = Thresholds()
LAYERS = 4
PLACES = (
    *(f"vision.{k}.resid_post" for k in range(2)),
    "projector.out",
    "lm.embed",
    *(f"lm.{k}.resid_post" for k in range(LAYERS)),
)
NEVER = np.zeros(LAYERS)
EVER = np.ones(LAYERS)


# Facts


def held(upto: str | None, *, before: float = 1.0, after: float = 0.0) -> np.ndarray:
    """What is named on the way, where it goes at one place."""
    start = len(PLACES) if upto is None else PLACES.index(upto)
    return np.array([before] * start + [after] * (len(PLACES) - start))


class Made:
    """Facts that were made up; what is not among them must not be asked for."""

    places = PLACES

    def __init__(self, *, objects: Sequence[Made] = (), **known: Any) -> None:
        self.objects, self.known, self.asked = objects, known, set[str]()

    def __getattr__(self, name: str) -> Any:
        if name not in self.known:
            raise AssertionError(f"{name} was measured in vain")
        self.asked.add(name)
        return self.known[name]


BEHAVIOUR = {"oracle": 1.0, "loss": 0.8, "unreadable": 0.0}
SHOWN = {**BEHAVIOUR, "words": 1.0, "path": held(None)}
READ = {**SHOWN, "text_reading": np.array([0.1, 0.9, 1.0, 1.0])}
ARRIVES = {**READ, "reading": np.array([0.0, 0.1, 0.9, 0.9]), "needs": np.array([1.0, 1.0, 0.9, 0.1])}


def outcome(known: dict[str, Any], limits: Thresholds = T, **changes: Any) -> Decision:
    """What is decided; exactly the facts given must have been asked for."""
    facts = Made(**{**known, **changes})
    found = decide(facts, limits)
    assert facts.asked == set(facts.known)
    return found


def around(limit: float, below: Any, above: Any, decided: Callable[[float], Any]) -> None:
    """At the limit and above it is decided one way, just below it the other."""
    assert [decided(limit + step) for step in (-0.001, 0.0, 0.001)] == [below, above, above]


# What experiments found, as tables

N = 40
GROUPS = [f"item {k}" for k in range(N)]


class Tables:
    """Stands in for the experiments; notes which were asked for. A table may be made of what was asked."""

    def __init__(self, answers: pd.DataFrame, **tables: pd.DataFrame | Callable[..., pd.DataFrame]) -> None:
        self.n_layers = LAYERS
        self.answers, self._tables, self.run = answers, tables, list[str]()
        self.made: dict[str, pd.DataFrame] = {}

    def __getattr__(self, name: str) -> Callable[..., pd.DataFrame]:
        if name not in self._tables:
            raise AttributeError(name)

        def table(*asked: Any) -> pd.DataFrame:
            self.run.append(name)
            known = self._tables[name]
            self.made[name] = known(*asked) if callable(known) else known.copy()
            return self.made[name]

        return table


def found_in(
    monkeypatch: pytest.MonkeyPatch,
    answers: pd.DataFrame,
    **tables: pd.DataFrame | Callable[..., pd.DataFrame],
) -> Findings:
    """Findings of such tables, with few resamples."""
    monkeypatch.setattr("seamscope.experiments.locator._items.RESAMPLES", 200)
    return Findings(Tables(answers, **tables), seed=0)  # type: ignore[arg-type]


def answered(direct: np.ndarray, *, oracle: Any = True, parsed: Any = True) -> pd.DataFrame:
    columns = {"correct": {"oracle": oracle, "direct": direct, "cascaded": True}, "parsed": {"direct": parsed}}
    return pd.concat(
        pd.DataFrame({"id": GROUPS, "group": GROUPS, "condition": condition, "saw": condition == "cascaded"}).assign(
            correct=columns["correct"][condition], parsed=columns["parsed"].get(condition, True)
        )
        for condition in ("direct", "cascaded", "oracle")
    )


def probed(site: str, level: Any, condition: str = "direct", span: str = "objects", number: int = 0) -> pd.DataFrame:
    """A site at which this share of an object is named and told apart, from no better than chance on to all."""
    rows = pd.DataFrame({"condition": condition, "site": site, "span": span, "kind": "object", "group": GROUPS})
    told = np.broadcast_to(level, N)
    return rows.assign(
        right=0.5 + told / 2, control=0.5, named=0.2 + 0.8 * told, named_control=0.2, floor=0.2, object=number
    )


def along(*levels: Any) -> pd.DataFrame:
    """A way on which this share of each object is named, (places,), and text runs in which all are."""
    tables = [
        [probed(place, level, number=number) for place, level in zip(PLACES, own, strict=True)]
        + [probed("lm.embed", 1.0, "oracle", number=number)]
        for number, own in enumerate(levels)
    ]
    return pd.concat([table for own in tables for table in own], ignore_index=True)


def read(*levels: Any, text: Any = EVER) -> pd.DataFrame:
    """Reading positions at which this share of each object is told apart, (layers,); and those of text runs."""
    return pd.concat(
        [
            probed(f"lm.{k}.resid_post", share, condition, "last", number)
            for number, own in enumerate(levels)
            for condition, level in (("direct", own), ("oracle", text))
            for k, share in enumerate(level)
        ],
        ignore_index=True,
    )


def patched(experiment: str, layer: int, right: Any, *, begun: Any = False) -> pd.DataFrame:
    """Which answers come right with a patch at a layer, and which (`begun`) are right without."""
    rows = pd.DataFrame({"experiment": experiment, "target_site": f"lm.{layer}.resid_post", "group": GROUPS})
    return rows.assign(right=right, base_right=begun)


def swept(experiment: str, shares: Sequence[float], control: float = 0.0) -> pd.DataFrame:
    """By layer, the share of the answers that come right, and with the partner's states."""
    order = np.arange(N) / N
    return pd.concat(
        patched(name, layer, order < share)
        for layer, own in enumerate(shares)
        for name, share in ((experiment, own), (f"{experiment}_control", control))
    )


def needing(shares: Sequence[float]) -> pd.DataFrame:
    """By layer, the share of the text answer that is lost."""
    return pd.concat(
        patched("text_noise", layer, False).assign(base=-1.0, patched=-1.0 - 4 * share, ceiling=-5.0)
        for layer, share in enumerate(shares)
    )
