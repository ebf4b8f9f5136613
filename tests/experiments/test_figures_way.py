"""Figures of the intermediate's way: what is drawn is what the tables say, and where the verdict puts the loss."""

from __future__ import annotations

import pandas as pd
import pytest

from seamscope.experiments import figures
from seamscope.experiments.figures._depth import Depth
from seamscope.experiments.figures._way import reach, told, way_rows, whole
from seamscope.hooks import RunError
from seamscope.probes import bootstrap_interval

from ._located import DEEP, LATE, LIMITS, NONE, OVERWRITTEN, PATH, READING, band, line, score, shaded, words
from ._synthetic import GROUPS, path_table, reading_table, verdict


class TestWayRows:
    def test_names_are_counted_beyond_the_commonest_one(self):
        own = PATH[(PATH.condition == "direct") & (PATH.site == "vision.1.resid_post")]
        found = score(way_rows(PATH), condition="direct", site="vision.1.resid_post")
        low, high = bootstrap_interval(own.named, own.group)
        assert (found["measure"], found["place"], found["n"]) == ("named", "objects", GROUPS)
        assert found["score"] == pytest.approx((own.named.sum() / len(own) - 0.2) / 0.8)
        assert found["control"] == pytest.approx((own.named_control.sum() / len(own) - 0.2) / 0.8)
        assert (found["low"], found["high"]) == pytest.approx(((low - 0.2) / 0.8, (high - 0.2) / 0.8))

    def test_partners_told_apart_are_counted_beyond_one_half(self):
        own = READING[(READING.condition == "direct") & (READING.site == "lm.4.resid_post")]
        own = own[(own.span == "question") & (own.kind == "object")]
        found = score(way_rows(PATH, READING), condition="direct", place="question", site="lm.4.resid_post")
        wrong = int((own.right == 0).sum())
        assert found["measure"] == "apart"
        assert found["score"] == pytest.approx(1 - 2 * wrong / GROUPS)
        assert found["low"] <= found["score"] <= found["high"]

    def test_objects_of_an_item_are_counted_together(self):
        """Another object, told apart where the first one is not, and in fewer items."""
        other = READING.assign(object=1, right=(1 - READING.right).where(READING.group != "g0"))
        rows = way_rows(PATH, pd.concat([READING, other]))
        read = rows[rows.measure == "apart"]
        assert set(read.n) == {GROUPS}
        first = READING[READING.group == "g0"].query("kind == 'object'").set_index(["condition", "span", "site"]).right
        for row in read.itertuples():
            wanted = 2 * first[row.condition, row.place, row.site] - 1  # of all but one item the mean is chance
            assert row.score == pytest.approx(wanted / GROUPS)

    def test_where_nothing_is_held_the_score_is_at_chance(self):
        rows = way_rows(path_table("vision.0.resid_post"), reading_table(None))
        direct = rows[rows.condition == "direct"]
        assert (direct.low.between(-0.6, 0.1) & direct.high.between(-0.1, 0.6)).all()
        assert direct.score.abs().mean() < 0.12
        assert rows[rows.condition == "oracle"].score.min() > 0.7

    def test_variables_of_the_answer_are_left_out(self):
        asked = READING[READING.kind == "object"]
        pd.testing.assert_frame_equal(way_rows(PATH, READING), way_rows(PATH, asked))

    def test_what_an_item_lacks_counts_neither_way(self):
        some = PATH.assign(named=PATH.named.where(PATH.group != "g0"))
        rows = way_rows(some)
        assert set(rows.n) == {GROUPS - 1}
        wanted = way_rows(PATH[PATH.group != "g0"])
        assert rows.score.to_numpy() == pytest.approx(wanted.score.to_numpy())

    def test_what_is_missing_is_named(self):
        with pytest.raises(RunError, match="the path table is empty"):
            way_rows(PATH[:0])
        with pytest.raises(RunError, match="the path table lacks the column 'floor'"):
            way_rows(PATH.drop(columns="floor"))
        with pytest.raises(RunError, match="the reading table lacks the column 'right'"):
            way_rows(PATH, READING.drop(columns="right"))


class TestWay:
    def test_lines_and_bands_are_the_rows(self):
        rows = way_rows(PATH, READING)
        above, below = figures.way(PATH, READING).axes
        own = rows[(rows.place == "objects") & (rows.condition == "direct")]
        assert line(above, "objects direct").get_ydata() == pytest.approx(own.score.to_numpy())
        assert line(above, "objects direct control").get_ydata() == pytest.approx(own.control.to_numpy())
        x, low, high = band(above, "objects direct")
        assert list(x) == list(range(len(own)))
        assert (low, high) == (pytest.approx(own.low.to_numpy()), pytest.approx(own.high.to_numpy()))
        text = rows[(rows.place == "last") & (rows.condition == "oracle")]
        assert line(below, "last oracle").get_ydata() == pytest.approx(text.score.to_numpy())
        assert line(below, "last oracle").is_dashed()
        assert not line(below, "last direct").is_dashed()

    def test_layers_that_were_not_measured_keep_their_room(self):
        ax = figures.way(DEEP["path"]).axes[0]
        x = line(ax, "objects direct").get_xdata()
        assert list(x) == [*range(0, 22, 3), 22, 23, *range(24, 55, 3)]
        assert len(whole(way_rows(DEEP["path"]).site)) == 22 + 2 + 31

    def test_both_panels_share_their_axes_and_one_is_enough_without_reading(self):
        above, below = figures.way(PATH, READING).axes
        assert above.get_xlim() == below.get_xlim()
        assert len(figures.way(PATH).axes) == len(figures.way(PATH, READING[:0]).axes) == 1

    def test_a_place_is_shaded_over_its_interval_where_it_belongs(self):
        above, below = figures.way(PATH, READING, verdict=OVERWRITTEN).axes
        assert shaded(above) == (5 + 2 - 0.5, 5 + 3 + 0.5)
        assert "lost here" in words(above)
        assert shaded(below) is None
        above, below = figures.way(PATH, READING, verdict=LATE).axes
        assert shaded(above) is None
        assert shaded(below) == (5 + 3 - 0.5, 5 + 3 + 0.5)
        assert "arrives here" in words(below)

    @pytest.mark.parametrize(
        ("locus", "place", "ends"),
        [("not_encoded", "vision.1.resid_post", (0.5, 1.5)), ("lost_in_projector", "projector.out", (2.5, 3.5))],
    )
    def test_places_before_the_decoder(self, locus, place, ends):
        layer = 1 if "vision" in place else None
        (ax,) = figures.way(PATH, verdict=verdict(locus, layer, place=place, interval=None)).axes
        assert shaded(ax) == ends

    def test_what_does_not_arrive_has_no_place(self):
        above, below = figures.way(PATH, READING, verdict=verdict("not_routed", None)).axes
        assert shaded(above) is shaded(below) is None
        assert "does not arrive" in words(below)

    @pytest.mark.parametrize("named", [NONE, verdict("cannot_tell", None), verdict("overwritten", 99)])
    def test_a_verdict_without_a_place_on_the_axis_marks_nothing(self, named):
        for ax in figures.way(PATH, READING, verdict=named).axes:
            assert shaded(ax) is None
            assert not {"lost here", "arrives here", "does not arrive"} & words(ax)

    def test_what_counts_is_half_of_the_most(self):
        rows = way_rows(PATH, READING)
        above, below = figures.way(PATH, READING, limits=LIMITS).axes
        most = rows[(rows.place == "objects") & (rows.condition == "direct")].score.max()
        read = rows[(rows.place != "objects") & (rows.condition == "oracle")].score.max()
        assert line(above, "counts as there").get_ydata()[0] == pytest.approx(0.5 * most)
        assert line(below, "counts as there").get_ydata()[0] == pytest.approx(0.5 * read)
        (blind,) = figures.way(path_table("vision.0.resid_post"), limits=LIMITS).axes
        assert line(blind, "counts as there").get_ydata()[0] == LIMITS.any


class TestVerdictInWords:
    def test_class_part_and_layer(self):
        assert told(OVERWRITTEN) == "overwritten, decoder layer 2 [2, 3]"
        assert told(LATE) == "too late, decoder layer 3"
        seen = verdict("not_encoded", 1, place="vision.1.resid_post", interval=(0, 1))
        assert told(seen) == "not encoded, tower layer 1 [0, 1]"
        assert told(verdict("lost_in_projector", None, place="projector.out")) == "lost in projector"
        assert told(NONE) == "none"

    def test_a_place_that_the_axis_has_not_reaches_nowhere(self):
        depth = Depth.of(["lm.0.resid_post", "lm.1.resid_post"])
        assert reach(verdict("overwritten", 1, interval=(0, 1)), depth) == (0, 1)
        assert reach(OVERWRITTEN, depth) is None
        assert reach(verdict("lost_in_projector", None, place="projector.out"), depth) is None
