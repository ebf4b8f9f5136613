"""Probes along a way: which places are measured, and which of them hold anything."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments.locator._pairs import along, apart, named, way
from seamscope.hooks import Vlm

THERE = 0.5


def level(table: pd.DataFrame) -> float:
    return float(table.right.mean())


def measured(holds: list[float | None]) -> tuple[list[int], list[int]]:
    """The places that are measured of a way that holds so much, and those that come back."""
    places, asked = [f"lm.{k}.resid_post" for k in range(len(holds))], list[int]()

    def measure(place: str) -> pd.DataFrame:
        number = places.index(place)
        asked.append(number)
        return pd.DataFrame({"right": [] if holds[number] is None else [holds[number]]})

    found = along(places, measure, level=level, there=THERE)
    numbers = [places.index(place) for place in found]
    assert numbers == sorted(numbers)
    assert all(len(found[places[number]]) == 1 for number in numbers)
    assert len(asked) == len(set(asked))
    return sorted(asked), numbers


@pytest.mark.parametrize("n", [0, 1, 2, 13, 20])
def test_few_places_are_all_measured(n: int) -> None:
    assert measured([1.0] * n) == (list(range(n)), list(range(n)))


@pytest.mark.parametrize("n", [21, 40, 81])
def test_of_many_places_some_are_measured_the_first_and_the_last_among_them(n: int) -> None:
    asked, found = measured([1.0] * n)
    assert asked == found
    assert asked[0] == 0
    assert asked[-1] == n - 1
    assert n / 5 < len(asked) <= 21
    assert max(np.diff(asked)) <= -(-n // 20)


@pytest.mark.parametrize("change", [1, 2, 29, 30, 31, 59, 80])
@pytest.mark.parametrize("rising", [False, True])
def test_where_it_changes_every_place_is_found(change: int, *, rising: bool) -> None:
    holds = [float((k >= change) == rising) for k in range(81)]
    asked, _ = measured(holds)
    assert {change - 1, change} <= set(asked)
    assert len(asked) < 30  # of 81: no more than it takes


def test_a_half_of_the_most_is_there() -> None:
    """What counts is relative to the most that any measured place holds."""
    assert {35, 36} <= set(measured([0.4] * 36 + [0.19] * 45)[0])
    assert len(measured([0.4] * 36 + [0.21] * 45)[0]) <= 21
    assert len(measured([0.0] * 81)[0]) <= 21


def test_places_that_hold_nothing_are_left_out() -> None:
    holds: list[float | None] = [None] * 3 + [1.0] * 5
    assert measured(holds) == (list(range(8)), [3, 4, 5, 6, 7])
    many: list[float | None] = [None] * 33 + [1.0] * 48
    asked, found = measured(many)
    assert {32, 33} <= set(asked)
    assert found[0] == 33


def test_levels() -> None:
    table = pd.DataFrame({"named": [0.2, 1.0], "floor": [0.2, 0.5], "right": [0.5, 1.0]})
    assert named(table) == pytest.approx(0.5)
    assert apart(table) == pytest.approx(0.5)
    assert apart(table.assign(right=0.5)) == 0
    assert named(table.assign(named=table.floor)) == 0


def test_the_way_is_that_of_the_forward_pass(composing: Vlm) -> None:
    found = way(composing.sites)
    tower, decoder = ([f"{stack}.{k}.resid_post" for k in range(n)] for stack, n in (("vision", 4), ("lm", 8)))
    assert found == [*tower, "projector.out", "lm.embed", *decoder]
    assert way(["lm.0.mlp_out", "lm.0.resid_pre", "lm.logits", "lm.final_norm", "lm.0.head_z"]) == []
