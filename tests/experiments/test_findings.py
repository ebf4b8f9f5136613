"""What experiments say, on made-up tables: in the sample and in resamples, and no more than is asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments.locator import decide
from seamscope.experiments.locator._evidence import APART, MEASURES, Findings, NotAskedError, Row
from seamscope.experiments.locator._items import Items, interval

from ._made_up import (
    ARRIVES,
    EVER,
    GROUPS,
    LAYERS,
    NEVER,
    PLACES,
    Made,
    N,
    T,
    along,
    answered,
    found_in,
    held,
    patched,
    probed,
    read,
    swept,
)

RNG = np.random.default_rng(1)
RIGHT = np.arange(N) % 5 == 0  # one in five
LEVELS = {place: RNG.random(N) for place in PLACES}
PATH = pd.concat([*(probed(place, LEVELS[place]) for place in PLACES), probed("lm.embed", 1.0, "oracle", "objects")])
SPANS = {"last": RNG.random((LAYERS, N)), "question": RNG.random((LAYERS, N))}
READING = pd.concat(
    probed(f"lm.{k}.resid_post", SPANS[span][k] * (1.0 if condition == "oracle" else 0.3), condition, span)
    for condition in ("direct", "oracle")
    for span in SPANS
    for k in range(LAYERS)
)
HELD = {name: RNG.random((LAYERS - 1, N)) < share for name, share in (("hold", 0.6), ("hold_control", 0.3))}
HOLD = pd.concat(
    patched(name, k, right, begun=np.arange(N) % 3 == 0)
    for name, layers in HELD.items()
    for k, right in enumerate(layers)
)


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> Findings:
    return found_in(monkeypatch, answered(RIGHT), path=PATH, reading=READING, hold=HOLD)


def test_nothing_is_measured_before_it_is_asked_for(findings: Findings) -> None:
    assert findings.asking.run == []  # type: ignore[attr-defined]
    findings.closed = True
    with pytest.raises(NotAskedError) as wanted:
        findings.of("path")
    assert wanted.value.name == "path"
    assert findings.of("oracle")[0] == 1  # known from the answers
    findings.closed = False
    findings.of("path")
    findings.closed = True
    assert findings.of("path").shape == (201, len(PLACES))
    assert set(findings.asking.run) == {"path"}  # type: ignore[attr-defined]
    assert "path" in findings.asking.made
    assert "hold" not in findings.asking.made


def test_behaviour_is_counted_where_the_textual_skill_works(monkeypatch: pytest.MonkeyPatch) -> None:
    able, parsed = np.arange(N) >= 10, np.arange(N) % 2 == 0
    found = found_in(monkeypatch, answered(RIGHT, oracle=able, parsed=parsed))
    failing = able & ~RIGHT
    assert found.of("oracle")[0] == pytest.approx(able.mean())
    assert found.of("loss")[0] == pytest.approx(failing.sum() / able.sum())
    assert found.of("unreadable")[0] == pytest.approx((failing & ~parsed).sum() / failing.sum())
    np.testing.assert_array_equal(found.failing, failing)


def test_a_larger_budget_counts_for_failures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes right where the textual skill fails, too, explains no loss."""
    able, unread = np.arange(N) >= 10, ~RIGHT
    longer = pd.DataFrame({"group": GROUPS, "right": ~able})[unread]
    found = found_in(monkeypatch, answered(RIGHT, oracle=able, parsed=~unread), longer=longer)
    assert found.of("longer")[0] == 0


def test_the_way_in_numbers(findings: Findings) -> None:
    path = findings.of("path")
    assert tuple(findings.places) == PLACES
    for number, place in enumerate(PLACES):
        assert path[0, number] == pytest.approx(LEVELS[place].mean())
    weights = findings.items.weights
    assert (weights[0] == 1).all()
    for row in (3, 77):
        drawn = np.repeat(np.arange(N), weights[row].astype(int))
        assert len(drawn) == N
        assert path[row, 2] == pytest.approx(LEVELS[PLACES[2]][drawn].mean())
    assert findings.of("words")[0] == pytest.approx(1)


def test_places_stay_in_order_though_some_items_lack_some(monkeypatch: pytest.MonkeyPatch) -> None:
    table = PATH[~((PATH.group == GROUPS[0]) & PATH.site.isin(PLACES[:3]))]
    found = found_in(monkeypatch, answered(RIGHT), path=table)
    assert tuple(found.places) == PLACES
    assert found.of("path")[0, 0] == pytest.approx(LEVELS[PLACES[0]][1:].mean())


def test_reading_is_the_better_of_two_positions(findings: Findings) -> None:
    for name, share in (("reading", 0.3), ("text_reading", 1.0)):
        wanted = share * np.maximum(SPANS["last"].mean(1), SPANS["question"].mean(1))
        np.testing.assert_allclose(findings.of(name)[0], wanted)


def test_layers_that_were_not_measured_hold_what_the_one_before_does(monkeypatch: pytest.MonkeyPatch) -> None:
    table = READING[~READING.site.isin(["lm.1.resid_post"])]
    reading = found_in(monkeypatch, answered(RIGHT), reading=table).of("reading")
    np.testing.assert_allclose(reading[:, 1], reading[:, 0])


def test_patches_are_counted_on_failures_that_they_could_mend_beyond_their_control(findings: Findings) -> None:
    mendable = ~RIGHT & (np.arange(N) % 3 > 0)
    beyond = HELD["hold"].astype(float) - HELD["hold_control"]
    hold = findings.of("hold")
    np.testing.assert_allclose(hold[0], beyond[:, mendable].mean(1))
    drawn = np.repeat(np.arange(N), findings.items.weights[9].astype(int))
    np.testing.assert_allclose(hold[9], beyond[:, drawn[mendable[drawn]]].mean(1))


def test_needs_are_shares_of_what_all_words_are_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = np.linspace(1, 9, N)
    table = pd.concat(
        patched("text_noise", k, False).assign(base=-1.0, patched=-1.0 - share * lost, ceiling=-1.0 - lost)
        for k, share in enumerate((1.0, 0.6, 0.4, 0.0))
    )
    found = found_in(monkeypatch, answered(RIGHT), needs=table)
    np.testing.assert_allclose(found.of("needs")[0], [1.0, 0.6, 0.4, 0.0], atol=1e-6)


def cut(name: str, lost: np.ndarray) -> pd.DataFrame:
    """Right answers whose lead over the partner's shrinks by so much."""
    return pd.DataFrame({"experiment": name, "group": GROUPS, "base_difference": 4.0, "difference": 4.0 - lost})


def test_what_a_cut_route_costs_is_counted_beyond_the_control(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = np.arange(N) / N
    table = pd.concat([cut("severed", 3 * lost), cut("severed_control", lost)])
    found = found_in(monkeypatch, answered(RIGHT), severed=table)
    values = found.of("severed")
    assert values[0] == pytest.approx(2 * lost.mean())
    note = found.notes[-1]
    assert (note.estimate, note.control) == (pytest.approx(2 * lost.mean()), pytest.approx(lost.mean()))
    assert note.low < note.estimate < note.high
    drawn = found.items.weights[1:] @ (2 * lost) / N  # paired: an item's control is drawn with it
    assert (note.low, note.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def test_where_nothing_can_be_cut_nothing_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that attends to the picture from outside has no tokens of objects."""
    found = found_in(monkeypatch, answered(RIGHT), severed=pd.DataFrame(columns=["id", "group"]))
    before = len(found.notes)
    assert np.isnan(found.of("severed")).all()
    assert len(found.notes) == before


def test_every_measurement_leaves_a_note(findings: Findings) -> None:
    before = len(findings.notes)
    for name in ("path", "words", "reading", "text_reading", "hold"):
        findings.of(name)
        findings.of(name)  # once only
    new = findings.notes[before:]
    assert len({(note.question, note.site) for note in new}) == len(new)
    assert all(note.low <= note.estimate <= note.high for note in new)
    assert {note.kind for note in new} == {"probe", "patch"}


def test_patches_of_no_failure_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """First tokens may be right where answers are not: then no patch of them can be seen to mend anything."""
    path = along(held("lm.2.resid_post"))
    found = found_in(monkeypatch, answered(RIGHT), path=path, hold=HOLD.assign(base_right=True), reading=READING)
    assert decide(Row(found, 0), T).locus != "overwritten"  # type: ignore[arg-type]


def test_a_model_whose_words_were_not_probed_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_in(monkeypatch, answered(RIGHT), path=PATH[PATH.condition == "direct"])
    assert decide(Row(found, 0), T).locus == "cannot_tell"  # type: ignore[arg-type]


def test_facts_are_all_measured_somewhere() -> None:
    """Whatever the procedure may ask for has a measurement, and what it asks of one object has one of each."""
    asked, of_one = set[str](), set[str]()
    known = {**ARRIVES, "hold": EVER, "longer": 0.0, "unreadable": 1.0}
    for objects in ((), (held(None), held("lm.1.resid_post"))):
        facts = Made(**known, objects=[Made(**{**known, "path": path, "pairs": N}) for path in objects])
        decide(facts, T)
        asked |= facts.asked
        of_one = of_one.union(*(each.asked for each in facts.objects))
    assert (asked | of_one) - {"pairs"} == set(known) <= set(MEASURES)
    assert of_one - set(APART) == {"hold", "needs", "pairs"}
    assert set(APART) <= of_one


def test_form_is_told_of_layers_at_which_direct_runs_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, form = read([0.2, 0.6, 0.9, 0.9]), read([0.9, 0.1, 0.3, 0.2])
    found = found_in(monkeypatch, answered(RIGHT), reading=reading, form=form[form.condition == "direct"])
    np.testing.assert_allclose(found.of("form")[0], [0.9, 0.1, 0.3, 0.2])
    assert (found.notes[-1].site, found.notes[-1].estimate) == ("lm.2.resid_post", pytest.approx(0.3))


def test_what_text_runs_give_is_told_of_the_first_early_layer_that_does_nearly_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Late layers bring the answer itself."""
    for shares, layer in (([0.75, 0.9, 1.0, 1.0], 0), ([0.6, 0.9, 1.0, 1.0], 1), ([0.1, 0.2, 1.0, 1.0], 1)):
        found = found_in(monkeypatch, answered(np.zeros(N)), given=swept("cross", shares))
        np.testing.assert_allclose(found.of("given")[0], shares)
        assert found.notes[-1].layer == layer
        assert found.notes[-1].control == 0


def test_facts_of_an_object_come_with_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"path": along(held(None), held("lm.1.resid_post")), "reading": read(EVER, NEVER), "hold": HOLD}
    found = found_in(monkeypatch, answered(RIGHT), **tables)
    found.closed = True
    for name in ("path", "reading", "text_reading"):
        with pytest.raises(NotAskedError, match=name):
            found.of_object(name, 1)
    found.closed = False
    together = {name: found.of(name) for name in ("path", "reading", "hold")}
    found.closed = True
    notes = len(found.notes)
    for name, own in (("path", (held(None), held("lm.1.resid_post"))), ("reading", (EVER, NEVER))):
        for number, wanted in enumerate(own):
            np.testing.assert_allclose(found.of_object(name, number)[0], wanted, atol=1e-12)
            assert found.of_object(name, number) is found.of_object(name, number)
        np.testing.assert_allclose(together[name][0], np.mean(own, axis=0))
    assert found.of_object("hold", 1) is together["hold"]  # the answer takes all objects
    assert len(found.notes) == notes


def test_a_row_is_of_all_objects_or_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = [RNG.random((len(PLACES), N)) for _ in range(2)]
    found = found_in(monkeypatch, answered(RIGHT), path=along(*levels), hold=HOLD)
    for number in (0, 5):
        drawn = np.repeat(np.arange(N), found.items.weights[number].astype(int))
        row = Row(found, number)
        np.testing.assert_allclose(row.path, np.mean(levels, axis=0)[:, drawn].mean(1))
        assert len(row.objects) == 2
        for own, level in zip(row.objects, levels, strict=True):
            assert tuple(own.places) == PLACES
            np.testing.assert_allclose(own.path, level[:, drawn].mean(1))
            np.testing.assert_array_equal(own.hold, row.hold)
            assert own.oracle == row.oracle == 1


def test_objects_are_not_known_before_the_way_is(findings: Findings) -> None:
    findings.closed = True
    with pytest.raises(NotAskedError, match="path"):
        _ = Row(findings, 3).objects


def test_means_of_resamples_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamscope.experiments.locator._items.RESAMPLES", 20)
    items = Items(GROUPS, seed=3)
    values = np.where(RNG.random((N, 3)) < 0.3, np.nan, RNG.random((N, 3)))
    values[:, 2] = np.nan
    means = items.mean(values)
    assert means.shape == (21, 3)
    for row in range(21):
        drawn = values[np.repeat(np.arange(N), items.weights[row].astype(int))]
        assert len(drawn) == N
        np.testing.assert_allclose(means[row, :2], np.nanmean(drawn[:, :2], axis=0))
    assert np.isnan(means[:, 2]).all()
    np.testing.assert_allclose(items.mean(values[:, 0]), means[:, 0])
    assert not np.array_equal(Items(GROUPS, seed=4).weights, items.weights)
    np.testing.assert_array_equal(Items(GROUPS, seed=3).weights, items.weights)


def test_no_place_has_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamscope.experiments.locator._items.RESAMPLES", 20)
    assert Items(GROUPS, seed=3).mean(np.zeros((N, 0))).shape == (21, 0)


def test_the_interval_is_of_the_resamples() -> None:
    values = np.concatenate([[99.0], np.arange(1001) / 1000, [np.nan]])
    assert interval(values) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([1.0, np.nan]))).all()
