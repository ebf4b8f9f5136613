"""Made-up tables of the locator and verdicts of them, and what is to be found in figures of them."""

from __future__ import annotations

import pandas as pd
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from seamscope.experiments import Thresholds

from ._synthetic import moved_table, needs_table, outcomes_table, path_table, reading_table, verdict

LIMITS = Thresholds()
PATH, READING, NEEDS, ANSWERS = path_table("lm.2.resid_post"), reading_table(3), needs_table(2), outcomes_table()
HOLD, GIVEN = moved_table("hold", (0.9, 0.8, 0.0)), moved_table("cross", (0.9, 0.5, 0.1))
PATCHES = {"needs": NEEDS, "hold": HOLD, "given": GIVEN, "answers": ANSWERS}
OVERWRITTEN = verdict("overwritten", 2, place="lm.2.resid_post", interval=(2, 3))
LATE = verdict("too_late", 3, place="lm.3.resid_post", interval=None)
NONE = verdict("none", None)
SIDE = {"lost": PATH, "healthy": pd.DataFrame(), "late": path_table()}
VERDICTS = {"lost": OVERWRITTEN, "healthy": NONE, "late": LATE}
DEEP = {"path": path_table("lm.30.resid_post", vision=24, lm=32, every=3), "reading": reading_table(7, lm=32)}


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def band(ax, label):
    """(x, low, high) of a filled band."""
    drawn = next(c for c in ax.collections if isinstance(c, PolyCollection) and c.get_label() == f"{label} 95 %")
    corners = pd.DataFrame(drawn.get_paths()[0].vertices, columns=["x", "y"]).groupby("x").y
    return corners.min().index.to_numpy(), corners.min().to_numpy(), corners.max().to_numpy()


def shaded(ax):
    """The ends of the shaded place, or None."""
    found = [p for p in ax.patches if isinstance(p, Rectangle) and p.get_label() == "locus"]
    return (found[0].get_x(), found[0].get_x() + found[0].get_width()) if found else None


def words(ax):
    return {text.get_text() for text in ax.texts}


def score(rows, **where):
    """The one row of a reduced table."""
    for name, value in where.items():
        rows = rows[rows[name] == value]
    (found,) = rows.to_dict("records")
    return found
