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
from seamscope.experiments.figures._style import COLOURS, SPANS, WIDTH
from seamscope.experiments.figures._tables import probe_lines, target_family
from seamscope.hooks import RunError

from ._synthetic import effects_table, gap_table, probes_table, verdict

GAP, PROBES, EFFECTS = gap_table(), probes_table(), effects_table()
DRAWN = {
    "gap_bars": lambda: figures.gap_bars(GAP),
    "probe_curves": lambda: figures.probe_curves(PROBES),
    "probe_panels": lambda: figures.probe_panels(PROBES).axes[0],
    "patch_heatmap": lambda: figures.patch_heatmap(EFFECTS, experiment="denoise"),
    "backpatch_matrix": lambda: figures.backpatch_matrix(EFFECTS, span="last"),
    "cross_curves": lambda: figures.cross_curves(EFFECTS),
    "summary_path": lambda: figures.summary_path(PROBES, EFFECTS, verdict()),
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


@EVERY
def test_no_text_leaves_the_figure_and_none_is_tiny(name):
    figure = DRAWN[name]().get_figure(root=True)
    figure.draw_without_rendering()
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text() and text.get_visible() and text.get_in_layout():
            assert text.get_fontsize() >= 6
            box = text.get_window_extent()
            outside = [-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1]
            assert max(outside) <= 1, text.get_text()


def test_given_axes_are_drawn_into_and_given_back():
    ax = Figure().add_subplot()
    assert figures.gap_bars(GAP, ax) is ax


def test_drawing_leaves_the_tables_as_they_were():
    kept = GAP.copy(), PROBES.copy(), EFFECTS.copy()
    for draw in DRAWN.values():
        draw()
    for before, after in zip(kept, (GAP, PROBES, EFFECTS), strict=True):
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
        for name in ("control", "shuffled", "untrained"):
            assert line(ax, name).get_linewidth() < 1
        plain = figures.probe_curves(PROBES.drop(columns="untrained_accuracy"))
        assert "untrained" not in [drawn.get_label() for drawn in plain.lines]

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
    assert set(figures.__all__) == {*DRAWN, "COLOURS", "Saved", "save"}
    assert json.dumps(figures.COLOURS)
