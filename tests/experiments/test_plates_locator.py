"""The figures of the locator's tables in a report: which there are, what is said of them, and their numbers."""

from __future__ import annotations

import pandas as pd
import pytest

from seamscope.experiments._plates_locator import LOCATED, comparison_draft, locator_drafts
from seamscope.experiments._verdict import Loss
from seamscope.experiments.figures._causal_layers import layer_rows
from seamscope.experiments.figures._way import way_rows

from ._located import shaded
from ._synthetic import located_tables, outcomes_table, path_table, verdict

TABLES = located_tables()
OVERWRITTEN = verdict("overwritten", 2, place="lm.2.resid_post", interval=(1, 3))


def drafts(*names, **options):
    held = {name: TABLES[name] for name in names}
    return {draft.name: draft for draft in locator_drafts(held, **options)}


ALL = drafts(*TABLES, verdict=OVERWRITTEN)


class TestWhichThereAre:
    def test_the_way_and_the_patches_have_their_sections(self):
        assert {name: draft.section for name, draft in ALL.items()} == {"way": "path", "by_layer": "patching"}
        assert set(LOCATED) < set(TABLES)

    @pytest.mark.parametrize(
        ("names", "wanted"),
        [
            ((), set()),
            (("reading",), set()),
            (("path",), {"way"}),
            (("needs",), {"by_layer"}),
            (("hold", "given"), set()),
            (("hold", "answers"), {"by_layer"}),
            (("path", "given", "answers"), {"way", "by_layer"}),
        ],
    )
    def test_each_is_drawn_from_what_it_needs(self, names, wanted):
        found = drafts(*names)
        assert set(found) == wanted
        assert all(draft.draw() is not None for draft in found.values())

    def test_where_nothing_failed_nothing_can_come_right(self):
        assert locator_drafts({"hold": TABLES["hold"], "answers": outcomes_table(failing=0)}) == []


class TestNumbers:
    def test_beside_a_figure_stands_what_it_draws(self, tmp_path):
        saved = {name: pd.read_csv(draft.save(tmp_path).saved.csv[0]) for name, draft in ALL.items()}
        rows = way_rows(TABLES["path"], TABLES["reading"])
        pd.testing.assert_frame_equal(saved["way"], rows)
        assert set(rows.columns) >= {"site", "score", "low", "high", "control", "n"}
        patches = layer_rows(**{name: TABLES[name] for name in ("needs", "hold", "given", "answers")})
        pd.testing.assert_frame_equal(saved["by_layer"], patches)
        assert len(saved["by_layer"]) < len(TABLES["hold"])

    def test_the_alternative_text_tells_where_it_goes(self):
        own = TABLES["path"][TABLES["path"].condition == "direct"]
        share = (own.groupby("site", sort=False).named.mean() - 0.2) / 0.8
        told = f"lowest {share.min():.2f} at {share.idxmin()}, highest {share.max():.2f} at {share.idxmax()}"
        assert f"object patches, direct runs: {told.replace('-', '−')}" in ALL["way"].words.alt
        assert share.idxmin().startswith("lm.")
        needs = TABLES["needs"]
        lost = (needs.base - needs.patched).groupby(needs.target_site).sum()
        share = lost / (needs.base - needs.ceiling).groupby(needs.target_site).sum()
        assert f"needs: lowest {share.min():.2f} at {share.idxmin()}" in ALL["by_layer"].words.alt

    def test_other_tables_tell_otherwise(self):
        (kept,) = locator_drafts({"path": path_table()})
        assert kept.words.alt != drafts("path")["way"].words.alt


class TestWords:
    def test_the_verdict_is_named_where_it_is_marked(self):
        assert "The verdict is overwritten, decoder layer 2 [1, 3]; its place is shaded." in ALL["way"].words.caption
        assert "shaded, the verdict's place" in ALL["by_layer"].words.caption
        for draft in drafts(*TABLES).values():
            assert "verdict is" not in draft.words.caption
            assert "shaded" not in draft.words.caption

    def test_only_what_is_drawn_is_told(self):
        assert "reading positions" in ALL["way"].words.caption
        assert "reading positions" not in drafts("path")["way"].words.caption
        told = drafts("hold", "answers")["by_layer"].words
        assert "image positions keep" in told.caption
        assert "partner's words" not in told.caption
        assert told.controls.startswith("dashed, the same with the partner's states")
        assert drafts("needs")["by_layer"].words.controls == "the text run as it is, at 0."

    def test_neither_is_reported_as_the_other(self):
        assert "only patches speak of use" in ALL["way"].words.caveat
        assert "few types" in ALL["way"].words.controls


class TestByObject:
    """A verdict that speaks of some objects: the first is lost in the tower, the second one in the decoder."""

    LOSS = Loss(locus="overwritten", place="lm.2.resid_post", objects=(1,))
    TWICE = verdict("not_encoded", 1, place="vision.1.resid_post", interval=(0, 1), objects=(0,), also=(LOSS,))

    def test_only_then_objects_stand_side_by_side(self):
        assert list(drafts("path", "reading", verdict=self.TWICE)) == ["way", "by_object"]
        assert list(drafts("path", verdict=self.TWICE)) == ["way", "by_object"]
        assert "by_object" not in ALL

    def test_each_has_its_own_numbers_and_its_own_loss(self, tmp_path):
        draft = drafts("path", "reading", verdict=self.TWICE)["by_object"]
        figure = draft.draw()
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert [" ".join(title.split()) for title in titles] == [
            "not encoded, tower layer 1 [0, 1]",
            "overwritten, decoder layer 2",
        ]
        assert [shaded(ax) for ax in figure.axes] == [(-0.5, 1.5), (5 + 2 - 0.5, 5 + 2 + 0.5)]
        assert "object 0: not encoded, tower layer 1 [0, 1]; object 1: overwritten, decoder layer 2." in draft.words.alt
        saved = pd.read_csv(draft.save(tmp_path).saved.csv[0])
        for number in (0, 1):
            own = way_rows(TABLES["path"].query("object == @number"), TABLES["reading"].query("object == @number"))
            own = own[own.condition == "direct"].reset_index(drop=True)
            drawn = saved[saved.object == f"object {number}"].drop(columns="object").reset_index(drop=True)
            pd.testing.assert_frame_equal(drawn, own)

    def test_an_object_that_few_items_have_is_not_drawn(self):
        path = TABLES["path"]
        rare = path[(path.object == 1) & (path.group.isin(["g0", "g1"]))].assign(object=2)
        (_, draft) = locator_drafts({"path": pd.concat([path, rare])}, verdict=self.TWICE)
        assert set(draft.data.object) == {"object 0", "object 1"}


class TestSideBySide:
    @pytest.fixture
    def draft(self):
        paths = {"lost": TABLES["path"], "late": path_table(), "healthy": pd.DataFrame()}
        verdicts = {"lost": OVERWRITTEN, "late": verdict(), "healthy": verdict("none", None)}
        return comparison_draft(paths, reading={"late": TABLES["reading"]}, verdicts=verdicts)

    def test_every_model_and_its_verdict_are_told(self, draft):
        assert "of 3 models" in draft.words.alt
        assert "lost: overwritten, decoder layer 2 [1, 3]; late: too late, decoder layer 3 [2, 4]; healthy: none." in (
            draft.words.alt
        )

    def test_its_numbers_are_those_of_the_models_own_figures(self, draft, tmp_path):
        saved = pd.read_csv(draft.save(tmp_path).saved.csv[0])
        own = way_rows(TABLES["path"])
        own = own[own.condition == "direct"].reset_index(drop=True)
        pd.testing.assert_frame_equal(saved[saved.model == "lost"].drop(columns="model").reset_index(drop=True), own)
        assert set(saved[saved.model == "late"].place) == {"objects", "last", "question"}
        assert "healthy" not in set(saved.model)
