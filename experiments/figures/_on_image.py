"""What the tokens of a picture do to the answer, drawn where they are in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from PIL.Image import Image

from seamscope.hooks import RunError, Site

from ._depth import Depth
from ._effects import effect_rows, effect_scale, of_most_items
from ._mesh import Scale
from ._style import FAINT, INK, SMALL, WIDTH, axes_for, blank, root, styled, width_in_points
from ._tables import need

COLUMNS: Final = ("target_site", "span", "token", "n")
EDGES: Final = ("left", "top", "right", "bottom")
SURE: Final = "95 % interval excludes 0"
OUTSIDE: Final = {"lm.embed": "before layer 0", "lm.final_norm": "final norm"}
ACROSS: Final = 3  # panels beside each other
MOST: Final = 6  # panels
_GREY: Final = 0.6  # how much of the picture's contrast is left
_DENSE: Final = 0.8  # opacity of the strongest effect; none is clear
_PIXELS: Final = 1200  # the most of a picture's side that are drawn
_LOW: Final = 1.5  # inches: the least height, of the colour bar's words
_BAR: Final = 0.72  # inches that the colour bar and its words take


@styled
def patch_on_image(
    effects: pd.DataFrame,
    picture: Image,
    boxes: pd.DataFrame,
    ax: Axes | None = None,
    *,
    experiment: str,
    kind: str = "resid_post",
    layer: int | None = None,
) -> Axes:
    """Effect of patching each token of a picture (nats), in colour over the place that it shows.

    Dotted are tokens whose 95 % interval does not hold 0. A token of another item with the same name, its span and
    number, may show another place: means over items are drawn at the places of this picture's tokens. Cells without a
    colour were not measured.

    Args:
        effects: a summarised sweep by token, of many items or of the picture's own.
        picture: that of one item, turned grey.
        boxes: where its tokens are, from `token_boxes`: `span, token`, and the edges `left, top, right, bottom` in
            pixels. Of boxes that cover each other the later are on top: of several sheets, choose one.
        ax: what to draw into.
        experiment: of the table.
        kind: of the site.
        layer: of the decoder; if not given, the site at which a token's effect is the largest in size, which on the
            same items looks larger than it is.
    """
    table, depth = _placed(effects, boxes, experiment, kind)
    site = _strongest(table) if layer is None else _of_layer(depth, layer)
    shown = table[table.target_site == site]
    ax = axes_for(ax, height=max(_LOW, 0.35 + (WIDTH - _BAR) * picture.height / picture.width))
    scale = effect_scale(shown.effect, "effect")
    _panel(ax, picture, boxes, shown, scale)
    ax.set_title(_called(site), loc="left", pad=3)
    _bar(ax, scale)
    if _sure(shown).any():
        ax.legend(handles=[_key()], loc="upper right", bbox_to_anchor=(1, -0.01), borderpad=0, handlelength=1)
    return ax


@styled
def patch_on_image_panels(
    effects: pd.DataFrame,
    picture: Image,
    boxes: pd.DataFrame,
    *,
    experiment: str,
    kind: str = "resid_post",
    layers: Sequence[int] | None = None,
) -> Figure:
    """`patch_on_image` at several layers, with the same colours; if not given, at up to six from first to last."""
    table, depth = _placed(effects, boxes, experiment, kind)
    sites = _spread(depth) if layers is None else [_of_layer(depth, layer) for layer in layers]
    shown = table[table.target_site.isin(sites)]
    scale = effect_scale(shown.effect, "effect")
    rows = -(-len(sites) // ACROSS)
    across = min(ACROSS, len(sites))
    figure = blank(max(_LOW, 0.3 + rows * (0.2 + (WIDTH - _BAR) / ACROSS * picture.height / picture.width)))
    panels = figure.subplots(rows, across, squeeze=False)
    for ax, site in zip(panels.flat, sites, strict=False):
        _panel(axes_for(ax, height=1), picture, boxes, shown[shown.target_site == site], scale)
        ax.set_title(_called(site), loc="left", pad=2)
    for ax in panels.flat[len(sites) :]:
        ax.set_axis_off()
    bar = figure.colorbar(_colours(scale), ax=list(panels.flat), fraction=0.06, pad=0.02, aspect=14 * rows)
    _dress(bar, scale)
    if _sure(shown).any():
        figure.legend(handles=[_key()], loc="outside lower right")
    return figure


def _placed(effects: pd.DataFrame, boxes: pd.DataFrame, experiment: str, kind: str) -> tuple[pd.DataFrame, Depth]:
    """The effects of those tokens that have a place, with their edges."""
    rows = of_most_items(effect_rows(effects, experiment, "effect", COLUMNS))
    table = rows[[*COLUMNS, "effect", "low", "high"]]  # shares answered `right` are no edges
    places = need(boxes, "boxes", ("span", "token", *EDGES))[["span", "token", *EDGES]].dropna()
    table = table.merge(places, on=["span", "token"])
    if table.empty:
        raise RunError("no token of the boxes table is in the effects table: nothing can be drawn on the picture")
    depth = Depth.of(table.target_site, kind=kind)
    return depth.along(table, "target_site"), depth


def _strongest(table: pd.DataFrame) -> str:
    return str(table.target_site.iloc[int(table.effect.abs().argmax())])


def _of_layer(depth: Depth, layer: int) -> str:
    k = depth.layer(layer)
    if k is None:
        held = ", ".join(str(site.layer) for site in depth.sites if site.layer is not None)
        raise RunError(f"layer {layer} is not in the effects table; it has: {held}")
    return str(depth.sites[k])


def _spread(depth: Depth) -> list[str]:
    chosen = np.unique(np.linspace(0, len(depth) - 1, MOST).round().astype(int))
    return [str(depth.sites[k]) for k in chosen]


def _called(name: str) -> str:
    site = Site.parse(name)
    return OUTSIDE.get(name, name) if site.layer is None else f"layer {site.layer}"


def _panel(ax: Axes, picture: Image, boxes: pd.DataFrame, shown: pd.DataFrame, scale: Scale) -> None:
    """The picture in grey, the grid of its tokens, and the effects of those that were measured."""
    left, top = (min(0.0, float(boxes[edge].min())) for edge in EDGES[:2])
    right, bottom = (max(float(size), float(boxes[e].max())) for size, e in zip(picture.size, EDGES[2:], strict=True))
    ax.imshow(_greyed(picture), extent=(0, picture.width, picture.height, 0), interpolation="antialiased")
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    ax.spines[:].set(visible=True, color=FAINT, linewidth=0.5)
    placed = boxes.dropna(subset=list(EDGES))
    size = width_in_points(ax) * float((placed.right - placed.left).median()) / (right - left)
    grid = PatchCollection(_cells(placed), facecolor="none", edgecolor=FAINT, linewidth=min(0.3, 0.03 * size))
    ax.add_collection(grid, autolim=False)
    filled = PatchCollection(_cells(shown), linewidth=0, cmap=_veil(scale.colours), norm=scale.ends, label="effect")
    filled.set_array(shown.effect.to_numpy())
    ax.add_collection(filled, autolim=False)
    sure = shown[_sure(shown)]
    dots: dict[str, Any] = {"marker": "o", "lw": 0, "color": INK, "mec": "white", "label": SURE}
    dots |= {"ms": max(0.8, min(3.4, 0.3 * size)), "mew": min(0.4, 0.04 * size)}
    ax.plot((sure.left + sure.right) / 2, (sure.top + sure.bottom) / 2, **dots)


def _sure(table: pd.DataFrame) -> pd.Series[bool]:
    """Where the interval excludes 0; that of a single item is not known."""
    return (table.low > 0) | (table.high < 0)


def _cells(table: pd.DataFrame) -> list[Rectangle]:
    rows: list[Any] = list(table[list(EDGES)].itertuples(index=False))
    return [Rectangle((row.left, row.top), row.right - row.left, row.bottom - row.top) for row in rows]


def _greyed(picture: Image) -> Any:
    """A pale grey copy, on which colours are the effects'."""
    small = picture.convert("L")
    small.thumbnail((_PIXELS, _PIXELS))
    grey = 255 - _GREY * (255 - np.asarray(small, dtype=np.float32))
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)


def _veil(colours: Colormap) -> ListedColormap:
    """The colours, the more opaque the farther from no effect."""
    shades = colours(np.linspace(0, 1, 256))
    shades[:, 3] = _DENSE * np.abs(np.linspace(-1, 1, 256)) ** 0.7
    return ListedColormap(shades)


def _colours(scale: Scale) -> ScalarMappable:
    return ScalarMappable(Normalize(scale.ends.vmin, scale.ends.vmax), _veil(scale.colours))


def _bar(ax: Axes, scale: Scale) -> None:
    """A colour bar as high as the picture."""
    inset = ax.inset_axes((1.03, 0, 0.045, 1))
    _dress(root(ax).colorbar(_colours(scale), cax=inset), scale)


def _dress(bar: Any, scale: Scale) -> None:
    bar.set_label(scale.words, size=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.6)
    bar.outline.set_linewidth(0.6)


def _key() -> Line2D:
    return Line2D([], [], marker="o", lw=0, color=INK, mec="white", mew=0.4, ms=3.4, label=SURE)
