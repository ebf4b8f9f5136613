"""Figures: pure functions of tables, `f(table, ax=None) → Axes`, and `save`."""

from ._causal import decodable_causal
from ._causal_layers import by_layer
from ._cross import cross_curves
from ._gap import gap_bars
from ._heads import head_map
from ._layers import layer_curves
from ._learning import learning_curves
from ._lens import lens_curves, lens_panels
from ._maps import probe_map
from ._on_image import patch_on_image, patch_on_image_panels
from ._patch import backpatch_matrix, patch_heatmap
from ._probes import probe_curves, probe_panels
from ._save import Saved, save
from ._screen import screen_scatter
from ._side import side_by_side
from ._style import COLOURS
from ._summary import summary_path
from ._tokens import patch_tokens
from ._transfer import transfer_curves, transfer_matrix, transfer_panels
from ._way import way
from ._windows import exit_curve, knockout_windows

__all__ = [
    "COLOURS",
    "Saved",
    "backpatch_matrix",
    "by_layer",
    "cross_curves",
    "decodable_causal",
    "exit_curve",
    "gap_bars",
    "head_map",
    "knockout_windows",
    "layer_curves",
    "learning_curves",
    "lens_curves",
    "lens_panels",
    "patch_heatmap",
    "patch_on_image",
    "patch_on_image_panels",
    "patch_tokens",
    "probe_curves",
    "probe_map",
    "probe_panels",
    "save",
    "screen_scatter",
    "side_by_side",
    "summary_path",
    "transfer_curves",
    "transfer_matrix",
    "transfer_panels",
    "way",
]
