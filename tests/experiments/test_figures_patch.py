"""Figures of sweeps: what is drawn is what the table says, where it says it."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, PolyCollection, QuadMesh
from matplotlib.colors import Normalize
from PIL import Image

from seamscope.experiments import figures, tasks
from seamscope.experiments._plates import drafts_of
from seamscope.experiments._plates_patch import Shown, patch_plate_drafts
from seamscope.experiments._report import SECTIONS
from seamscope.experiments._token_boxes import token_boxes
from seamscope.experiments.figures._style import COLOURS, WIDTH
from seamscope.experiments.sweeps._tokens import token_names
from seamscope.hooks import RunError, load_vlm

from ..checkpoints import BUILDERS
from ..hooks.families_fixture import checkpoint

LAYERS, HEADS = 4, 3
# (span, tokens, items that have the last of them), in the order of a prompt's table: objects lie among the image
TOKENS = (("template", 2, 20), ("image", 5, 4), ("image.object.1", 3, 20), ("image.object.0", 3, 9), ("last", 1, 20))
ITEM = tasks.get("cards.sum").items(1, profile_name="full")[0]


def row(experiment, site, effect, **labels):
    """A row of a summarised sweep; the interval is 0.2 wide on each side."""
    right = float(np.clip(0.4 + 0.1 * effect, 0, 1))
    shares = {"right": right, "right_low": right - 0.1, "right_high": right + 0.1, "base_right": 0.4}
    places = {"source_site": site, "target_site": site}
    ends = {"n": 20, "effect": effect, "low": effect - 0.2, "high": effect + 0.2}
    return {"experiment": experiment, **places, **labels, **ends, **shares}


def token_table(layers=LAYERS, experiment="denoise", seed=0, counts=TOKENS):
    rng, rows = np.random.default_rng(seed), []
    for site in ["lm.embed", *(f"lm.{k}.{kind}" for k in range(layers) for kind in ("resid_post", "mlp_out"))]:
        for span, tokens, last in counts:
            for token in range(tokens):
                n = last if token == tokens - 1 else 20
                rows.append({**row(experiment, site, rng.normal(0, 0.4), span=span, token=token), "n": n})
    return pd.DataFrame(rows)


def head_table(layers=LAYERS, heads=HEADS):
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        row("noise", f"lm.{k}.head_z", rng.normal(0, 0.4), span=span, head=head)
        for k in range(layers)
        for head in range(heads)
        for span in ("last", "objects", "question")
    )


def span_table(kinds=("resid_post",)):
    rng = np.random.default_rng(2)
    return pd.DataFrame(
        row("denoise", f"lm.{k}.{kind}", rng.normal(0, 0.4), span=span)
        for k in range(LAYERS)
        for kind in kinds
        for span in ("last", "objects")
    )


def window_table():
    rng, rows = np.random.default_rng(3), []
    for queries, keys in (("last", "objects"), ("question", "objects"), ("last", "question"), ("reading", "image")):
        for first in range(LAYERS - 1):
            for name in ("knockout", "knockout_control"):
                labels = {"queries": queries, "keys": keys, "first": first, "last": first + 1}
                rows.append(row(name, "", -abs(rng.normal(0, 2)) if name == "knockout" else -0.1, **labels))
    return pd.DataFrame(rows).drop(columns=["source_site", "target_site"])


def exit_table():
    ends = {"queries": "later", "keys": "image", "last": LAYERS - 1}
    rows = [row("exit", "", -8 / 2**first, **ends, first=first) for first in range(LAYERS)]
    return pd.DataFrame(rows).drop(columns=["source_site", "target_site"])


def screen_table(n=12, noise=0.1):
    rng, rows = np.random.default_rng(4), []
    for kind in ("resid_post", "attn_out", "mlp_out", "resid_mid"):
        for k, exact in enumerate(rng.normal(0, 1, n)):
            ends = {"estimate": exact + rng.normal(0, noise), "exact": exact, "low": exact - 0.3, "high": exact + 0.3}
            rows.append({"kind": kind, **ends, "measured": "top" if k % 3 else "sample"})
    rows.append({"kind": "resid_post", "estimate": 9.0, "exact": np.nan, "measured": ""})
    return pd.DataFrame(rows)


def grid_boxes(side=4, cell=16):
    """Where the tokens of the synthetic table are in a picture; two of them cover its right half."""
    edges = pd.DataFrame(
        [(x * cell, y * cell, (x + 1) * cell, (y + 1) * cell) for y in range(side) for x in range(side)],
        columns=["left", "top", "right", "bottom"],
        dtype=float,
    )
    held = [(span, token) for span, tokens, _ in TOKENS if span.startswith("image") for token in range(tokens)]
    spans, tokens = zip(*held, strict=True)
    return edges[: len(held)].assign(span=spans, token=tokens, sheet=0)


TOKEN, HEAD, SPAN, WINDOW, EXIT, SCREEN = (
    *(token_table(), head_table(), span_table()),
    *(window_table(), exit_table(), screen_table()),
)
PICTURE, BOXES = Image.new("RGB", (64, 64), "#cc6677"), grid_boxes()
DEEP = (("template", 12, 20), ("image", 456, 20), *((f"image.object.{k}", 30, 20) for k in range(4)), ("last", 1, 20))
DRAWN = {
    "patch_tokens": lambda: figures.patch_tokens(TOKEN, experiment="denoise"),
    "patch_on_image": lambda: figures.patch_on_image(TOKEN, PICTURE, BOXES, experiment="denoise"),
    "patch_on_image_panels": lambda: figures.patch_on_image_panels(TOKEN, PICTURE, BOXES, experiment="denoise").axes[0],
    "knockout_windows": lambda: figures.knockout_windows(WINDOW),
    "exit_curve": lambda: figures.exit_curve(EXIT),
    "head_map": lambda: figures.head_map(HEAD, experiment="noise", span="last"),
    "screen_scatter": lambda: figures.screen_scatter(SCREEN),
    "layer_curves": lambda: figures.layer_curves(SPAN, experiment="denoise"),
}
LARGE = {
    "patch_tokens": lambda: figures.patch_tokens(token_table(layers=16, counts=DEEP), experiment="denoise"),
    "head_map": lambda: figures.head_map(head_table(32, 32), experiment="noise", span="last"),
    "tall": lambda: figures.patch_on_image(TOKEN, Image.new("L", (20, 64)), BOXES, experiment="denoise"),
}


def labels(axis, *, seen):
    """Labels of ticks on the axis, or of those beyond its ends, which matplotlib makes but does not draw."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if (low <= tick.get_loc() <= high) == seen]
    return [text for tick in ticks for text in (tick.label1, tick.label2)]


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def band(ax, label):
    """(low, high) of a filled band, from left to right."""
    drawn = next(c for c in ax.collections if isinstance(c, PolyCollection) and c.get_label() == label)
    corners = pd.DataFrame(drawn.get_paths()[0].vertices, columns=["x", "y"])
    return corners.groupby("x").y.agg(["min", "max"]).to_numpy().T


def mesh_of(ax):
    return next(c for c in ax.collections if isinstance(c, QuadMesh))


def hatched(ax, shape):
    """Which cells lie in a hatched run, as rectangles of whole cells."""
    found = np.zeros(shape, dtype=bool)
    (runs,) = [c for c in ax.collections if c.get_label() == "hatched"]
    assert runs.get_hatch()
    for path in runs.get_paths():
        left, low, right, high = np.round(path.get_extents().extents + 0.5).astype(int)
        found[low:high, left:right] = True
    return found


def cells_on(ax):
    """Values and corners of the coloured cells of a picture."""
    (drawn,) = [c for c in ax.collections if isinstance(c, PatchCollection) and c.get_label() == "effect"]
    return drawn, np.array([path.get_extents().extents for path in drawn.get_paths()])


@pytest.mark.parametrize("draw", [*DRAWN.values(), *LARGE.values()], ids=[*DRAWN, *(f"{n}-large" for n in LARGE)])
def test_one_column_wide_and_no_text_leaves_the_figure_or_is_tiny(draw):
    figure = draw().get_figure(root=True)
    assert figure.get_figwidth() == WIDTH
    figure.draw_without_rendering()
    for ax in figure.axes:
        shown = [text for text in labels(ax.xaxis, seen=True) if text.get_text() and text.get_visible()]
        boxes = [text.get_window_extent() for text in shown]
        assert all(a.x1 <= b.x0 + 0.5 for a, b in pairwise(boxes)), [text.get_text() for text in shown]
    unseen = {text for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for text in labels(axis, seen=False)}
    for text in set(figure.findobj(matplotlib.text.Text)) - unseen:
        if text.get_text() and text.get_visible() and text.get_in_layout():
            assert text.get_fontsize() >= 6
            box = text.get_window_extent()
            assert max(-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1) <= 1, text.get_text()


@pytest.mark.parametrize("name", DRAWN)
def test_settings_and_tables_stay_as_they_were(name):
    tables = (TOKEN, HEAD, SPAN, WINDOW, EXIT, SCREEN, BOXES)
    kept, before = [table.copy() for table in tables], matplotlib.rcParams.copy()
    DRAWN[name]()
    assert {**matplotlib.rcParams.copy(), "backend": ""} == {**before, "backend": ""}
    for old, new in zip(kept, tables, strict=True):
        pd.testing.assert_frame_equal(old, new)


class TestTokens:
    def test_cells_are_the_tables_with_objects_in_order_before_the_rest_of_the_image(self):
        ax = figures.patch_tokens(TOKEN, experiment="denoise")
        grid = mesh_of(ax).get_array()
        held = [*(("template", k) for k in range(2)), *(("image.object.0", k) for k in range(2))]
        held += [*(("image.object.1", k) for k in range(3)), *(("image", k) for k in range(4)), ("last", 0)]
        sites = ["lm.embed", *(f"lm.{k}.resid_post" for k in range(LAYERS))]
        wanted = TOKEN.set_index(["target_site", "span", "token"]).effect
        expected = [[wanted[(site, *token)] for token in held] for site in sites]
        assert np.array(grid) == pytest.approx(np.array(expected))
        names = ["template", "object 0", "object 1", "rest of image", "last"]
        assert [t.get_text() for t in ax.get_xticklabels()] == names
        assert list(ax.get_xticks()) == [0.5, 2.5, 5, 8.5, 11]
        assert ax.get_ylabel() == "decoder layer"
        assert not ax.yaxis_inverted()

    def test_tokens_of_few_items_are_left_out(self):
        assert mesh_of(figures.patch_tokens(TOKEN, experiment="denoise")).get_array().shape[1] == 12
        assert mesh_of(figures.patch_tokens(TOKEN.assign(n=1), experiment="denoise")).get_array().shape[1] == 14

    def test_hatched_are_the_cells_whose_interval_holds_no_effect(self):
        ax = figures.patch_tokens(TOKEN, experiment="denoise", spans=["template", "last"])
        grid = mesh_of(ax).get_array()
        assert grid.shape == (LAYERS + 1, 3)
        nothing = np.abs(grid) <= 0.2
        assert 0 < nothing.sum() < nothing.size
        assert (hatched(ax, grid.shape) == nothing).all()
        none = TOKEN.assign(low=0.1, high=0.2)
        assert not hatched(figures.patch_tokens(none, experiment="denoise"), grid.shape).any()

    def test_shares_are_hatched_where_they_hold_the_unpatched_one(self):
        ax = figures.patch_tokens(TOKEN, experiment="denoise", value="right")
        grid = mesh_of(ax).get_array()
        assert (hatched(ax, grid.shape) == (np.abs(grid - 0.4) <= 0.1)).all()
        assert (mesh_of(ax).norm.vmin, mesh_of(ax).norm.vmax) == (0, 1)

    def test_no_span_is_narrower_than_its_name_is_high(self):
        ax = LARGE["patch_tokens"]()
        figure = ax.get_figure(root=True)
        figure.draw_without_rendering()
        ends = np.cumsum([0, 12, 30, 30, 30, 30, 456, 1]) - 0.5
        at = ax.transData.transform([(x, 0) for x in ends])[:, 0] * 72 / figure.dpi
        assert np.diff(at).min() > 6.5
        assert np.diff(at).argmax() == 5

    @pytest.mark.parametrize(
        ("table", "options", "message"),
        [
            (TOKEN, {"experiment": "nose"}, "unknown experiment of the effects table 'nose'"),
            (TOKEN, {"spans": ["lst"]}, "unknown span of the effects table 'lst'; nearest: last"),
            (TOKEN, {"value": "rihgt"}, "unknown value 'rihgt'; nearest: right"),
            (SPAN, {}, "the effects table lacks the column 'token'"),
            (pd.concat([TOKEN, TOKEN]), {}, "several rows for one cell"),
        ],
    )
    def test_errors_say_what_is_missing(self, table, options, message):
        with pytest.raises(RunError, match=message):
            figures.patch_tokens(table, **{"experiment": "denoise", **options})


class TestOnImage:
    @staticmethod
    def rows(site):
        own = TOKEN[(TOKEN.target_site == site) & (TOKEN.n >= 10)].rename(columns={"right": "share"})
        return own.merge(BOXES, on=["span", "token"])

    @pytest.mark.parametrize("layer", range(LAYERS))
    def test_cells_lie_where_their_tokens_are_in_the_colours_of_their_effects(self, layer):
        ax = figures.patch_on_image(TOKEN, PICTURE, BOXES, experiment="denoise", layer=layer)
        drawn, extents = cells_on(ax)
        own = self.rows(f"lm.{layer}.resid_post")
        found = pd.DataFrame(extents, columns=["left", "top", "right", "bottom"]).assign(effect=drawn.get_array())
        both = found.merge(own, on=["left", "top", "right", "bottom"])
        assert len(both) == len(found) == len(own) == 9
        assert both.effect_x.to_numpy() == pytest.approx(both.effect_y.to_numpy())
        assert drawn.norm.vmin == -drawn.norm.vmax == pytest.approx(-own.effect.abs().max())
        assert ax.get_title(loc="left") == f"layer {layer}"

    def test_dotted_are_the_tokens_whose_interval_excludes_0(self):
        ax = figures.patch_on_image(TOKEN, PICTURE, BOXES, experiment="denoise", layer=1)
        own = self.rows("lm.1.resid_post")
        sure = own[own.effect.abs() > 0.2]
        assert 0 < len(sure) < len(own)
        dots = line(ax, "95 % interval excludes 0").get_xydata()
        assert sorted(map(tuple, dots)) == sorted(zip(sure.left + 8, sure.top + 8, strict=True))
        unknown = TOKEN.assign(low=np.nan, high=np.nan)
        ax = figures.patch_on_image(unknown, PICTURE, BOXES, experiment="denoise", layer=1)
        assert len(line(ax, "95 % interval excludes 0").get_xydata()) == 0
        assert ax.get_legend() is None

    def test_no_effect_is_clear_and_the_strongest_is_not(self):
        drawn, _ = cells_on(figures.patch_on_image(TOKEN, PICTURE, BOXES, experiment="denoise"))
        clear, dense = (drawn.cmap(drawn.norm(value))[3] for value in (0.0, drawn.norm.vmax))
        assert clear < 0.05
        assert 0.6 < dense < 0.95

    def test_the_strongest_layer_is_that_of_the_strongest_token_of_the_picture(self):
        loud = TOKEN.assign(effect=TOKEN.effect.where(TOKEN.target_site != "lm.2.resid_post", TOKEN.effect - 3))
        ax = figures.patch_on_image(loud, PICTURE, BOXES, experiment="denoise")
        assert ax.get_title(loc="left") == "layer 2"
        elsewhere = loud.assign(effect=loud.effect.where(loud.span != "last", 99.0))
        assert (
            figures.patch_on_image(elsewhere, PICTURE, BOXES, experiment="denoise").get_title(loc="left") == "layer 2"
        )

    def test_panels_share_their_colours(self):
        figure = figures.patch_on_image_panels(TOKEN, PICTURE, BOXES, experiment="denoise")
        panels = [ax for ax in figure.axes if ax.get_title(loc="left")]
        assert [ax.get_title(loc="left") for ax in panels] == ["before layer 0", *(f"layer {k}" for k in range(LAYERS))]
        ends = {(cells_on(ax)[0].norm.vmin, cells_on(ax)[0].norm.vmax) for ax in panels}
        assert len(ends) == 1
        two = figures.patch_on_image_panels(TOKEN, PICTURE, BOXES, experiment="denoise", layers=[3, 1])
        assert [ax.get_title(loc="left") for ax in two.axes[:2]] == ["layer 3", "layer 1"]

    def test_padding_beyond_the_picture_is_in_sight(self):
        low = BOXES.assign(top=BOXES.top + 30, bottom=BOXES.bottom + 30)
        ax = figures.patch_on_image(TOKEN, PICTURE, low, experiment="denoise")
        assert sorted(ax.get_ylim()) == [0, 78]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layer": 9}, "layer 9 is not in the effects table; it has: 0, 1, 2, 3"),
            ({"kind": "attn_out", "layer": 0}, "layer 0 is not in the effects table"),
            ({"boxes": BOXES.assign(span="answer")}, "no token of the boxes table is in the effects table"),
            ({"boxes": BOXES.drop(columns="top")}, "the boxes table lacks the column 'top'"),
            ({"boxes": BOXES[:0]}, "the boxes table is empty"),
        ],
    )
    def test_errors_say_what_is_missing(self, options, message):
        with pytest.raises(RunError, match=message):
            figures.patch_on_image(TOKEN, PICTURE, **{"boxes": BOXES, "experiment": "denoise", **options})


@cache
def batch_of(name):
    return load_vlm(checkpoint(name), device="cpu", check=False).encode([ITEM], condition="direct")


class TestTokenBoxes:
    @pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_vl", "gemma3"])
    def test_an_objects_tokens_show_it_and_no_others_do(self, name):
        table, batch = token_boxes(batch_of(name)), batch_of(name)
        assert set(zip(table.span, table.token, strict=True)) <= set(token_names(batch))
        assert not table.duplicated(["span", "token"]).any()
        for cell in table.itertuples():
            shown = {
                k
                for k, box in enumerate(ITEM.boxes)
                if min(cell.right, box.right) - max(cell.left, box.left) > 0.1 * (cell.right - cell.left)
                and min(cell.bottom, box.bottom) - max(cell.top, box.top) > 0.1 * (cell.bottom - cell.top)
            }
            named = re.fullmatch(r"image\.object\.(\d+)", cell.span)
            assert int(named[1]) in shown if named else cell.span == "image" and not shown

    def test_an_overview_and_its_tiles_are_sheets_of_their_own(self):
        table = token_boxes(batch_of("llava_next"))
        assert sorted(set(table.sheet)) == [0, 1]
        whole = [cells.right.max() - cells.left.min() for _, cells in table.groupby("sheet")]
        assert min(whole) > 0.9 * ITEM.image.width
        assert set(token_boxes(batch_of("llava")).sheet) == {0}

    def test_a_decoder_that_sees_pictures_from_outside_has_none(self):
        assert "mllama" in BUILDERS
        assert token_boxes(batch_of("mllama")).empty


class TestRoutes:
    def test_lines_bands_and_controls_are_the_tables_over_the_middle_of_the_window(self):
        ax = figures.knockout_windows(WINDOW.sample(frac=1, random_state=0))
        for (queries, keys), own in WINDOW.groupby(["queries", "keys"]):
            name = f"{queries} ← {keys}"
            cut, control = (own[own.experiment == each] for each in ("knockout", "knockout_control"))
            assert list(line(ax, name).get_xdata()) == [0.5, 1.5, 2.5]
            assert line(ax, name).get_ydata() == pytest.approx(cut.effect.to_numpy())
            assert band(ax, f"{name} 95 %") == pytest.approx(cut[["low", "high"]].to_numpy().T)
            assert line(ax, f"{name} control").get_ydata() == pytest.approx(control.effect.to_numpy())
            assert line(ax, f"{name} control").is_dashed()
            assert line(ax, f"{name} control").get_color() == line(ax, name).get_color()
            assert line(ax, f"{name} control").get_linewidth() < line(ax, name).get_linewidth()
        drawn = [line(ax, f"{q} ← {k}") for q, k in WINDOW.groupby(["queries", "keys"]).groups]
        assert len({(each.get_color(), each.get_marker()) for each in drawn}) == len(drawn)
        assert ax.get_xlabel() == "decoder layer (middle of 2 that are cut)"

    def test_the_control_is_required(self):
        with pytest.raises(RunError, match="unknown experiment of the knockout table 'knockout_control'"):
            figures.knockout_windows(WINDOW[WINDOW.experiment == "knockout"])

    def test_the_exit_is_drawn_in_nats_and_in_shares(self):
        ax = figures.exit_curve(EXIT[::-1])
        (twin,) = [other for other in ax.get_figure(root=True).axes if other is not ax]
        assert list(line(ax, "effect").get_xdata()) == list(range(LAYERS))
        assert line(ax, "effect").get_ydata() == pytest.approx(EXIT.effect.to_numpy())
        assert band(ax, "effect 95 %") == pytest.approx(EXIT[["low", "high"]].to_numpy().T)
        assert line(twin, "right").get_ydata() == pytest.approx(EXIT.right.to_numpy())
        assert band(twin, "right 95 %") == pytest.approx(EXIT[["right_low", "right_high"]].to_numpy().T)
        assert line(twin, "unpatched").get_ydata() == pytest.approx([0.4, 0.4])
        assert twin.yaxis.label.get_color() == line(twin, "right").get_color() == COLOURS["direct"]
        assert ax.get_xlabel() == "decoder layer from which on image tokens are dropped"
        with pytest.raises(RunError, match="unknown experiment of the exit table 'exit'"):
            figures.exit_curve(WINDOW)


class TestHeads:
    def test_cells_are_the_tables(self):
        ax = figures.head_map(HEAD, experiment="noise", span="last")
        grid = mesh_of(ax).get_array()
        own = HEAD[HEAD.span == "last"].pivot(index="target_site", columns="head", values="effect")
        assert np.array(grid) == pytest.approx(own.to_numpy())
        assert not ax.yaxis_inverted()
        marked = {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in ax.patches if p.get_hatch()}
        assert marked == set(map(tuple, np.argwhere(np.abs(own.to_numpy()) <= 0.2)))
        assert 0 < len(marked) < own.size
        assert ax.get_xlabel() == "head (at last position)"

    def test_an_unknown_span_is_named(self):
        with pytest.raises(RunError, match="unknown span of the effects table 'lasst'; nearest: last"):
            figures.head_map(HEAD, experiment="noise", span="lasst")


class TestLayerCurves:
    @pytest.mark.parametrize(("value", "ends"), [("effect", ["low", "high"]), ("right", ["right_low", "right_high"])])
    def test_lines_and_bands_are_the_tables(self, value, ends):
        ax = figures.layer_curves(SPAN, experiment="denoise", value=value)
        for span, own in SPAN.groupby("span"):
            assert line(ax, span).get_ydata() == pytest.approx(own[value].to_numpy())
            assert band(ax, f"{span} 95 %") == pytest.approx(own[ends].to_numpy().T)
        level = line(ax, "no effect" if value == "effect" else "unpatched")
        assert level.get_ydata() == pytest.approx([0.0, 0.0] if value == "effect" else [0.4, 0.4])

    def test_spans_can_be_chosen_and_are_checked(self):
        ax = figures.layer_curves(SPAN, experiment="denoise", spans=["last"])
        assert "objects" not in [drawn.get_label() for drawn in ax.lines]
        with pytest.raises(RunError, match="unknown span of the effects table 'image'"):
            figures.layer_curves(SPAN, experiment="denoise", spans=["image"])


def written(ax: Axes) -> str:
    return "\n".join(text.get_text() for text in ax.texts)


class TestScreen:
    def test_marks_and_intervals_are_the_measured_cells(self):
        ax = figures.screen_scatter(SCREEN)
        own = SCREEN[(SCREEN.kind == "attn_out") & (SCREEN.measured == "top")]
        assert line(ax, "attention top").get_xydata() == pytest.approx(own[["estimate", "exact"]].to_numpy())
        upright = next(c for c in ax.collections if c.get_label() == "attention top 95 %").get_segments()
        assert np.array(upright)[:, :, 1] == pytest.approx(own[["low", "high"]].to_numpy())
        assert line(ax, "attention sample").get_markerfacecolor() == "none"
        assert 9.0 not in [x for drawn in ax.lines for x in np.atleast_1d(drawn.get_xdata())]
        same = line(ax, "estimate = exact")
        assert (same.get_xy1(), same.get_slope()) == ((0, 0), 1)

    def test_agreement_is_written_for_both_groups(self):
        table = screen_table(noise=0.0)
        assert written(figures.screen_scatter(table)) == (
            "32 strongest by estimate: ρ = 1.00, same sign 100 %\n16 random others: ρ = 1.00, same sign 100 %"
        )
        turned = table.assign(estimate=-(table.estimate**3))
        assert "32 strongest by estimate: ρ = −1.00, same sign 0 %" in written(figures.screen_scatter(turned))

    def test_a_shuffled_estimate_agrees_with_nothing(self):
        table = screen_table(n=100).dropna()
        table = table.assign(estimate=table.estimate.sample(frac=1, random_state=0).to_numpy()).drop(columns="measured")
        found = re.fullmatch(r"400 cells: ρ = (.*), same sign (\d+) %", written(figures.screen_scatter(table)))
        assert abs(float(found[1].replace("−", "-"))) < 0.15
        assert 40 < int(found[2]) < 60

    def test_what_is_missing_is_named(self):
        with pytest.raises(RunError, match="the screen table lacks the column 'estimate'"):
            figures.screen_scatter(SCREEN.drop(columns="estimate"))
        with pytest.raises(RunError, match="the screen table is empty"):
            figures.screen_scatter(SCREEN.assign(exact=np.nan))


TABLES = {
    "effects.denoise+noise.token": pd.concat([TOKEN, token_table(experiment="noise", seed=5)]),
    "effects.noise.head": HEAD,
    "effects.denoise+cross.span": pd.concat([span_table(("resid_post", "attn_out")), SPAN.assign(experiment="cross")]),
    "effects.knockout": WINDOW,
    "effects.exit": EXIT,
    "screen": SCREEN,
}
SHOWN = Shown(picture=PICTURE, boxes=BOXES)
PLATES = {draft.name: draft for draft in patch_plate_drafts(TABLES, shown=SHOWN)}
BY_TOKEN = [f"patch_{what}" for name in ("denoise", "noise") for what in (f"tokens_{name}", f"tokens_{name}_image")] + [
    "patch_tokens_denoise_mlp_out",
    "patch_tokens_noise_mlp_out",
]
ON_IMAGE = [f"patch_{what}_{name}" for name in ("denoise", "noise") for what in ("image", "panels")]
FIGURES = {
    "effects.denoise+noise.token": BY_TOKEN,
    "effects.noise.head": ["patch_heads_noise_objects", "patch_heads_noise_last"],
    "effects.denoise+cross.span": ["patch_layers_denoise", "patch_layers_denoise_attn_out", "patch_layers_cross"],
    "effects.knockout": ["knockout"],
    "effects.exit": ["exit"],
    "screen": ["screen"],
}


class TestPlates:
    @pytest.mark.parametrize("name", TABLES)
    def test_a_table_gives_its_own_figures_and_no_others(self, name):
        assert {draft.name for draft in patch_plate_drafts({name: TABLES[name]})} == set(FIGURES[name])
        assert {draft.name for draft in drafts_of({name: TABLES[name]})} == set(FIGURES[name])
        assert patch_plate_drafts({name: TABLES[name][:0]}) == []

    def test_a_picture_adds_its_own(self):
        assert set(PLATES) == {*ON_IMAGE, *(name for names in FIGURES.values() for name in names)}
        elsewhere = Shown(picture=PICTURE, boxes=BOXES.assign(span="answer"))
        assert not set(ON_IMAGE) & {draft.name for draft in patch_plate_drafts(TABLES, shown=elsewhere)}
        sheets = Shown(picture=PICTURE, boxes=pd.concat([BOXES[:5], BOXES[5:].assign(sheet=1)]))
        found = {draft.name for draft in patch_plate_drafts(TABLES, shown=sheets)}
        assert {"patch_image_noise_0", "patch_image_noise_1"} <= found

    def test_of_tables_with_the_same_experiment_the_first_is_drawn(self):
        both = {"effects.denoise.token": TOKEN.assign(effect=0.0), "effects.denoise+noise.token": TOKEN}
        found = {draft.name: draft for draft in patch_plate_drafts(both)}
        assert set(found["patch_tokens_denoise"].data.effect) == {0.0}

    @pytest.mark.parametrize("name", PLATES)
    def test_every_figure_can_be_drawn(self, name):
        assert PLATES[name].draw() is not None

    def test_every_figure_says_how_it_is_read_and_what_it_does_not_show(self):
        for name, draft in PLATES.items():
            words = draft.words
            assert draft.section in SECTIONS
            for text in (words.title, words.caption, words.controls, words.caveat, words.alt):
                assert text.strip(), name
                assert "nan" not in re.findall(r"\w+", text)
            assert "interval" in words.caption or "95 %" in words.caption, name
            for text in (words.caption, words.controls, words.caveat, words.alt):
                assert text.endswith((".", "?")), name
        titles = [draft.words.title for draft in PLATES.values()]
        assert len(set(titles)) == len(titles)

    def test_the_numbers_beside_a_figure_are_those_that_it_draws(self):
        held = PLATES["patch_tokens_noise_image"].data
        assert set(held.experiment) == {"noise"}
        assert held.span.str.startswith("image").all()
        assert set(held.n) == {20}
        assert not held.target_site.str.contains("mlp_out").any()
        assert len(PLATES["screen"].data) == len(SCREEN) - 1

    def test_alternatives_tell_the_strongest(self):
        own = HEAD[HEAD.span == "last"]
        most = own.loc[own.effect.abs().idxmax()]
        said = f"{most.effect:+.2f} nats at {most.target_site}, head {most['head']}.".replace("-", "−")
        assert PLATES["patch_heads_noise_last"].words.alt.endswith(said)
        tokens = TOKEN[(TOKEN.span == "image.object.1") & TOKEN.target_site.str.contains("resid_post|embed")]
        loud = tokens.assign(effect=tokens.effect.where(tokens.token != 2, 7.0))
        (draft,) = [each for each in patch_plate_drafts({"effects.denoise.token": loud}) if each.name.endswith("image")]
        assert draft.words.alt.endswith("Strongest: +7.00 nats at lm.embed, token 2 of object 1.")
        assert "−8.00 from layer 0" in PLATES["exit"].words.alt

    def test_controls_are_named(self):
        assert "as many other positions" in PLATES["knockout"].words.controls
        assert "counterfactual partner" in PLATES["patch_tokens_noise"].words.controls
        assert "cross_control" in PLATES["patch_layers_cross"].words.controls
        assert "drawn at random" in PLATES["screen"].words.controls


def test_colours_of_nats_are_symmetric():
    for draw in (DRAWN["patch_tokens"], DRAWN["head_map"]):
        ends: Normalize = mesh_of(draw()).norm
        assert ends.vmin == -ends.vmax
