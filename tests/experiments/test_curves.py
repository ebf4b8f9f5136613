"""What probes read of each object, and of all: on made-up tables, which noise must not part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments.locator._asking import READ_AT
from seamscope.experiments.locator._curves import Curves
from seamscope.experiments.locator._decide import ENOUGH, _noise, _part
from seamscope.experiments.locator._items import Items

from ._made_up import EVER, GROUPS, LAYERS, NEVER, PLACES, N, T, along, held, probed, read

MakeCurves = Callable[..., Curves]


@pytest.fixture
def curves_of(monkeypatch: pytest.MonkeyPatch) -> MakeCurves:
    """Curves of such tables, with few resamples."""
    monkeypatch.setattr("seamscope.experiments.locator._items.RESAMPLES", 100)

    def make(groups: list[str] = GROUPS, layers: int = LAYERS, **tables: pd.DataFrame) -> Curves:
        held = {name: lambda table=table: table.copy() for name, table in tables.items()}
        asking = SimpleNamespace(n_layers=layers, **held)
        return Curves(Items(groups, seed=0), asking)  # type: ignore[arg-type]

    return make


# Of whom there is enough


def without(table: pd.DataFrame, number: int, kept: int, *columns: str) -> pd.DataFrame:
    """The table in which only the first `kept` items have these columns for an object."""
    lacks = (table.object == number) & ~table.group.isin(GROUPS[:kept])
    return table.assign(**{name: table[name].mask(lacks) for name in columns})


def test_an_object_is_followed_however_few_items_differ_from_their_partner(curves_of: MakeCurves) -> None:
    curves = curves_of(path=without(along(held(None), held(None), held(None)), 1, 3, "right"))
    assert curves.objects == (0, 1, 2)
    assert [curves.pairs(number) for number in curves.objects] == [N, 3, N]


def test_an_object_is_followed_if_most_items_have_one(curves_of: MakeCurves) -> None:
    path = along(held(None), held(None))
    assert curves_of(path=without(path, 1, N // 2, "named", "right")).objects == (0, 1)
    assert curves_of(path=without(path, 1, N // 2 - 1, "named")).objects == (0,)
    rows = path[(path.object == 0) | path.group.isin(GROUPS[: N // 2 - 1])]  # rows that are not there at all
    assert curves_of(path=rows).objects == (0,)


def test_items_that_were_not_probed_count_as_lacking_it(curves_of: MakeCurves) -> None:
    path = along(held(None))
    assert curves_of(GROUPS + [f"more {k}" for k in range(N)], path=path).objects == (0,)
    assert curves_of(GROUPS + [f"more {k}" for k in range(N + 1)], path=path).objects == ()


def test_objects_of_text_runs_are_not_counted(curves_of: MakeCurves) -> None:
    path = along(held(None))
    words = probed("lm.embed", 1.0, "oracle", number=3)
    assert curves_of(path=pd.concat([path, words])).objects == (0,)


# Along the way


RNG = np.random.default_rng(4)
LEVELS = RNG.random((2, len(PLACES), N))


def drawn(curves: Curves, row: int) -> np.ndarray:
    return np.repeat(np.arange(N), curves._items.weights[row].astype(int))


def test_an_objects_way_by_brute_force(curves_of: MakeCurves) -> None:
    curves = curves_of(path=along(*LEVELS))
    for row in (0, 1, 60):
        items = drawn(curves, row)
        for number, own in enumerate(LEVELS):
            np.testing.assert_allclose(curves.own("direct", number).named()[0][row], own[:, items].mean(1))
            np.testing.assert_allclose(curves.own("direct", number).apart()[row], own[:, items].mean(1))
        np.testing.assert_allclose(curves.own("direct").named()[0][row], LEVELS.mean(0)[:, items].mean(1))
    control = curves.own("direct", 1).named()[1]
    np.testing.assert_allclose(control, 0, atol=1e-12)
    assert curves.own("oracle").index == curves.own("oracle", 1).index == ("lm.embed",)


def test_items_with_fewer_objects_count_where_they_have_them(curves_of: MakeCurves) -> None:
    path = without(along(*LEVELS), 1, 25, "named")
    curves = curves_of(path=path)
    np.testing.assert_allclose(curves.own("direct", 1).named()[0][0], LEVELS[1, :, :25].mean(1))
    both = np.where(np.arange(N) < 25, LEVELS.mean(0), LEVELS[0])
    np.testing.assert_allclose(curves.own("direct").named()[0][0], both.mean(1))


def test_places_of_an_object_are_those_of_all(curves_of: MakeCurves) -> None:
    """Where an object was not measured its curve has no number, and stays in step."""
    path = along(held("lm.1.resid_post"), held(None))
    path = path[~((path.object == 0) & path.site.isin([PLACES[0], PLACES[3]]))]
    curves = curves_of(path=path)
    assert curves.places == (*PLACES[1:3], *PLACES[4:], PLACES[0], PLACES[3])  # as they come
    path = along(held(None), held("lm.1.resid_post"))
    path = path[~((path.object == 1) & path.site.isin([PLACES[0], PLACES[3]]))]
    curves = curves_of(path=path)
    assert curves.places == PLACES
    wanted = held("lm.1.resid_post")
    wanted[[0, 3]] = np.nan
    np.testing.assert_allclose(curves.own("direct", 1).named()[0][0], wanted, atol=1e-12)
    nobody = curves.own("direct", 7).named()[0]
    assert nobody.shape == (101, len(PLACES))
    assert np.isnan(nobody).all()


# At the reading positions


def test_an_objects_reading_is_at_the_position_that_holds_most_of_it(curves_of: MakeCurves) -> None:
    levels = {(span, number): RNG.random((LAYERS, N)) for span in READ_AT for number in range(2)}
    reading = pd.concat(
        probed(f"lm.{k}.resid_post", share * level[k], condition, span, number)
        for (span, number), level in levels.items()
        for condition, share in (("direct", 0.5), ("oracle", 1.0))
        for k in range(LAYERS)
    )
    answer = reading.assign(kind="answer", object=-1, right=1.0)
    curves = curves_of(reading=pd.concat([reading, answer]))
    for row in (0, 44):
        items = drawn(curves, row)
        for condition, share in (("direct", 0.5), ("oracle", 1.0)):
            for number in range(2):
                best = np.max([levels[span, number][:, items].mean(1) for span in READ_AT], axis=0)
                np.testing.assert_allclose(curves.reading(condition, number)[row], share * best)
            both = [np.mean([levels[span, k][:, items].mean(1) for k in range(2)], axis=0) for span in READ_AT]
            np.testing.assert_allclose(curves.reading(condition)[row], share * np.max(both, axis=0))


def test_form_is_read_like_the_rest(curves_of: MakeCurves) -> None:
    table = pd.concat([read([0.1, 0.2, 0.3, 0.4]), read([0.4, 0.3, 0.2, 0.1]).assign(span="question")])
    curves = curves_of(form=table[table.condition == "direct"])
    np.testing.assert_allclose(curves.form()[0], [0.4, 0.3, 0.3, 0.4])
    few = table[(table.condition == "direct") & table.site.isin(["lm.0.resid_post", "lm.2.resid_post"])]
    np.testing.assert_allclose(curves_of(form=few).form()[0], [0.4, 0.4, 0.3, 0.3])


def test_an_object_that_was_never_read_has_no_curve(curves_of: MakeCurves) -> None:
    assert np.isnan(curves_of(reading=read(EVER)).reading("direct", 5)).all()


# Noise


def noisy(
    levels: Mapping[int, np.ndarray], *, pairs: int, items: int, seed: int, sites: tuple[str, ...], span: str
) -> pd.DataFrame:
    """Each object is named in every item and told apart in `pairs` of them, at random, with these shares, (places,)."""
    rng, tables = np.random.default_rng(seed), []
    for number, level in levels.items():
        differ = rng.permutation(items) < pairs
        for site, share in zip(sites, level, strict=True):
            rows = {"condition": "direct", "site": site, "span": span, "kind": "object", "object": number, "floor": 0.2}
            right = np.where(differ, rng.random(items) < 0.5 + share / 2, np.nan)
            named = rng.binomial(2, 0.2 + 0.8 * share, size=items) / 2
            groups = [f"item {k}" for k in range(items)]
            table = pd.DataFrame({**rows, "group": groups, "right": right, "named": named})
            tables.append(table.assign(control=0.5, named_control=0.2))
    return pd.concat(tables, ignore_index=True)


def partings(
    curves_of: MakeCurves, levels: Mapping[int, np.ndarray], *, pairs: int, items: int, seed: int
) -> dict[str, tuple[bool, float]]:
    """Whether the sample parts objects, and the share of resamples that do: on the way, and where they are read."""
    options = {"pairs": pairs, "items": items}
    layers = tuple(f"lm.{k}.resid_post" for k in range(len(next(iter(levels.values())))))
    path = noisy(levels, sites=layers, span="objects", seed=seed, **options)
    reading = pd.concat(
        noisy(levels, sites=layers, span=span, seed=seed + 1 + k, **options) for k, span in enumerate(READ_AT)
    )
    groups = [f"item {k}" for k in range(items)]
    curves = curves_of(groups, len(layers), path=path, reading=reading)
    assert curves.objects == tuple(levels)
    found = {}
    for name, own, noise in (
        ("path", [curves.own("direct", k).named()[0] for k in levels], 0.0),
        ("reading", [curves.reading("direct", k) for k in levels], _noise([curves.pairs(k) for k in levels])),
    ):
        each = [_part([curve[row] for curve in own], T, noise=noise) for row in range(101)]
        found[name] = (each[0], float(np.mean(each[1:])))
    return found


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9])
def test_noise_parts_no_objects_on_the_way(curves_of: MakeCurves, level: float) -> None:
    """Of twenty pairs, the fewest by which an object is followed: which are named is known of all sixty items."""
    alike = {number: np.full(8, level) for number in range(3)}
    found = [partings(curves_of, alike, pairs=ENOUGH, items=3 * ENOUGH, seed=seed)["path"] for seed in range(0, 60, 3)]
    assert not any(parted for parted, _ in found)
    assert max(share for _, share in found) <= 0.05


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9])
@pytest.mark.parametrize(("pairs", "items"), [(ENOUGH, 3 * ENOUGH), (34, 100), (67, 200)])
def test_noise_seldom_parts_objects_where_they_are_read(
    curves_of: MakeCurves, level: float, pairs: int, items: int
) -> None:
    """In each item one of three objects is another than its partner's; noise of every layer is its own here."""
    alike = {number: np.full(8, level) for number in range(3)}
    found = [partings(curves_of, alike, pairs=pairs, items=items, seed=seed)["reading"] for seed in range(0, 30, 3)]
    assert sum(parted for parted, _ in found) <= 1
    assert np.mean([share for _, share in found]) <= 0.3  # of their resamples, in which noise is greater


def test_what_is_lost_of_one_object_parts_them_in_spite_of_noise(curves_of: MakeCurves) -> None:
    for layer in (0, 3, 6):
        lost = np.where(np.arange(8) >= layer, 0.0, 0.9)
        ways = {0: np.full(8, 0.9), 1: lost, 2: np.full(8, 0.9)}
        for seed in range(0, 15, 3):
            found = partings(curves_of, ways, pairs=67, items=200, seed=seed)
            assert all(parted and share > 0.7 for parted, share in found.values()), (layer, seed)


def test_fewer_than_two_curves_part_nothing() -> None:
    assert not _part([], T)
    assert not _part([held("lm.0.resid_post")], T)
    assert _part([held("lm.0.resid_post"), held(None)], T)
    assert not _part([NEVER, NEVER + np.nan], T)
