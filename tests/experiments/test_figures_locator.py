"""All figures of the locator's own tables: of known width, side by side, and of the numbers that a verdict weighs."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest

from seamscope.experiments import Run, Settings, Study, figures
from seamscope.experiments.figures._causal_layers import layer_rows
from seamscope.experiments.figures._side import side_rows
from seamscope.experiments.figures._style import WIDTH
from seamscope.experiments.figures._way import told, way_rows
from seamscope.experiments.locator._asking import Asking
from seamscope.experiments.locator._evidence import Findings
from seamscope.hooks import RunError

from ._located import (
    DEEP,
    LATE,
    LIMITS,
    OVERWRITTEN,
    PATCHES,
    PATH,
    READING,
    SIDE,
    VERDICTS,
    line,
    score,
    shaded,
    words,
)

DRAWN = {
    "way": lambda: figures.way(PATH, READING, verdict=LATE, limits=LIMITS).axes[0],
    "by_layer": lambda: figures.by_layer(**PATCHES, verdict=OVERWRITTEN, limits=LIMITS).axes[0],
    "side_by_side": lambda: figures.side_by_side(SIDE, reading={"late": READING}, verdicts=VERDICTS).axes[0],
}
ALSO = {
    "one panel": lambda: figures.way(PATH, verdict=OVERWRITTEN, limits=LIMITS).axes[0],
    "deep": lambda: figures.way(**DEEP, verdict=LATE, limits=LIMITS).axes[0],
    "one model": lambda: figures.side_by_side({"a model with a name that goes on and on": PATH}).axes[0],
    "nine models": lambda: figures.side_by_side(
        {f"a model with quite a long name {k}": DEEP["path"] for k in range(9)},
        verdicts={f"a model with quite a long name {k}": OVERWRITTEN for k in range(9)},
    ).axes[0],
}
WIDE = {"side_by_side", "nine models"}
EVERY = pytest.mark.parametrize("name", [*DRAWN, *ALSO])


@EVERY
def test_nothing_tiny_and_nothing_outside_of_a_figure_of_known_width(name):
    figure = {**DRAWN, **ALSO}[name]().get_figure(root=True)
    assert figure.get_figwidth() == (2 * WIDTH if name in WIDE else WIDTH)
    figure.draw_without_rendering()
    axes = [axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
    beyond = {
        tick.label1
        for axis in axes
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    for text in set(figure.findobj(matplotlib.text.Text)) - beyond:
        if text.get_text() and text.get_visible() and text.get_in_layout():
            assert text.get_fontsize() >= 6
            box = text.get_window_extent()
            assert max(-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1) <= 1, text.get_text()


@EVERY
def test_tables_and_settings_stay_as_they_were(name):
    tables = (PATH, READING, *PATCHES.values())
    kept, before = [table.copy() for table in tables], {**matplotlib.rcParams.copy(), "backend": ""}
    {**DRAWN, **ALSO}[name]()
    assert {**matplotlib.rcParams.copy(), "backend": ""} == before
    for old, new in zip(kept, tables, strict=True):
        pd.testing.assert_frame_equal(old, new)


class TestSideBySide:
    def test_every_model_has_its_own_lines_under_its_name_and_verdict(self):
        figure = figures.side_by_side(SIDE, reading={"late": READING}, verdicts=VERDICTS)
        rows = side_rows(SIDE, {"late": READING})
        for ax, name in zip(figure.axes, SIDE, strict=True):
            assert name in words(ax)
            assert ax.get_title(loc="left") == told(VERDICTS[name])
            own = rows[(rows.model == name) & (rows.place == "objects")]
            if name == "healthy":
                assert own.empty
                held = {" ".join(text.split()) for text in words(ax)}  # lines break where the font has them do
                assert any(text.startswith("not measured: no loss: direct runs") for text in held)
            else:
                assert line(ax, "objects direct").get_ydata() == pytest.approx(own.score.to_numpy())
        late = figure.axes[2]
        assert "last direct" in {drawn.get_label() for drawn in late.lines}
        assert shaded(figure.axes[0]) == (5 + 2 - 0.5, 5 + 3 + 0.5)

    def test_text_runs_are_left_out_and_every_row_knows_its_model(self):
        rows = side_rows(SIDE, {"late": READING})
        assert set(rows.condition) == {"direct"}
        assert set(rows.model) == {"lost", "late"}
        wanted = way_rows(SIDE["lost"]).query("condition == 'direct'").score
        assert rows[rows.model == "lost"].score.to_numpy() == pytest.approx(wanted.to_numpy())
        assert side_rows({"healthy": pd.DataFrame()}).empty

    def test_nine_are_three_by_three_and_what_is_left_over_is_blank(self):
        nine = figures.side_by_side({str(k): PATH for k in range(9)})
        assert nine.axes[0].get_gridspec().get_geometry() == (3, 3)
        five = figures.side_by_side({str(k): PATH for k in range(5)})
        assert [ax.axison for ax in five.axes] == [True] * 5 + [False]

    def test_names_stand_at_one_height(self):
        figure = figures.side_by_side(SIDE, verdicts=VERDICTS)
        figure.draw_without_rendering()
        tops = [text.get_window_extent().y0 for ax in figure.axes for text in ax.texts if text.get_text() in SIDE]
        assert len(tops) == len(SIDE) == 3
        assert tops == pytest.approx([tops[0]] * 3)

    def test_no_model_is_an_error_and_one_without_tables_is_not(self):
        with pytest.raises(RunError, match="no model was given"):
            figures.side_by_side({})
        (ax,) = figures.side_by_side({"healthy": pd.DataFrame()}).axes
        assert "not measured" in words(ax)


@pytest.fixture(scope="module")
def asking(tmp_path_factory) -> Asking:
    """A dozen items and their partners, put to the shipped organism."""
    return Asking(Study(Run(tmp_path_factory.mktemp("run"), Settings(task="cards.sum", n=12))), there=0.5)


class TestRealTables:
    def test_the_numbers_are_those_that_the_verdict_weighs(self, asking):
        findings = Findings(asking, seed=0)
        rows = way_rows(asking.path(), asking.reading())
        own = rows[(rows.place == "objects") & (rows.condition == "direct")]
        assert tuple(own.site) == findings.places
        assert own.score.to_numpy() == pytest.approx(findings.of("path")[0], abs=1e-9)
        word = score(rows, place="objects", condition="oracle")
        assert word["score"] == pytest.approx(findings.of("words")[0], abs=1e-9)
        read = rows[(rows.place != "objects") & (rows.condition == "direct")].groupby("site", sort=False).score.max()
        assert read.to_numpy() == pytest.approx(findings.of("reading")[0], abs=1e-9)
        needs = layer_rows(needs=asking.needs())
        assert needs.score.to_numpy() == pytest.approx(findings.of("needs")[0], abs=1e-9)

    def test_they_can_be_drawn(self, asking):
        figure = figures.way(asking.path(), asking.reading(), limits=LIMITS)
        assert len(figure.axes) == 2
        figure.draw_without_rendering()

    def test_names_at_random_are_at_chance(self, asking):
        path = asking.path()
        rng = np.random.default_rng(0)
        rows = way_rows(path.assign(named=rng.binomial(2, path.floor) / 2))
        assert rows.score.abs().max() < 0.4
        assert rows.score.abs().mean() < 0.12
