"""The probes of a study, on the shipped organism: real beside control, trained beside untrained."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from seamscope.activations import open_store
from seamscope.experiments import Run, Settings, Study
from seamscope.experiments._probing import object_of, shared_targets

SITES = ("vision.3.resid_post", "projector.out", "lm.0.resid_post", "lm.7.resid_post")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("probing") / "run"
    return Study(Run(folder, Settings(n=80, sites=SITES, spans=("objects", "last"))))


def mean(table: pd.DataFrame, column: str, **chosen: str) -> float:
    for name, value in chosen.items():
        table = table[table[name].str.fullmatch(value)]
    assert len(table)
    return float(table[column].mean())


def test_the_trained_tower_holds_the_ranks_and_controls_do_not(study: Study) -> None:
    where = {"site": r"vision\.3.*", "condition": "direct", "target": r"card\.\d\.rank"}
    real = mean(study.probes, "accuracy", **where)
    assert real > 0.6
    assert mean(study.probes, "shuffled_accuracy", **where) < 0.2
    assert real - mean(study.probes, "control_accuracy", **where) > 0.3


def test_an_untrained_organism_is_at_chance_where_the_answer_is_made(study: Study) -> None:
    """At its own object an untrained tower passes pixels on, which a probe can use; at the last token it cannot."""
    rows = study.probes[(study.probes.span == "last") & (study.probes.condition == "direct")]
    rows = rows[rows.target.str.fullmatch(r"card\.\d\.rank")]
    uniform = 1 / rows.n_classes.mean()
    assert rows.untrained_accuracy.notna().all()
    assert abs(rows.untrained_accuracy.mean() - uniform) < 0.05
    assert abs(rows.untrained_accuracy.mean() - rows.shuffled_accuracy.mean()) < 0.05
    assert rows.untrained_accuracy.mean() < rows.chance.mean() + 0.03
    assert rows.accuracy.mean() > rows.untrained_accuracy.mean() + 0.1


def test_an_untrained_organism_hears_what_the_trained_one_said(study: Study) -> None:
    """Words are read off random embeddings where they stand; where the answer is made, nothing is."""
    with study.store() as trained, study.store(untrained=True) as untrained:
        for condition in ("direct", "cascaded"):
            assert untrained.rows(condition).said.tolist() == trained.rows(condition).said.tolist()
            assert untrained.rows(condition).said.ne("").all()
    text = study.probes[study.probes.condition == "cascaded"]
    assert text.untrained_accuracy.notna().all()
    words = text[text.span.str.startswith("intermediate") & text.target.str.endswith("rank")]
    assert words.untrained_accuracy.min() > 0.9
    sums = text[(text.span == "last") & (text.target == "sum")]
    assert sums.accuracy.max() > sums.untrained_accuracy.max() + 0.4


def test_shuffled_labels_are_at_chance_everywhere(study: Study) -> None:
    for target, rows in study.probes.groupby("target"):
        assert abs(rows.shuffled_accuracy.mean() - 1 / rows.n_classes.mean()) < 0.08, target


def test_direct_and_cascaded_stand_side_by_side(study: Study) -> None:
    assert set(study.probes.condition) == {"direct", "cascaded"}
    spans = {condition: set(rows.span) for condition, rows in study.probes.groupby("condition")}
    assert {f"image.object.{k}" for k in range(3)} < spans["direct"]
    assert {f"intermediate.{k}" for k in range(3)} < spans["cascaded"]


def test_partners_share_a_group_in_the_store(study: Study) -> None:
    study.store().close()
    with open_store(study.run.folder / "activations.h5") as store:
        rows = store.rows("direct")
        assert (rows.groupby("group").size() == 2).all()
        assert "sum" in shared_targets(store)
        assert store.read("lm.7.resid_post", "last", "direct").values.shape == (160, 128)


@pytest.mark.parametrize(
    ("name", "number"), [("card.0.rank", 0), ("number.2", 2), ("sum", None), ("lowest", None), ("object.1.shape", 1)]
)
def test_the_object_of_a_variable(name: str, number: int | None) -> None:
    assert object_of(name) == number


def test_raw_pixels_stand_beside_direct_runs_only(study: Study) -> None:
    """The suit is drawn in red or black, so that pixels tell it; a sum is in no pixel."""
    table = study.probes
    assert table[table.condition != "direct"].pixels_accuracy.isna().all()
    direct = table[table.condition == "direct"].drop_duplicates("target").set_index("target")
    assert (direct.pixels_accuracy[[f"card.{k}.suit" for k in range(3)]] > 0.8).all()
    assert direct.pixels_accuracy["sum"] < 0.25
    assert (direct.pixels_low <= direct.pixels_accuracy).all()
    assert (direct.pixels_accuracy <= direct.pixels_high).all()


def test_an_untrained_organism_reads_nothing_where_the_answer_is_made(study: Study) -> None:
    rows = study.probes[(study.probes.span == "last") & (study.probes.condition == "direct")]
    assert abs((rows.untrained_accuracy - rows.untrained_control_accuracy).mean()) < 0.05


def test_words_are_read_before_the_first_layer_where_they_stand(tmp_path: Path) -> None:
    sites = ("lm.embed", "lm.7.resid_post")
    small = Study(Run(tmp_path / "run", Settings(n=40, sites=sites, spans=("objects", "last"))))
    rows = small.probes[small.probes.target == "card.1.rank"].set_index(["condition", "span", "site"])
    assert rows.embedded_accuracy["cascaded", "intermediate.1", "lm.7.resid_post"] > 0.9
    assert rows.embedded_accuracy["cascaded", "last", "lm.7.resid_post"] < 0.3
    found = small.transfer.set_index(["condition", "span", "target", "train_site", "site"])
    assert {"direct", "cascaded"} == set(small.transfer.condition)
    assert len(small.transfer[small.transfer.span == "last"]) == 2 * 7 * 2  # both ways, seven targets, at the same site
    assert len(small.transfer[small.transfer.span == "image.object.0"]) == 2 * 2 * 2  # two targets, across all sites
    same = found.loc["direct", "last", "sum", "lm.embed", "lm.embed"]
    assert same.recentred_accuracy < 0.25
    again = Study(Run(tmp_path / "run", small.settings))
    pd.testing.assert_frame_equal(again.transfer, small.transfer)
