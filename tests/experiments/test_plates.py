from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments import _plate, _study
from seamscope.experiments._plates import OTHERS, drafts_of, draw_plates
from seamscope.experiments._plates_locator import LOCATED
from seamscope.experiments._report import SECTIONS
from seamscope.experiments._run import Run, Settings
from seamscope.experiments.figures import Saved
from seamscope.experiments.figures._learning import learning_rows

from ._synthetic import (
    causal_table,
    effects_table,
    gap_table,
    grid_table,
    lens_table,
    located_tables,
    probes_table,
    transfer_table,
    verdict,
)

TABLES = {
    "gap": gap_table(),
    "probes": probes_table(),
    "curves": learning_rows(grid_table()),
    "transfer": transfer_table(),
    "lens": lens_table(),
    "lens.tuned": lens_table(),
    "decodable_causal": causal_table(),
    "effects": effects_table(),
    **located_tables(),
}
FIGURES = {
    "gap": {"gap": "gap"},
    "probes": {"probes": "probes", "map_direct": "probes", "map_cascaded": "probes"},
    "curves": {"learning_objects": "probes", "learning_last": "probes"},
    "transfer": {
        "transfer_matrix_cascaded_to_direct_objects": "transfer",
        "transfer_matrix_direct_to_cascaded_objects": "transfer",
        "transfer_to_direct": "transfer",
        "transfer_to_cascaded": "transfer",
    },
    "lens": {
        "lens_answer_last": "lens",
        "lens_intermediate_objects": "lens",
        "lens_intermediate_last": "lens",
    },
    "lens.tuned": {
        "lens_tuned_answer_last": "lens",
        "lens_tuned_intermediate_objects": "lens",
        "lens_tuned_intermediate_last": "lens",
    },
    "decodable_causal": {"decodable_causal": "causal"},
    "effects": {
        **{f"patch_{name}": "patching" for name in ("denoise", "noise", "text_noise")},
        "cross": "patching",
        "backpatch_last": "patching",
        "backpatch_objects": "patching",
    },
    "path": {"way": "path"},
    "needs": {"by_layer": "patching"},
    **{name: {} for name in ("reading", "hold", "given", "answers")},  # none of them is enough by itself
}


def drafts(tables, **options):
    return {draft.name: draft for draft in drafts_of(tables, **options)}


ALL = drafts(TABLES, verdict=verdict())


@pytest.fixture
def unseen(monkeypatch):
    """Figures whose pictures are empty files: nothing is drawn."""

    def save(drawn, folder, name, *, data):
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{name}.{kind}" for kind in ("pdf", "png", "csv")]
        for file in files:
            file.touch()
        return Saved(name=name, pdf=files[0], png=files[1], csv=(files[2],))

    monkeypatch.setattr(_plate, "save", save)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_its_own_figures_and_no_others(name):
    assert {key: draft.section for key, draft in drafts({name: TABLES[name]}).items()} == FIGURES[name]


def test_all_tables_give_all_figures_and_the_path():
    assert set(ALL) == {"path", *(name for held in FIGURES.values() for name in held)}
    assert {draft.section for draft in ALL.values()} == set(SECTIONS)


def test_nothing_gives_nothing(tmp_path):
    assert draw_plates(tmp_path / "none", {name: table[:0] for name, table in TABLES.items()}) == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ALL)
def test_every_figure_can_be_drawn(name):
    assert ALL[name].draw() is not None


def test_a_figure_is_saved_with_its_numbers(tmp_path):
    plates = {plate.saved.name: plate for plate in draw_plates(tmp_path, {"gap": TABLES["gap"]}, verdict=verdict())}
    assert plates["gap"].words == ALL["gap"].words
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gap.csv", "gap.pdf", "gap.png"]
    pd.testing.assert_frame_equal(pd.read_csv(plates["gap"].saved.csv[0]), TABLES["gap"])


def test_every_figure_says_how_it_is_read_and_what_it_does_not_show():
    for name, draft in ALL.items():
        words = draft.words
        for text in (words.title, words.caption, words.controls, words.caveat, words.alt):
            assert text.strip(), name
            assert "nan" not in re.findall(r"\w+", text)
        assert "interval" in words.caption or "95 %" in words.caption, name
        for text in (words.caption, words.controls, words.caveat):
            assert text.endswith("."), name
    titles = [draft.words.title for draft in ALL.values()]
    assert len(set(titles)) == len(titles)


def test_the_numbers_beside_a_figure_are_those_that_it_draws():
    assert set(ALL["map_cascaded"].data.condition) == {"cascaded"}
    lens = ALL["lens_intermediate_objects"].data
    assert {(row.span[-1], row.what[-1]) for row in lens.itertuples()} == {(k, k) for k in "012"}
    matrix = ALL["transfer_matrix_cascaded_to_direct_objects"].data
    assert set(matrix.train_condition) == {"cascaded"}
    assert len(matrix) == 7 * 7 * 3
    curves = ALL["transfer_to_direct"].data
    assert (curves.train_site == curves.site).all()
    assert set(curves.columns) == set(TABLES["transfer"].columns)


class TestControls:
    def test_the_probes_name_all_that_stand_beside_them(self):
        said = ALL["probes"].words.controls
        for control in ("chance", "control task", "shuffled", "random weights", "raw pixels", "token embeddings"):
            assert control in said

    @pytest.mark.parametrize(
        ("column", "said"), [("pixels_accuracy", "raw pixels"), ("embedded_accuracy", "token embeddings")]
    )
    def test_one_that_was_not_measured_is_not_claimed(self, column, said):
        for table in (TABLES["probes"].drop(columns=column), TABLES["probes"].assign(**{column: np.nan})):
            assert said not in drafts({"probes": table})["probes"].words.controls

    def test_the_partner_stands_beside_a_lens_and_the_random_direction_beside_an_erasure(self):
        assert "counterfactual partner" in ALL["lens_answer_last"].words.controls
        assert "random subspace" in ALL["decodable_causal"].words.controls
        assert "dormant" in ALL["decodable_causal"].words.caveat


class TestAlt:
    def test_a_map_tells_its_extremes(self):
        own = TABLES["probes"]
        own = own[(own.condition == "direct") & (own.span == "last")].groupby("site").accuracy.mean()
        said = f"last position, direct: lowest {own.min():.2f} at {own.idxmin()}"
        assert f"{said}, highest {own.max():.2f} at {own.idxmax()}" in ALL["map_direct"].words.alt

    def test_a_lens_tells_its_extremes(self):
        own = TABLES["lens"]
        own = own[(own.condition == "direct") & (own.span == "last") & (own.what == "answer")].set_index("site").logprob
        said = f"direct runs: lowest −{-own.min():.2f} at {own.idxmin()}, highest −{-own.max():.2f} at {own.idxmax()}"
        assert said in ALL["lens_answer_last"].words.alt

    def test_the_scatter_tells_how_many_differ_from_random(self):
        own = TABLES["decodable_causal"]
        count = int(((own.difference_low > 0) | (own.difference_high < 0)).sum())
        assert f"{count} of {len(own)} differ" in ALL["decodable_causal"].words.caption
        assert 0 < count < len(own)


class TestOddTables:
    def test_a_decoder_that_sees_pictures_from_outside_has_no_patches(self):
        """No direct run has tokens of an object."""
        lens, transfer, probes = (
            TABLES[name][~TABLES[name].span.str.startswith("image")] for name in ("lens", "transfer", "probes")
        )
        transfer = transfer[~transfer.train_span.str.startswith("image")]
        found = drafts({"lens": lens, "transfer": transfer, "probes": probes})
        assert set(found) == {
            *("probes", "map_direct", "map_cascaded", "transfer_to_direct", "transfer_to_cascaded"),
            *("lens_answer_last", "lens_intermediate_last", "lens_intermediate_objects"),
        }
        assert all(draft.draw() is not None for draft in found.values())
        assert set(found["lens_intermediate_objects"].data.condition) == {"cascaded"}

    def test_variables_of_the_whole_item_are_drawn_one_at_a_time(self):
        probes = TABLES["probes"]
        whole = probes[probes.span.isin(["question", "last"])].drop_duplicates(["site", "span", "condition"])
        found = drafts({"probes": pd.concat([whole.assign(target=name) for name in ("sum", "lowest")])})
        assert all(draft.draw() is not None for draft in found.values())
        assert found["probes"].words.title == "What linear probes read of sum, by layer"
        assert "of one variable" in found["probes"].words.caption

    def test_texts_that_a_lens_could_not_tell_apart_somewhere_are_left_out(self):
        lens = TABLES["lens"]
        some = (lens.what == "intermediate.2") & (lens.condition == "cascaded")
        for table in (lens[~some], lens.assign(logprob=lens.logprob.where(~some))):
            found = drafts({"lens": table})["lens_intermediate_last"]
            assert set(found.data.what) == {"intermediate.0", "intermediate.1"}
            assert "mean of 2" in found.words.caption
            assert found.draw() is not None
        blank = drafts({"lens": lens.assign(logprob=lens.logprob.where(lens.what != "answer"))})
        assert set(blank) == {"lens_intermediate_last", "lens_intermediate_objects"}


@pytest.mark.usefixtures("unseen")
class TestStudy:
    @pytest.fixture
    def study(self, tmp_path):
        made = _study.Study(Run(tmp_path / "run", Settings(task="cards.sort", n=2)))
        answers = pd.DataFrame(columns=list(TABLES["answers"].columns))
        made.__dict__.update(gap=TABLES["gap"], answers=answers, verdict=verdict())  # no model runs
        return made

    def test_a_report_makes_no_table_that_nobody_asked_for(self, study):
        page = study.report().read_text(encoding="utf-8")
        assert not [name for name in ("probes", "effects", *OTHERS) if study.run.has(f"{name}.csv")]
        assert "<h3>What the layers would say</h3>" not in page
        assert [path.name for path in (study.run.folder / "figures").glob("*.png")] == ["gap.png"]

    def test_a_report_of_a_run_that_has_the_locators_tables_alone(self, study):
        for name in LOCATED:
            study.run.derive(name, TABLES[name])
        study.__dict__["answers"] = TABLES["answers"]
        page = study.report().read_text(encoding="utf-8")
        assert {path.stem for path in (study.run.folder / "figures").glob("*.png")} == {"gap", "way", "by_layer"}
        assert "The way of the intermediate at fixed sites" in page
        assert "Probe accuracy of" not in page

    def test_a_report_draws_what_the_folder_holds(self, study):
        held = ("probes", *OTHERS[::2])
        for name in held:
            study.run.derive(name, TABLES[name])
        page = study.report().read_text(encoding="utf-8")
        for name in ("probes", "effects", *OTHERS):
            for figure in FIGURES[name]:
                assert (f"figures/{figure}.pdf" in page) == (name in held)
