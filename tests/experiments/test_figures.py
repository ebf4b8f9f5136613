from __future__ import annotations

import json
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

import seamscope.experiments.figures as figures
from seamscope.experiments._align import SPAN_SETS
from seamscope.experiments._verdict import LOCI
from seamscope.experiments.figures._depth import Depth
from seamscope.experiments.figures._learning import learning_rows
from seamscope.experiments.figures._style import COLOURS, SPANS, WIDTH
from seamscope.experiments.figures._tables import probe_lines, target_family
from seamscope.hooks import RunError

from ._synthetic import (
    causal_table,
    effects_table,
    gap_table,
    grid_table,
    lens_table,
    probes_table,
    transfer_table,
    verdict,
)
from .test_figures_locator import DRAWN as LOCATED
from .test_figures_patch import DRAWN as SWEPT

GAP, PROBES, EFFECTS = gap_table(), probes_table(), effects_table()
TRANSFER, CAUSAL, LENS, GRID = transfer_table(), causal_table(), lens_table(), grid_table()
BOTH = causal_table(conditions=("direct", "oracle"))
WORDS, PICTURE = ("cascaded", "objects"), ("direct", "objects")
DEEP = {"vision": 24, "lm": 32}
DRAWN = {
    "gap_bars": lambda: figures.gap_bars(GAP),
    "probe_curves": lambda: figures.probe_curves(PROBES),
    "probe_panels": lambda: figures.probe_panels(PROBES).axes[0],
    "patch_heatmap": lambda: figures.patch_heatmap(EFFECTS, experiment="denoise"),
    "backpatch_matrix": lambda: figures.backpatch_matrix(EFFECTS, span="last"),
    "cross_curves": lambda: figures.cross_curves(EFFECTS),
    "summary_path": lambda: figures.summary_path(PROBES, EFFECTS, verdict()),
    "probe_map": lambda: figures.probe_map(PROBES),
    "transfer_matrix": lambda: figures.transfer_matrix(TRANSFER, train=WORDS, test=PICTURE),
    "transfer_curves": lambda: figures.transfer_curves(TRANSFER, train=WORDS, test=PICTURE),
    "transfer_panels": lambda: figures.transfer_panels(TRANSFER).axes[0],
    "decodable_causal": lambda: figures.decodable_causal(CAUSAL),
    "lens_curves": lambda: figures.lens_curves(LENS),
    "lens_panels": lambda: figures.lens_panels(LENS).axes[0],
    "learning_curves": lambda: figures.learning_curves(GRID),
}
LARGE = {
    "probe_curves": lambda: figures.probe_curves(probes_table(**DEEP)),
    "probe_map": lambda: figures.probe_map(probes_table(**DEEP), value="bits"),
    "transfer_matrix": lambda: figures.transfer_matrix(transfer_table(lm=32), train=WORDS, test=PICTURE),
    "transfer_panels": lambda: figures.transfer_panels(transfer_table(lm=32)).axes[0],
    "decodable_causal": lambda: figures.decodable_causal(causal_table(**DEEP, conditions=("direct", "oracle"))),
    "lens_panels": lambda: figures.lens_panels(lens_table(lm=32)).axes[0],
    "learning_curves": lambda: figures.learning_curves(grid_table(**DEEP)),
}
EVERY = pytest.mark.parametrize("name", DRAWN)


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def band(ax, label):
    """(x, low, high) of a filled band."""
    drawn = next(c for c in ax.collections if isinstance(c, PolyCollection) and c.get_label() == label)
    corners = pd.DataFrame(drawn.get_paths()[0].vertices, columns=["x", "y"])
    spans = corners.groupby("x").y.agg(["min", "max"])
    return spans.index.to_numpy(), spans["min"].to_numpy(), spans["max"].to_numpy()


def upright(ax):
    """Interval bars: (low, high) of each vertical line."""
    found = [c for c in ax.collections if isinstance(c, LineCollection)]
    segments = [segment for c in found for segment in c.get_segments()]
    return {(round(s[0][1], 9), round(s[1][1], 9)) for s in segments if s[0][0] == s[1][0]}


def unseen_labels(figure):
    """Labels of ticks beyond the ends of their axis, which matplotlib makes but does not draw."""
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        yield from (tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high)


def kept_settings():
    """Every setting but the backend, which matplotlib finds out by itself as soon as it is looked at."""
    return {name: value for name, value in matplotlib.rcParams.copy().items() if name != "backend"}


@EVERY
def test_matplotlibs_settings_are_left_alone(name):
    before = kept_settings()
    DRAWN[name]()
    assert kept_settings() == before


@pytest.mark.parametrize("name", ["patch_heatmap", "cross_curves"])
def test_settings_are_left_alone_after_an_error(name):
    before = kept_settings()
    with pytest.raises(RunError):
        getattr(figures, name)(EFFECTS[:0], **({"experiment": "noise"} if name == "patch_heatmap" else {}))
    assert kept_settings() == before


@EVERY
def test_figures_are_one_column_wide_and_belong_to_no_pyplot_session(name):
    figure = DRAWN[name]().get_figure(root=True)
    assert figure.get_figwidth() == WIDTH
    assert figure.number is None if hasattr(figure, "number") else True


@pytest.mark.parametrize("draw", [*DRAWN.values(), *LARGE.values()], ids=[*DRAWN, *(f"{n}-deep" for n in LARGE)])
def test_no_text_leaves_the_figure_and_none_is_tiny(draw):
    figure = draw().get_figure(root=True)
    figure.draw_without_rendering()
    for text in set(figure.findobj(matplotlib.text.Text)) - set(unseen_labels(figure)):
        if text.get_text() and text.get_visible() and text.get_in_layout():
            assert text.get_fontsize() >= 6
            box = text.get_window_extent()
            outside = [-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1]
            assert max(outside) <= 1, text.get_text()


def test_given_axes_are_drawn_into_and_given_back():
    ax = Figure().add_subplot()
    assert figures.gap_bars(GAP, ax) is ax


def test_drawing_leaves_the_tables_as_they_were():
    tables = GAP, PROBES, EFFECTS, TRANSFER, CAUSAL, LENS, GRID
    kept = [table.copy() for table in tables]
    for draw in DRAWN.values():
        draw()
    for before, after in zip(kept, tables, strict=True):
        pd.testing.assert_frame_equal(before, after)


def test_colours_are_distinct_and_every_span_set_has_one():
    assert set(SPAN_SETS) <= set(SPANS)
    strong = [COLOURS[name] for name in ("direct", "cascaded", "oracle", "cot")]
    assert len(set(strong) | {colour for colour, _ in SPANS.values()}) == len(strong) + len(SPANS)


class TestGapBars:
    def test_bars_and_intervals_are_the_tables(self):
        ax = figures.gap_bars(GAP)
        shown = GAP[GAP.condition != "gap"]
        bars = [p.get_height() for p in ax.patches if isinstance(p, Rectangle)]
        assert sorted(bars) == pytest.approx(sorted(shown[shown.subset == "all"].estimate))
        assert upright(ax) == {(round(a, 9), round(b, 9)) for a, b in zip(shown.low, shown.high, strict=True)}

    def test_the_subset_is_open_circles_at_its_estimates(self):
        ax = figures.gap_bars(GAP)
        circles = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
        passing = GAP[(GAP.subset == "both steps pass") & (GAP.condition != "gap")]
        assert sorted(c.get_ydata()[0] for c in circles) == pytest.approx(sorted(passing.estimate))
        assert {c.get_markerfacecolor() for c in circles} == {"white"}

    def test_the_gap_is_written_with_its_interval(self):
        text = "\n".join(t.get_text() for t in figures.gap_bars(GAP).texts)
        for row in GAP[GAP.condition == "gap"].itertuples():
            assert f"{row.estimate:+.2f} [{row.low:.2f}, {row.high:.2f}]" in text

    def test_a_lone_subset_without_items_is_left_out(self):
        table = GAP.copy()
        table.loc[table.subset == "both steps pass", ["estimate", "low", "high"]] = np.nan
        ax = figures.gap_bars(table)
        assert not [drawn for drawn in ax.lines if drawn.get_marker() == "o"]

    def test_chance_stands_at_chance(self):
        ax = figures.gap_bars(GAP, chance={"cards.sum": 0.07})
        level = [{y for _, y in c.get_segments()[0]} for c in ax.collections]
        assert {0.07} in level

    @pytest.mark.parametrize("missing", ["direct", "cascaded", "gap"])
    def test_a_missing_condition_is_named(self, missing):
        with pytest.raises(RunError, match=f"unknown condition of the gap table '{missing}'"):
            figures.gap_bars(GAP[GAP.condition != missing])


LAST = PROBES[PROBES.span == "last"]
WHOLE = pd.concat([LAST.assign(target=name) for name in ("sum", "lowest")])  # variables of the whole item


class TestProbeCurves:
    @pytest.mark.parametrize("condition", ["direct", "cascaded"])
    def test_lines_and_bands_are_the_means_over_targets(self, condition):
        ax = figures.probe_curves(PROBES, span="last")
        own = PROBES[(PROBES.span == "last") & (PROBES.condition == condition)]
        wanted = own.groupby("site", sort=False)[["accuracy", "low", "high"]].mean()
        x, low, high = band(ax, f"{condition} 95 %")
        assert line(ax, condition).get_ydata() == pytest.approx(wanted.accuracy.to_numpy())
        assert low == pytest.approx(wanted.low.to_numpy())
        assert high == pytest.approx(wanted.high.to_numpy())
        assert list(x) == list(range(6))

    def test_a_single_target_is_drawn_as_it_is(self):
        ax = figures.probe_curves(PROBES, span="objects", target="card.1.rank")
        own = PROBES[(PROBES.span == "image.object.1") & (PROBES.target == "card.1.rank")]
        assert line(ax, "direct").get_ydata() == pytest.approx(own.accuracy.to_numpy())

    def test_targets_of_the_whole_item_are_drawn_only_when_asked(self):
        everything = pd.concat([PROBES, WHOLE.assign(accuracy=0.5)])
        plain = line(figures.probe_curves(PROBES, span="last"), "direct").get_ydata()
        assert line(figures.probe_curves(everything, span="last"), "direct").get_ydata() == pytest.approx(plain)
        asked = figures.probe_curves(everything, span="last", target="sum")
        assert line(asked, "direct").get_ydata() == pytest.approx(np.full(6, 0.5))

    def test_another_objects_span_is_left_out(self):
        strange = PROBES[PROBES.span == "image.object.0"].assign(target="card.1.rank", accuracy=0.0)
        mixed = probe_lines(pd.concat([PROBES, strange]), span="objects", target=None)
        pd.testing.assert_frame_equal(mixed, probe_lines(PROBES, span="objects", target=None))

    def test_chance_stands_at_chance_and_controls_are_drawn(self):
        ax = figures.probe_curves(PROBES)
        assert line(ax, "chance").get_ydata() == pytest.approx(np.full(10, 0.1))
        for condition in ("direct", "cascaded"):
            for name in ("control", "shuffled", "untrained"):
                assert line(ax, f"{condition} {name}").get_linewidth() < 1
                assert line(ax, f"{condition} {name}").get_color() == COLOURS[condition]
        plain = figures.probe_curves(PROBES.drop(columns="untrained_accuracy"))
        assert "direct untrained" not in [drawn.get_label() for drawn in plain.lines]
        assert "untrained model" not in [t.get_text() for t in plain.get_legend().get_texts()]

    @pytest.mark.parametrize("name", ["control", "shuffled", "untrained"])
    def test_controls_have_bands_where_the_table_has_their_intervals(self, name):
        own = PROBES[(PROBES.span == "last") & (PROBES.condition == "cascaded")]
        wanted = own.groupby("site", sort=False)[[f"{name}_accuracy", f"{name}_low", f"{name}_high"]].mean()
        ax = figures.probe_curves(PROBES, span="last")
        _, low, high = band(ax, f"cascaded {name} 95 %")
        assert line(ax, f"cascaded {name}").get_ydata() == pytest.approx(wanted.iloc[:, 0].to_numpy())
        assert low == pytest.approx(wanted.iloc[:, 1].to_numpy())
        assert high == pytest.approx(wanted.iloc[:, 2].to_numpy())
        older = figures.probe_curves(PROBES.drop(columns=[f"{name}_low", f"{name}_high"]), span="last")
        assert line(older, f"cascaded {name}").get_ydata() == pytest.approx(wanted.iloc[:, 0].to_numpy())
        assert f"cascaded {name} 95 %" not in [c.get_label() for c in older.collections]

    def test_raw_pixels_are_a_level_in_runs_with_a_picture(self):
        ax = figures.probe_curves(PROBES, target="card.*.rank")
        levels = [c for c in ax.collections if "pixels" in str(c.get_label())]
        assert [c.get_label() for c in levels] == ["direct pixels", "direct pixels 95 %"]
        assert levels[0].get_segments()[0][:, 1] == pytest.approx([0.82, 0.82])  # of 0.80, 0.82 and 0.84
        older = figures.probe_curves(PROBES.drop(columns=["pixels_accuracy", "pixels_low", "pixels_high"]))
        assert not [c for c in older.collections if "pixels" in str(c.get_label())]

    def test_depth_runs_tower_projector_decoder(self):
        ax = figures.probe_curves(PROBES.sample(frac=1, random_state=0))
        assert [t.get_text() for t in ax.get_xticklabels()] == [*"012", "proj.", *"012345"]
        assert list(line(ax, "direct").get_xdata()) == list(range(10))
        assert list(line(ax, "cascaded").get_xdata()) == list(range(4, 10))
        assert [t.get_text() for t in ax.texts] == ["vision tower", "language decoder"]

    def test_ticks_of_a_deep_model_do_not_overlap(self):
        ax = figures.probe_curves(probes_table(vision=24, lm=32))
        figure = ax.get_figure(root=True)
        figure.draw_without_rendering()
        boxes = [t.get_window_extent() for t in ax.get_xticklabels()]
        assert all(a.x1 <= b.x0 for a, b in pairwise(boxes))

    def test_panels_share_one_axis(self):
        panels = figures.probe_panels(PROBES).axes
        assert len(panels) == 3
        assert len({ax.get_xlim() for ax in panels}) == 1

    @pytest.mark.parametrize(
        ("table", "options", "message"),
        [
            (PROBES[:0], {}, "the probes table is empty"),
            (pd.DataFrame(), {}, "the probes table is empty"),
            (PROBES.drop(columns="high"), {}, "the probes table lacks the column 'high'; it has: site"),
            (PROBES[PROBES.condition == "direct"], {}, "unknown condition of the probes table 'cascaded'"),
            (PROBES, {"span": "lst"}, "unknown place of the probes table 'lst'; nearest: last"),
            (PROBES, {"target": "card.9.rank"}, "unknown target of the probes table 'card.9.rank'"),
            (PROBES, {"kind": "mlp_out"}, None),
            (PROBES[PROBES.index != 0], {}, "lacks a target at vision.0.resid_post"),
            (WHOLE, {"span": "last"}, "name one with target=: sum, lowest"),
        ],
    )
    def test_errors_say_what_is_missing(self, table, options, message):
        if message is None:  # the projector alone stands outside layers, and cascaded runs have none
            assert len(line(figures.probe_curves(table, **options), "cascaded").get_xdata()) == 0
            return
        with pytest.raises(RunError, match=message):
            figures.probe_curves(table, **options)


def mesh_of(ax):
    return next(c for c in ax.collections if isinstance(c, QuadMesh))


def hatched(ax):
    """(row, column) of the hatched cells."""
    return {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in ax.patches if p.get_hatch()}


class TestProbeMap:
    @pytest.mark.parametrize("value", ["accuracy", "selectivity", "bits"])
    def test_cells_are_means_over_targets(self, value):
        ax = figures.probe_map(PROBES, value=value)
        grid = mesh_of(ax).get_array()
        assert grid.shape == (3, 10)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["object patches", "question tokens", "last position"]
        own = PROBES[PROBES.condition == "direct"]
        for row, spans in enumerate([own.span.str.startswith("image"), own.span == "question", own.span == "last"]):
            means = own[spans].groupby("site")[value].mean()
            assert list(grid[row].compressed()) == pytest.approx(list(means[_order(means.index)]))
        assert grid.mask[1:, :4].all()
        assert not grid.mask[:, 4:].any()

    def test_hatched_is_what_is_not_above_chance_or_not_above_the_control(self):
        table = PROBES.assign(q=1e-9, selectivity_low=0.1)
        assert hatched(figures.probe_map(table)) == set()
        last = (table.site == "lm.2.resid_post") & (table.span == "last") & (table.condition == "direct")
        one = table[last & (table.target == "card.1.rank")].index
        few = table.assign(q=table.q.where(~table.index.isin(one), 0.06))
        assert hatched(figures.probe_map(few)) == {(2, 6)}
        low = table.assign(selectivity_low=table.selectivity_low.where(~last, -0.01))
        assert hatched(figures.probe_map(low)) == {(2, 6)}
        assert hatched(figures.probe_map(low, condition="cascaded")) == set()

    def test_colours_run_from_chance_to_1_and_from_uniform_bits_to_0(self):
        share, gain, bits = (mesh_of(figures.probe_map(PROBES, value=v)) for v in ("accuracy", "selectivity", "bits"))
        assert (share.norm.vmin, share.norm.vmax) == (pytest.approx(0.1), 1)
        assert (gain.norm.vmin, gain.norm.vmax) == (0, 1)
        assert (bits.norm.vmin, bits.norm.vmax) == (0, pytest.approx(3.7))
        assert bits.colorbar.ax.yaxis_inverted()
        assert bits.cmap(0.0) == share.cmap(1.0)  # bright is well readable in both
        assert "chance" in [t.get_text() for t in share.colorbar.ax.get_yticklabels()]

    def test_a_text_run_has_words_and_no_tower(self):
        ax = figures.probe_map(PROBES, condition="cascaded")
        assert ax.get_yticklabels()[0].get_text() == "object words"
        assert ax.get_xlabel() == "decoder layer"
        assert mesh_of(ax).get_array().shape == (3, 6)

    def test_a_target_of_the_whole_item_has_the_places_that_it_has(self):
        ax = figures.probe_map(pd.concat([PROBES, WHOLE]), target="sum")
        assert [t.get_text() for t in ax.get_yticklabels()] == ["last position"]

    @pytest.mark.parametrize(
        ("table", "options", "message"),
        [
            (PROBES, {"value": "bit"}, "unknown value 'bit'; nearest: bits"),
            (PROBES.drop(columns="q"), {}, "the probes table lacks the column 'q'"),
            (PROBES.drop(columns="uniform_bits"), {"value": "bits"}, "lacks the column 'uniform_bits'"),
            (PROBES, {"condition": "orcale"}, "unknown condition of the probes table 'orcale'"),
            (PROBES.assign(bits=np.nan), {"value": "bits"}, "the probes table has no number to draw"),
            (PROBES[PROBES.span == "image.object.0"].assign(target="card.1.rank"), {}, "at the span of its own"),
        ],
    )
    def test_errors_say_what_is_missing(self, table, options, message):
        with pytest.raises(RunError, match=message):
            figures.probe_map(table, **options)


def cell_of(train, test):
    """Mean recentred accuracy of three targets, trained in words at one layer and tested in pictures at another."""
    rows = TRANSFER[(TRANSFER.train_condition == "cascaded") & TRANSFER.span.str.startswith("image")]
    rows = rows[(rows.train_site == f"lm.{train}.resid_post") & (rows.site == f"lm.{test}.resid_post")]
    assert len(rows) == 3
    return rows.recentred_accuracy.mean()


class TestTransfer:
    def test_rows_are_where_it_was_trained_and_columns_where_it_is_tested(self):
        ax = figures.transfer_matrix(TRANSFER, train=WORDS, test=PICTURE)
        grid = mesh_of(ax).get_array()
        assert grid.shape == (7, 7)  # the embedding and six layers
        assert grid[1 + 4, 1 + 2] == pytest.approx(cell_of(4, 2))
        assert grid[1 + 2, 1 + 4] == pytest.approx(cell_of(2, 4))
        assert cell_of(4, 2) != cell_of(2, 4)
        assert not ax.yaxis_inverted()
        assert [t.get_text() for t in ax.get_yticklabels()] == ["emb.", *"012345"]
        assert ax.get_xlabel() == "tested at decoder layer (direct, object patches)"
        assert ax.get_ylabel() == "trained at decoder layer (cascaded, object words)"

    def test_the_same_site_is_framed(self):
        ax = figures.transfer_matrix(TRANSFER, train=WORDS, test=PICTURE)
        frames = [p for p in ax.patches if p.get_label() == "same site"]
        assert [(p.get_x(), p.get_y()) for p in frames] == [(k - 0.5, k - 0.5) for k in range(7)]

    def test_hatched_is_what_is_not_above_chance(self):
        one = (TRANSFER.train_site == "lm.0.resid_post") & (TRANSFER.site == "lm.3.resid_post")
        sure = TRANSFER.assign(q=np.where(one & (TRANSFER.target == "card.2.rank"), 0.2, 1e-6))
        assert hatched(figures.transfer_matrix(sure, train=WORDS, test=PICTURE)) == {(1, 4)}
        raw = sure.assign(low=np.where(one, 0.09, 0.2))
        raw = raw.assign(accuracy=raw.accuracy.clip(lower=0.25))
        assert hatched(figures.transfer_matrix(raw, train=WORDS, test=PICTURE, value="accuracy")) == {(1, 4)}
        assert mesh_of(figures.transfer_matrix(raw, train=WORDS, test=PICTURE)).norm.vmin == pytest.approx(0.1)

    def test_hatched_is_what_the_control_task_reaches_too(self):
        one = (TRANSFER.train_site == "lm.0.resid_post") & (TRANSFER.site == "lm.3.resid_post")
        table = TRANSFER.assign(q=1e-6, recentred_low=np.where(one, 0.11, 0.13))
        ax = figures.transfer_matrix(table, train=WORDS, test=PICTURE)
        assert hatched(ax) == {(1, 4)}
        assert "no better than the control task" in ax.get_legend().get_texts()[-1].get_text()
        assert (
            hatched(figures.transfer_matrix(table.drop(columns="control_accuracy"), train=WORDS, test=PICTURE)) == set()
        )

    def test_the_legend_stays_in_the_figure(self):
        figure = figures.transfer_matrix(TRANSFER.assign(q=0.5), train=WORDS, test=PICTURE).get_figure(root=True)
        figure.draw_without_rendering()
        legend = figure.axes[0].get_legend()
        assert len(legend.get_texts()) == 2
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1

    def test_spans_may_be_named_as_the_table_was_asked_for(self):
        ax = figures.transfer_matrix(
            TRANSFER, train=("cascaded", "intermediate.{k}"), test=("direct", "image.object.{k}")
        )
        assert mesh_of(ax).get_array()[2, 4] == pytest.approx(cell_of(1, 3))

    def test_curves_are_the_same_site_as_it_is_and_recentred(self):
        ax = figures.transfer_curves(TRANSFER, train=WORDS, test=PICTURE)
        rows = TRANSFER[(TRANSFER.train_condition == "cascaded") & TRANSFER.span.str.startswith("image")]
        own = rows[rows.train_site == rows.site].groupby("site", sort=False).mean(numeric_only=True)
        assert line(ax, "recentred").get_ydata() == pytest.approx(own.recentred_accuracy.to_numpy())
        assert line(ax, "as it is").get_ydata() == pytest.approx(own.accuracy.to_numpy())
        assert line(ax, "as it is").is_dashed()
        assert line(ax, "control").get_ydata() == pytest.approx(own.control_accuracy.to_numpy())
        assert line(ax, "chance").get_ydata() == pytest.approx(np.full(7, 0.1))
        for name, stem in (("recentred", "recentred_"), ("as it is", ""), ("control", "control_")):
            _, low, high = band(ax, f"{name} 95 %")
            assert low == pytest.approx(own[f"{stem}low"].to_numpy())
            assert high == pytest.approx(own[f"{stem}high"].to_numpy())
        assert ax.get_title(loc="left") == "cascaded, object words → direct, object patches"

    def test_one_panel_for_every_pair_in_the_colour_of_the_run_that_is_read(self):
        figure = figures.transfer_panels(TRANSFER)
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert len(titles) == 4
        assert titles[1] == "direct, object patches → cascaded, object words"
        colours = [line(ax, "recentred").get_color() for ax in figure.axes]
        assert colours == [COLOURS["direct"], COLOURS["cascaded"]] * 2
        assert len(figures.transfer_panels(TRANSFER, pairs=[(WORDS, PICTURE)]).axes) == 1

    def test_nothing_carried_over_is_drawn_at_chance(self):
        ax = figures.transfer_curves(TRANSFER, train=("cascaded", "last"), test=("direct", "last"))
        assert max(abs(line(ax, "recentred").get_ydata() - 0.1)) < 0.05

    def test_a_table_without_the_control_is_drawn_without_it(self):
        table = TRANSFER.drop(columns=["control_accuracy", "control_low", "control_high"])
        ax = figures.transfer_curves(table, train=WORDS, test=PICTURE)
        assert "control task" not in [t.get_text() for t in ax.get_legend().get_texts()]

    @pytest.mark.parametrize(
        ("table", "options", "message"),
        [
            (TRANSFER, {}, "several pairs can be drawn: name one with train= and test=: cascaded objects -> direct"),
            (TRANSFER, {"train": WORDS, "test": ("direct", "last")}, "no such pair; the transfer table has: cascaded"),
            (TRANSFER.drop(columns="q"), {}, "the transfer table lacks the column 'q'"),
            (TRANSFER[:0], {}, "the transfer table is empty"),
            (pd.concat([TRANSFER, TRANSFER.assign(site="lm.embed")]), {"value": "acuracy"}, "nearest: accuracy"),
            (TRANSFER[1:], {"train": WORDS, "test": PICTURE}, "lacks a target at lm.embed, lm.embed: 2 of 3"),
        ],
    )
    def test_errors_say_what_is_missing(self, table, options, message):
        with pytest.raises(RunError, match=message):
            figures.transfer_matrix(table, **options)


def points(ax, label):
    drawn = line(ax, label)
    return np.column_stack([drawn.get_xdata(), drawn.get_ydata()])


def bars(ax, label):
    return np.array(next(c for c in ax.collections if c.get_label() == label).get_segments())


class TestDecodableCausal:
    def test_points_and_crosses_are_the_tables(self):
        ax = figures.decodable_causal(CAUSAL)
        own = CAUSAL[CAUSAL.span == "last"]
        assert points(ax, "last direct") == pytest.approx(own[["selectivity", "effect"]].to_numpy())
        across = bars(ax, "last direct decodable 95 %")
        assert across[:, :, 0] == pytest.approx(own[["selectivity_low", "selectivity_high"]].to_numpy())
        assert across[:, 0, 1] == pytest.approx(own.effect.to_numpy())
        up = bars(ax, "last direct causal 95 %")
        assert up[:, :, 1] == pytest.approx(own[["effect_low", "effect_high"]].to_numpy())
        assert up[:, 0, 0] == pytest.approx(own.selectivity.to_numpy())

    def test_the_random_direction_is_open_and_grey_at_the_same_places(self):
        ax = figures.decodable_causal(CAUSAL)
        own = CAUSAL[CAUSAL.span == "last"]
        assert points(ax, "last direct random") == pytest.approx(own[["selectivity", "random_effect"]].to_numpy())
        assert line(ax, "last direct random").get_markerfacecolor() == "none"
        assert line(ax, "last direct random").get_markeredgecolor() not in {c for c, _ in SPANS.values()}

    def test_white_inside_are_the_cells_in_which_a_random_direction_does_the_same(self):
        own = CAUSAL[CAUSAL.span == "last"]
        same = own[(own.difference_low <= 0) & (own.difference_high >= 0)]
        assert 0 < len(same) < len(own)
        ax = figures.decodable_causal(CAUSAL)
        label = "last direct no more than random"
        assert points(ax, label) == pytest.approx(same[["selectivity", "effect"]].to_numpy())
        assert line(ax, label).get_color() == "white"
        words = [t.get_text() for t in ax.get_legend().get_texts()]
        assert "no more than a random direction" in words
        beyond = figures.decodable_causal(CAUSAL.assign(difference_low=-2.0, difference_high=-1.0))
        assert len(points(beyond, label)) == 0
        assert "no more than a random direction" not in [t.get_text() for t in beyond.get_legend().get_texts()]

    def test_without_selectivity_it_is_accuracy_above_chance(self):
        ax = figures.decodable_causal(CAUSAL.drop(columns="selectivity"))
        own = CAUSAL[CAUSAL.span == "question"]
        assert points(ax, "question direct")[:, 0] == pytest.approx((own.accuracy - 0.1).to_numpy())
        across = bars(ax, "question direct decodable 95 %")[:, :, 0]
        assert across == pytest.approx(own[["accuracy_low", "accuracy_high"]].to_numpy() - 0.1)
        assert "above chance" in ax.get_xlabel()

    def test_the_warning_stands_under_it(self):
        def said(ax):
            return " ".join(t.get_text().replace("\n", " ") for t in ax.texts)

        assert "can act through a pathway that is dormant otherwise" in said(figures.decodable_causal(CAUSAL))
        assert said(figures.decodable_causal(CAUSAL.drop(columns="warning"))) == ""

    def test_conditions_have_shapes_and_places_colours(self):
        ax = figures.decodable_causal(BOTH)
        assert line(ax, "last direct").get_marker() != line(ax, "last oracle").get_marker()
        assert line(ax, "last direct").get_color() == line(ax, "last oracle").get_color() == SPANS["last"][0]
        words = [t.get_text() for t in ax.get_legend().get_texts()]
        assert {"direct run", "oracle run", "objects", "random direction"} <= set(words)

    def test_what_was_not_measured_is_left_out(self):
        table = CAUSAL.assign(effect=CAUSAL.effect.where(CAUSAL.span != "last"))
        assert "last direct" not in [drawn.get_label() for drawn in figures.decodable_causal(table).lines]
        with pytest.raises(RunError, match="the decodable and causal table is empty"):
            figures.decodable_causal(CAUSAL.assign(effect=np.nan))
        with pytest.raises(RunError, match="lacks the column 'random_effect'"):
            figures.decodable_causal(CAUSAL.drop(columns="random_effect"))


class TestLens:
    @pytest.mark.parametrize("condition", ["direct", "cascaded"])
    def test_lines_bands_and_the_partners_are_the_tables(self, condition):
        ax = figures.lens_curves(LENS)
        own = LENS[(LENS.condition == condition) & (LENS.span == "last") & (LENS.what == "answer")]
        for label, stem in ((condition, ""), (f"{condition} partner", "partner_")):
            _, low, high = band(ax, f"{label} 95 %")
            assert line(ax, label).get_ydata() == pytest.approx(own[f"{stem}logprob"].to_numpy())
            assert low == pytest.approx(own[f"{stem}logprob_low"].to_numpy())
            assert high == pytest.approx(own[f"{stem}logprob_high"].to_numpy())
        assert line(ax, f"{condition} partner").is_dashed()
        assert not line(ax, condition).is_dashed()

    def test_the_rank_is_counted_from_1_at_the_top_of_a_logarithmic_axis(self):
        ax = figures.lens_curves(LENS, value="rank")
        own = LENS[(LENS.condition == "direct") & (LENS.span == "last") & (LENS.what == "answer")]
        assert line(ax, "direct").get_ydata() == pytest.approx(own["rank"].to_numpy() + 1)
        assert (ax.get_yscale(), ax.yaxis_inverted()) == ("log", True)
        assert ax.get_ylim()[0] > own["rank"].max() + 1

    def test_parts_are_read_each_at_its_own_object(self):
        ax = figures.lens_curves(LENS, what="intermediate", span="objects")
        at = [LENS[(LENS.span == f"image.object.{k}") & (LENS.what == f"intermediate.{k}")] for k in range(3)]
        mean = np.mean([rows.logprob.to_numpy() for rows in at], axis=0)
        assert line(ax, "direct").get_ydata() == pytest.approx(mean)
        one = figures.lens_curves(LENS, what="intermediate.1", span="objects")
        assert line(one, "direct").get_ydata() == pytest.approx(at[1].logprob.to_numpy())

    def test_panels_are_log_probability_over_rank(self):
        above, below = figures.lens_panels(LENS).axes
        assert (above.get_yscale(), below.get_yscale()) == ("linear", "log")
        assert above.get_xlim() == below.get_xlim()
        assert above.get_title(loc="left") == "answer, last position"

    @pytest.mark.parametrize(
        ("table", "options", "message"),
        [
            (LENS, {"what": "anser"}, "unknown text of the lens table 'anser'; nearest: answer"),
            (LENS, {"span": "lst"}, "unknown place of the lens table 'lst'; nearest: last"),
            (LENS, {"value": "ranks"}, "unknown value 'ranks'; nearest: rank"),
            (LENS[LENS.condition == "direct"], {}, "unknown condition of the lens table 'cascaded'"),
            (LENS.drop(columns="partner_rank"), {}, "the lens table lacks the column 'partner_rank'"),
        ],
    )
    def test_errors_say_what_is_missing(self, table, options, message):
        with pytest.raises(RunError, match=message):
            figures.lens_curves(table, **options)


class TestLearningCurves:
    def test_a_line_for_each_site_is_the_mean_over_targets(self):
        ax = figures.learning_curves(GRID, span="last")
        own = GRID[(GRID.span == "last") & (GRID.condition == "direct") & (GRID.fold == 0)]
        for site, rows in own.groupby("site"):
            assert list(line(ax, site).get_xdata()) == [24, 50, 100, 200]
            assert line(ax, site).get_ydata() == pytest.approx(np.mean(list(rows.curve), axis=0))
        assert line(ax, "chance").get_ydata() == pytest.approx([0.1, 0.1])
        assert ax.get_xscale() == "log"

    def test_bands_are_the_tables_and_older_tables_have_none(self):
        ax = figures.learning_curves(GRID, span="last", target="card.0.rank")
        site = "lm.3.resid_post"
        own = GRID[(GRID.span == "last") & (GRID.site == site) & (GRID.target == "card.0.rank") & (GRID.fold == 0)]
        (drawn,) = [each for each in ax.collections if each.get_label() == f"{site} 95 %"]
        heights = drawn.get_paths()[0].vertices[:, 1]
        row = own[own.condition == "direct"].iloc[0]
        assert (heights.min(), heights.max()) == (pytest.approx(min(row.curve_low)), pytest.approx(max(row.curve_high)))
        older = figures.learning_curves(GRID.drop(columns=["curve_low", "curve_high"]))
        assert not [each for each in older.collections if "95 %" in str(each.get_label())]

    def test_rows_of_the_curves_draw_the_same(self):
        rows = learning_rows(GRID)
        assert len(rows) == len(GRID[GRID.fold == 0]) * 4
        first = GRID[(GRID.fold == 0) & (GRID.span == "last")].iloc[0]
        own = rows[(rows.span == "last") & (rows.site == first.site) & (rows.condition == first.condition)]
        own = own[own.target == first.target]
        assert list(own.rows) == list(first.curve_rows)
        assert own[["accuracy", "low", "high"]].T.to_numpy() == pytest.approx(
            np.array([first.curve, first.curve_low, first.curve_high])
        )
        assert learning_rows(rows) is rows
        none = learning_rows(GRID.assign(curve=[()] * len(GRID), curve_rows=[()] * len(GRID)))
        assert list(none.columns) == list(rows.columns)
        assert none.empty
        ours, theirs = figures.learning_curves(rows), figures.learning_curves(GRID)
        for drawn, wanted in zip(ours.lines, theirs.lines, strict=True):
            assert drawn.get_xydata() == pytest.approx(wanted.get_xydata())
        with pytest.raises(RunError, match="the learning curves table lacks the column 'accuracy'"):
            learning_rows(rows.drop(columns="accuracy"))

    def test_bands_of_many_sites_hide_no_line(self):
        few, many = (figures.learning_curves(grid_table(vision=n, lm=n)) for n in (1, 32))
        one, other = (next(c for c in ax.collections if "95 %" in str(c.get_label())).get_alpha() for ax in (few, many))
        assert other < one
        assert 1 - (1 - other) ** len(Depth.of(grid_table(vision=32, lm=32).site)) < 0.5

    def test_open_ends_are_still_rising(self):
        ax = figures.learning_curves(GRID)
        ends = [drawn for drawn in ax.lines if drawn.get_marker() == "o"]
        assert [end.get_markerfacecolor() == "white" for end in ends] == [True] * 3 + [False] * 7  # the tower's

    def test_sites_have_the_colours_of_their_depth(self):
        ax = figures.learning_curves(grid_table(**DEEP))
        colours = [tuple(drawn.get_color()) for drawn in ax.lines if drawn.get_marker() == "None"][:-1]
        assert len(set(colours)) == 24 + 1 + 32
        bar = ax.get_figure(root=True).axes[1]
        assert [t.get_text() for t in bar.get_yticklabels()].count("proj.") == 1

    @pytest.mark.parametrize(
        ("table", "options", "message"),
        [
            (GRID.drop(columns="curve"), {}, "the probe grid table lacks the column 'curve'"),
            (GRID.assign(curve=None), {}, "has no learning curves; fit it with code=True"),
            (GRID, {"condition": "oracle"}, "unknown condition of the probe grid table 'oracle'"),
            (GRID, {"span": "answer"}, "unknown place of the probe grid table 'answer'"),
        ],
    )
    def test_errors_say_what_is_missing(self, table, options, message):
        with pytest.raises(RunError, match=message):
            figures.learning_curves(table, **options)


def test_families():
    assert target_family("card.12.rank") == "card.*.rank"
    assert target_family("count.red") == "count.red"


class TestMeshes:
    def test_cells_are_the_tables(self):
        ax = figures.patch_heatmap(EFFECTS, experiment="denoise")
        mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
        grid = mesh.get_array()
        own = EFFECTS[(EFFECTS.experiment == "denoise") & (EFFECTS.span == "objects")]
        assert grid.shape == (6, 10)
        assert list(grid[0]) == pytest.approx(own.set_index("target_site").effect[_order(own.target_site)].to_numpy())
        assert grid.mask[2:, :4].all()
        assert not grid.mask[:2].any()
        assert mesh.norm.vmin == -mesh.norm.vmax

    def test_the_share_runs_from_0_to_1_and_the_bar_has_a_unit(self):
        ax = figures.patch_heatmap(EFFECTS, experiment="cross", value="right")
        mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
        assert (mesh.norm.vmin, mesh.norm.vmax) == (0, 1)
        assert mesh.colorbar.ax.get_ylabel() == "share of items answered right"
        nats = figures.patch_heatmap(EFFECTS, experiment="denoise")
        mesh = next(c for c in nats.collections if isinstance(c, QuadMesh))
        assert "nats" in mesh.colorbar.ax.get_ylabel()

    def test_hatched_cells_are_those_without_an_effect(self):
        ax = figures.patch_heatmap(EFFECTS, experiment="noise")
        own = EFFECTS[EFFECTS.experiment == "noise"]
        hatched = [p for p in ax.patches if p.get_hatch()]
        assert len(hatched) == ((own.low <= 0) & (own.high >= 0)).sum() > 0

    def test_numbers_are_written_only_where_they_fit(self):
        small = figures.patch_heatmap(EFFECTS, experiment="cross", value="right")
        deep = figures.patch_heatmap(effects_table(lm=32), experiment="cross", value="right")
        assert any(t.get_text().startswith("0.") for t in small.texts)
        assert not any(t.get_text().startswith("0.") for t in deep.texts)

    def test_backpatching_is_source_by_target(self):
        ax = figures.backpatch_matrix(EFFECTS, span="last")
        grid = next(c for c in ax.collections if isinstance(c, QuadMesh)).get_array()
        own = EFFECTS[(EFFECTS.experiment == "backpatch") & (EFFECTS.span == "last")]
        row = own[(own.source_layer == 4) & (own.layer == 1)].iloc[0]
        assert grid.shape == (5, 5)
        assert grid[3, 1] == pytest.approx(row.right)
        assert grid.count() == len(own)

    @pytest.mark.parametrize(
        ("table", "options", "message"),
        [
            (
                EFFECTS,
                {"experiment": "denoised"},
                "unknown experiment of the effects table 'denoised'; nearest",
            ),
            (EFFECTS, {"experiment": "noise", "value": "rihgt"}, "unknown value 'rihgt'; nearest: right"),
            (EFFECTS.drop(columns="low"), {"experiment": "noise"}, "lacks the column 'low'"),
            (pd.concat([EFFECTS, EFFECTS]), {"experiment": "noise"}, "several rows for one cell"),
            (EFFECTS, {"experiment": "noise", "kind": "attn_in"}, None),
        ],
    )
    def test_errors_say_what_is_missing(self, table, options, message):
        if message is None:
            table, message = table[table["stack"] == "lm"], "no site of kind 'attn_in' to draw; the table has"
        with pytest.raises(RunError, match=message):
            figures.patch_heatmap(table, **options)

    def test_an_unknown_span_is_named(self):
        with pytest.raises(RunError, match="unknown span of the effects table 'lasst'; nearest: last"):
            figures.backpatch_matrix(EFFECTS, span="lasst")


def _order(sites):
    return [str(site) for site in Depth.of(sites).sites]


class TestCrossCurves:
    def test_lines_bands_and_levels_are_the_tables(self):
        ax = figures.cross_curves(EFFECTS, spans=["last"])
        own = EFFECTS[(EFFECTS.span == "last") & (EFFECTS.experiment == "cross")]
        control = EFFECTS[(EFFECTS.span == "last") & (EFFECTS.experiment == "cross_control")]
        _, low, high = band(ax, "last 95 %")
        assert line(ax, "last").get_ydata() == pytest.approx(own.right.to_numpy())
        assert low == pytest.approx(own.right_low.to_numpy())
        assert high == pytest.approx(own.right_high.to_numpy())
        assert line(ax, "last control").get_ydata() == pytest.approx(control.right.to_numpy())
        assert line(ax, "last control").is_dashed()
        assert list(line(ax, "unpatched").get_ydata()) == pytest.approx([0.12, 0.12])
        assert list(line(ax, "source").get_ydata()) == pytest.approx([0.9, 0.9])

    def test_the_control_is_required(self):
        with pytest.raises(RunError, match="unknown experiment of the effects table 'cross_control'"):
            figures.cross_curves(EFFECTS[EFFECTS.experiment != "cross_control"])


class TestSummaryPath:
    def test_shading_is_accuracy_above_chance(self):
        ax = figures.summary_path(PROBES, EFFECTS, verdict())
        meshes = {c.get_label(): c for c in ax.collections if isinstance(c, QuadMesh)}
        lines = probe_lines(PROBES, span="last", target=None)
        own = lines[lines.condition == "direct"]
        assert set(meshes) == {f"{p} {c}" for p in ("objects", "question", "last") for c in ("direct", "cascaded")}
        above = (own.accuracy - 0.1) / 0.9
        assert list(meshes["last direct"].get_array()[0]) == pytest.approx(list(above))
        assert meshes["objects direct"].get_array().shape == (1, 10)

    def test_the_black_line_is_the_normalised_effect_within_its_row(self):
        ax = figures.summary_path(PROBES, EFFECTS, verdict())
        own = EFFECTS[(EFFECTS.experiment == "denoise") & (EFFECTS.span == "last")]
        y = line(ax, "last effect").get_ydata()
        floor, ceiling = 2 + 0.14 - 0.05, 2 - 0.3 + 0.05
        assert (floor - y) / (floor - ceiling) == pytest.approx(own.normalised.clip(0, 1).to_numpy())
        sure = own[(own.low > 0) | (own.high < 0)]
        assert len(line(ax, "last sure").get_xdata()) == len(sure) < len(own)

    def test_the_locus_is_boxed_over_its_interval_and_named(self):
        ax = figures.summary_path(PROBES, EFFECTS, verdict("too_late", 3))
        box = next(p for p in ax.patches if isinstance(p, FancyBboxPatch))
        assert (box.get_x(), box.get_x() + box.get_width()) == (4 + 2 - 0.5, 4 + 4 + 0.5)
        words = {t.get_text() for t in ax.texts}
        assert {"lost here", "too late, decoder layer 3 [2, 4]"} <= words
        assert ax.get_title(loc="left").replace("\n", " ") == LOCI["too_late"]

    @pytest.mark.parametrize("locus", LOCI)
    def test_every_class_can_be_drawn(self, locus):
        ax = figures.summary_path(PROBES, EFFECTS, verdict(locus, None))
        boxed = any(isinstance(p, FancyBboxPatch) for p in ax.patches)
        assert boxed == (locus not in ("text_skill", "format", "none", "cannot_tell"))

    def test_tables_without_a_place_or_an_experiment_are_refused(self):
        with pytest.raises(RunError, match="none of the spans objects, image, question, last"):
            figures.summary_path(PROBES.assign(span="answer"), EFFECTS, verdict())
        with pytest.raises(RunError, match="unknown experiment of the effects table 'denoise'"):
            figures.summary_path(PROBES, EFFECTS[EFFECTS.experiment != "denoise"], verdict())


class TestSave:
    def test_pdf_png_and_the_numbers_beside_them(self, tmp_path):
        saved = figures.save(figures.gap_bars(GAP), tmp_path / "new", "gap", data=GAP)
        assert saved.pdf.read_bytes()[:5] == b"%PDF-"
        assert saved.png.read_bytes()[1:4] == b"PNG"
        pd.testing.assert_frame_equal(pd.read_csv(saved.csv[0]), GAP)
        assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["gap.csv", "gap.pdf", "gap.png"]

    def test_several_tables_and_the_same_bytes_again(self, tmp_path):
        tables = {"probes": PROBES, "effects": EFFECTS}
        saves = [
            figures.save(figures.summary_path(PROBES, EFFECTS, verdict()), tmp_path / k, "path", data=tables)
            for k in ("a", "b")
        ]
        assert [p.name for p in saves[0].csv] == ["path.probes.csv", "path.effects.csv"]
        assert saves[0].pdf.read_bytes() == saves[1].pdf.read_bytes()
        assert saves[0].png.read_bytes() == saves[1].png.read_bytes()


def test_exports():
    assert set(figures.__all__) == {*DRAWN, *SWEPT, *LOCATED, "COLOURS", "Saved", "save"}
    assert json.dumps(figures.COLOURS)
