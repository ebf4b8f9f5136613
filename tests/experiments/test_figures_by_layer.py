"""Figures of what the decoder's layers need and what brings answers back: shares of failed answers, by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from seamscope.experiments import figures
from seamscope.experiments.figures._causal_layers import layer_rows
from seamscope.hooks import RunError
from seamscope.probes import bootstrap_interval

from ._located import ANSWERS, GIVEN, HOLD, LIMITS, NEEDS, OVERWRITTEN, PATCHES, band, line, score, shaded
from ._synthetic import GROUPS, outcomes_table, verdict


class TestLayerRows:
    def test_the_share_that_is_lost_is_a_ratio_of_means(self):
        own = NEEDS[NEEDS.target_site == "lm.1.resid_post"]
        lost, entire = (own.base - own.patched).to_numpy(), (own.base - own.ceiling).to_numpy()
        found = score(layer_rows(needs=NEEDS), table="needs", site="lm.1.resid_post")
        assert found["score"] == pytest.approx(lost.sum() / entire.sum())
        rng = np.random.default_rng(1)
        drawn = rng.integers(len(own), size=(4000, len(own)))
        ends = np.quantile(lost[drawn].sum(axis=1) / entire[drawn].sum(axis=1), [0.025, 0.975])
        assert (found["low"], found["high"]) == pytest.approx(tuple(ends), abs=0.005)
        assert np.isnan(found["control"])

    def test_a_share_that_is_the_same_in_all_items_is_certain(self):
        rows = layer_rows(needs=NEEDS.assign(patched=NEEDS.base - 0.25 * (NEEDS.base - NEEDS.ceiling)))
        for name in ("score", "low", "high"):
            assert rows[name].to_numpy() == pytest.approx(0.25)

    @pytest.mark.parametrize(("name", "experiment"), [("hold", "hold"), ("given", "cross")])
    def test_what_comes_right_is_a_share_of_the_failed_answers(self, name, experiment):
        table = PATCHES[name]
        failing = [f"g{k}" for k in range(30)]  # of the 36 that are answered from the gold intermediate
        own = table[table.group.isin(failing) & (table.target_site == "lm.1.resid_post")]
        right, control = (own[own.experiment == each].right for each in (experiment, f"{experiment}_control"))
        found = score(layer_rows(**{name: table}, answers=ANSWERS), table=name, site="lm.1.resid_post")
        assert (found["score"], found["control"]) == (pytest.approx(right.mean()), pytest.approx(control.mean()))
        assert (found["low"], found["high"]) == pytest.approx(bootstrap_interval(right.astype(float), failing))
        assert found["n"] == len(failing)

    def test_answers_that_did_not_fail_or_began_rightly_do_not_count(self):
        others = HOLD.group.isin([f"g{k}" for k in range(30, GROUPS)])
        moved = HOLD.assign(right=HOLD.right ^ others)
        pd.testing.assert_frame_equal(layer_rows(hold=moved, answers=ANSWERS), layer_rows(hold=HOLD, answers=ANSWERS))
        begun = HOLD.assign(base_right=HOLD.group == "g0")
        assert set(layer_rows(hold=begun, answers=ANSWERS).n) == {29}
        flipped = layer_rows(hold=HOLD.assign(right=~HOLD.right), answers=ANSWERS)
        assert not np.allclose(flipped.score, layer_rows(hold=HOLD, answers=ANSWERS).score)

    def test_nothing_gives_nothing_and_failed_answers_must_be_known(self):
        assert layer_rows().empty
        assert layer_rows(hold=HOLD[:0], needs=None).empty
        assert layer_rows(hold=HOLD, answers=outcomes_table(failing=0)).empty
        with pytest.raises(RunError, match="the given table counts failed answers: give the table of answers as well"):
            layer_rows(given=GIVEN)
        with pytest.raises(RunError, match="the hold table lacks the column 'base_right'"):
            layer_rows(hold=HOLD.drop(columns="base_right"), answers=ANSWERS)


class TestByLayer:
    def test_a_panel_for_each_table_with_its_control(self):
        rows, axes = layer_rows(**PATCHES), figures.by_layer(**PATCHES).axes
        assert [ax.get_title(loc="left").split(":")[0] for ax in axes] == ["text runs", "direct runs", "direct runs"]
        for ax, name in zip(axes, ("needs", "hold", "given"), strict=True):
            own = rows[rows.table == name]
            assert line(ax, "score").get_ydata() == pytest.approx(own.score.to_numpy())
            _, low, high = band(ax, "score")
            assert (low, high) == (pytest.approx(own.low.to_numpy()), pytest.approx(own.high.to_numpy()))
            if name == "needs":
                assert "control" not in {drawn.get_label() for drawn in ax.lines}
            else:
                assert line(ax, "control").get_ydata() == pytest.approx(own.control.to_numpy())
                assert line(ax, "control").is_dashed()

    def test_only_what_there_is(self):
        assert len(figures.by_layer(hold=HOLD, answers=ANSWERS).axes) == 1
        with pytest.raises(RunError, match="the patches table is empty"):
            figures.by_layer()

    def test_the_place_in_the_decoder_is_shaded_and_what_counts_is_dotted(self):
        for ax, limit in zip(
            figures.by_layer(**PATCHES, verdict=OVERWRITTEN, limits=LIMITS).axes, (0.5, 0.25, 0.25), strict=True
        ):
            assert shaded(ax) == (1.5, 3.5)
            assert line(ax, "counts").get_ydata()[0] == limit
        seen = verdict("not_encoded", 1, place="vision.1.resid_post", interval=None)
        assert shaded(figures.by_layer(needs=NEEDS, verdict=seen).axes[0]) is None
