"""Figures: pure functions of tables, `f(table, ax=None) → Axes`, and `save`."""

from ._causal import decodable_causal
from ._cross import cross_curves
from ._gap import gap_bars
from ._learning import learning_curves
from ._lens import lens_curves, lens_panels
from ._maps import probe_map
from ._patch import backpatch_matrix, patch_heatmap
from ._probes import probe_curves, probe_panels
from ._save import Saved, save
from ._style import COLOURS
from ._summary import summary_path
from ._transfer import transfer_curves, transfer_matrix, transfer_panels

__all__ = [
    "COLOURS",
    "Saved",
    "backpatch_matrix",
    "cross_curves",
    "decodable_causal",
    "gap_bars",
    "learning_curves",
    "lens_curves",
    "lens_panels",
    "patch_heatmap",
    "probe_curves",
    "probe_map",
    "probe_panels",
    "save",
    "summary_path",
    "transfer_curves",
    "transfer_matrix",
    "transfer_panels",
]
