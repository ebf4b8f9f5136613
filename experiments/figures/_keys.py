"""What the shading and the circles of the summary figure mean."""

from __future__ import annotations

from typing import Final

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from ._style import COLOURS, INK, SMALL, ramp, root

MEANING: Final = {
    "denoise": "patched in",
    "noise": "replaced by its partner's",
    "cross": "replaced by the text run's",
}
BELOW: Final = 40  # points under the axes: room for tick labels and the axis label
_LEFT: Final = (-0.33, 0.03, 0.44)  # of the three keys, in widths of the axes


def _under(ax: Axes, points: float) -> Transform:
    shift = ScaledTranslation(0, -points / 72, root(ax).dpi_scale_trans)
    return ax.transAxes + shift


def shading_keys(ax: Axes, *, cascaded: bool) -> None:
    """A small colour bar below the axes for each run that is shaded."""
    for run, left in zip(["direct", "cascaded"][: 1 + cascaded], _LEFT, strict=False):
        inset = ax.inset_axes((left, -0.05, 0.26, 0.05), transform=_under(ax, BELOW + 11))
        inset.set_label(f"key {run}")
        colours = ScalarMappable(Normalize(0, 1), ramp(COLOURS[run]))
        bar = root(ax).colorbar(colours, cax=inset, orientation="horizontal", ticks=[0, 1])
        inset.set_xticks([0, 1], ["chance", "1"], fontsize=SMALL)
        inset.set_title(f"decodable,\n{run} run", fontsize=SMALL, pad=2, linespacing=1.1)
        inset.tick_params(length=0, pad=1.5)
        bar.outline.set_linewidth(0.4)


def causal_key(ax: Axes, causal: str) -> None:
    """What the black lines mean, below the axes."""
    done = MEANING.get(causal, f"patched ({causal})")
    title = f"share of log-probability\nmoved when the state here\nis {done}"
    line = Line2D([], [], color=INK, lw=1.1, label="height in the row: 0 to 1")
    dot = Line2D([], [], color=INK, lw=0, marker="o", ms=3.4, mec="white", mew=0.4, label="95 % interval excludes 0")
    legend = ax.legend(
        handles=[line, dot], loc="upper left", bbox_to_anchor=(_LEFT[2], 0),
        bbox_transform=_under(ax, BELOW - 5), title=title, title_fontsize=SMALL, handlelength=1.2,
        borderpad=0, borderaxespad=0, alignment="left",
    )  # fmt: skip
    legend.get_title().set_multialignment("left")
