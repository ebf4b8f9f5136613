"""Figures: pure functions of tables, `f(table, ax=None) → Axes`, and `save`."""

from ._cross import cross_curves
from ._gap import gap_bars
from ._patch import backpatch_matrix, patch_heatmap
from ._probes import probe_curves, probe_panels
from ._save import Saved, save
from ._style import COLOURS
from ._summary import summary_path

__all__ = [
    "COLOURS",
    "Saved",
    "backpatch_matrix",
    "cross_curves",
    "gap_bars",
    "patch_heatmap",
    "probe_curves",
    "probe_panels",
    "save",
    "summary_path",
]
