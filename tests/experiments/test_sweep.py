"""Sweeps on the organism: exact where an answer is known, and still where nothing is patched."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments import EXPERIMENTS, Cell, back_cells, best_cells, layer_cells, summarise_sweep, sweep
from seamscope.experiments._align import aligned, expand
from seamscope.experiments.tasks import get
from seamscope.hooks import Patch, RunError, SiteError, Vlm, capture, patch

LAST = 7
TASK = get("cards.sum")  # one-word answers: what is patched at the last token is all that decides


def cell(source: str, target: str, span: str) -> Cell:
    return Cell(source_site=source, target_site=target, span=span)


def test_a_layer_written_into_itself_changes_nothing(organism: Vlm) -> None:
    cells = [
        cell(f"lm.{k}.resid_post", f"lm.{k}.resid_post", s) for k in (0, 3) for s in ("objects", "reading", "image")
    ]
    table = sweep(organism, TASK, TASK.items(6), experiment="backpatch", cells=cells)
    assert (table.patched == table.base).all()


@pytest.mark.parametrize("experiment", ["denoise", "noise", "text_noise", "cross", "cross_control"])
def test_the_last_layer_at_all_reading_positions_gives_the_source(organism: Vlm, experiment: str) -> None:
    """After the last layer only the reading positions matter, so all of the answer moves, and nothing is left."""
    cells = [cell(f"lm.{LAST}.resid_post", f"lm.{LAST}.resid_post", "reading")]
    table = sweep(organism, TASK, TASK.items(8), experiment=experiment, cells=cells)
    np.testing.assert_allclose(table.patched, table.ceiling, rtol=1e-4, atol=1e-4)
    assert (table.right == table.ceiling_right).all()


def test_after_the_last_layer_the_image_does_nothing(organism: Vlm) -> None:
    cells = [cell(f"lm.{LAST}.resid_post", f"lm.{LAST}.resid_post", "image")]
    table = sweep(organism, TASK, TASK.items(6), experiment="denoise", cells=cells)
    assert (table.patched == table.base).all()


def test_one_cell_by_hand(organism: Vlm) -> None:
    item = TASK.items(3)[2]
    partner = TASK.partner(item)
    source = organism.encode([item], condition="oracle", answers=[item.answer])
    target = organism.encode([item], condition="direct", answers=[item.answer])
    spans = [f"intermediate.{k}" for k in range(3)]
    with capture(organism, "lm.2.resid_post", spans=spans) as acts:
        ceiling = organism.score(source)
    patches = [
        Patch("lm.2.resid_post", acts["lm.2.resid_post", s], span=f"image.object.{k}", rule="stretch")
        for k, s in enumerate(spans)
    ]
    with patch(organism, patches):
        by_hand = organism.score(target)
    cells = [cell("lm.2.resid_post", "lm.2.resid_post", "objects")]
    (row,) = sweep(organism, TASK, [item], experiment="cross", cells=cells).to_dict("records")
    assert row["patched"] == pytest.approx(float(by_hand.logprob), abs=1e-5)
    assert row["ceiling"] == pytest.approx(float(ceiling.logprob), abs=1e-5)
    assert partner.answer != item.answer


def test_an_item_does_not_depend_on_its_company(organism: Vlm) -> None:
    cells = layer_cells(organism, sites=["lm.1.resid_post"], spans=["objects", "last"])
    items = TASK.items(4)
    whole = sweep(organism, TASK, items, experiment="noise", cells=cells)
    alone = [sweep(organism, TASK, [item], experiment="noise", cells=cells) for item in items]
    pd.testing.assert_frame_equal(whole, pd.concat(alone, ignore_index=True))


def test_sites_of_the_image_are_patched_at_image_spans_only(organism: Vlm) -> None:
    cells = layer_cells(
        organism, sites=["vision.3.resid_post", "projector.out", "lm.0.resid_post"], spans=["objects", "last"]
    )
    assert [(c.target_site, c.span) for c in cells] == [
        ("vision.3.resid_post", "objects"),
        ("projector.out", "objects"),
        ("lm.0.resid_post", "objects"),
        ("lm.0.resid_post", "last"),
    ]


def test_back_cells_are_every_later_layer_into_every_earlier_one(organism: Vlm) -> None:
    cells = back_cells(organism, spans=["reading"])
    assert len(cells) == 8 * 7 / 2
    assert all(int(c.source_site.split(".")[1]) > int(c.target_site.split(".")[1]) for c in cells)


def test_bad_names_are_refused(organism: Vlm) -> None:
    items = TASK.items(1)
    cells = layer_cells(organism, sites=["lm.0.resid_post"], spans=["last"])
    with pytest.raises(RunError, match=r"unknown experiment 'denoize'; nearest: denoise"):
        sweep(organism, TASK, items, experiment="denoize", cells=cells)
    with pytest.raises(SiteError, match=r"lm\.9"):
        layer_cells(organism, sites=["lm.9.resid_post"], spans=["last"])
    with pytest.raises(RunError, match="no cell"):
        sweep(organism, TASK, items, experiment="denoise", cells=[])


def test_spans_of_two_conditions_are_aligned() -> None:
    assert aligned("objects", "oracle", "direct", objects=2) == [
        ("intermediate.0", "image.object.0"),
        ("intermediate.1", "image.object.1"),
    ]
    assert aligned("image", "cascaded", "direct", objects=2) == [("intermediate", "image")]
    assert aligned("reading", "oracle", "direct", objects=2) == [(s, s) for s in ("question", "last", "answer")]
    assert expand("objects+reading", "direct", objects=1) == ["image.object.0", "question", "last", "answer"]


def test_effects_are_means_with_intervals_and_flagged_pairs() -> None:
    rows = pd.DataFrame(
        {
            "id": list("abcd"),
            "group": list("abcd"),
            "experiment": "denoise",
            "source_site": "lm.2.resid_post",
            "target_site": "lm.1.resid_post",
            "span": "last",
            "base": [-4.0, -4.0, -4.0, -4.0],
            "ceiling": [0.0, 0.0, -2.0, -4.1],
            "patched": [-2.0, -1.0, -3.0, -3.0],
            "base_right": False,
            "ceiling_right": [True, True, True, False],
            "right": [True, False, False, False],
            "first_right": [True, True, False, False],
        }
    )
    (row,) = summarise_sweep(rows).to_dict("records")
    assert row["effect"] == pytest.approx(1.75)
    assert row["low"] < 1.75 < row["high"]
    assert row["below_margin"] == 1
    assert row["normalised"] == pytest.approx(0.5)
    assert (row["source_layer"], row["layer"], row["stack"]) == (2, 1, "lm")
    assert row["right"] == 0.25


def test_every_experiment_asks_a_question() -> None:
    assert all(plan.question.endswith("?") or "control" in plan.name for plan in EXPERIMENTS.values())


def rows_of(effects: dict[str, list[float]]) -> pd.DataFrame:
    """A sweep's table: the effect of every cell on items 0, 1, ...; NaN where an item does not have it."""
    rows = [
        {"id": str(k), "group": str(k), "experiment": "denoise", "target_site": "lm.0.resid_post", "span": span}
        | {"base": -1.0, "patched": effect - 1.0, "ceiling": 0.0, "base_right": False, "right": False}
        for span, own in effects.items()
        for k, effect in enumerate(own)
        if not np.isnan(effect)
    ]
    return pd.DataFrame(rows)


def test_the_best_cell_is_chosen_on_one_half_and_scored_on_the_other() -> None:
    groups = np.unique([str(k) for k in range(8)])
    choosing = {int(name) for name in np.random.default_rng(0).permutation(groups)[:4]}
    luck = [5.0 if k in choosing else 0.0 for k in range(8)]  # good only where it is chosen
    (row,) = best_cells(rows_of({"lucky": luck, "steady": [2.0] * 8})).to_dict("records")
    assert (row["span"], row["chosen"], row["effect"], row["n"]) == ("lucky", 5.0, 0.0, 4)


def test_a_control_is_shown_at_the_cell_of_what_it_controls() -> None:
    """Not at its own strongest, which says nothing of that cell."""
    cut = rows_of({"here": [-5.0] * 8, "there": [-1.0] * 8})
    control = rows_of({"here": [-0.5] * 8, "there": [-9.0] * 8})
    own, beside = cut.experiment.iloc[0], f"{cut.experiment.iloc[0]}_control"
    rows = pd.concat([cut, control.assign(experiment=beside)], ignore_index=True)
    best = {row["experiment"]: row for row in best_cells(rows).to_dict("records")}
    assert [(best[name]["span"], best[name]["effect"]) for name in (own, beside)] == [("here", -5.0), ("here", -0.5)]
    assert best[beside]["chosen"] == -0.5
    alone = best_cells(rows[rows.experiment == beside]).to_dict("records")  # negative control: nothing leads it
    assert [(row["span"], row["effect"]) for row in alone] == [("there", -9.0)]


def test_a_cell_of_few_items_is_not_the_best() -> None:
    rare = [-50.0, *[np.nan] * 7]
    for seed in range(4):
        (row,) = best_cells(rows_of({"rare": rare, "steady": [2.0] * 8}), seed=seed).to_dict("records")
        assert (row["span"], row["n"]) == ("steady", 4)
        assert row["low"] <= row["effect"] <= row["high"]
    with pytest.raises(RunError, match="has no column 'nosuch'"):
        best_cells(rows_of({"a": [1.0] * 4}), by="nosuch")
