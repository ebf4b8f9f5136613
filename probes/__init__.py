"""What a representation holds: linear probes with their controls, and intervals for what they reach."""

from seamscope.probes._contrast import pair_contrast
from seamscope.probes._erase import Directions, Eraser, EraserFitter, fit_direction, fit_eraser, random_eraser
from seamscope.probes._folds import groups_of
from seamscope.probes._grid import PER_ITEM, probe_features, probe_grid
from seamscope.probes._labels import control_labels
from seamscope.probes._lens import Lens, LogitLens, TokenRanks, lens_ranks, token_ranks
from seamscope.probes._linear import LinearProbe
from seamscope.probes._side_by_side import side_by_side
from seamscope.probes._stats import (
    bootstrap_interval,
    bootstrap_intervals,
    exceeds,
    false_discovery,
    median_interval,
    paired_bootstrap_interval,
)
from seamscope.probes._summary import summarise
from seamscope.probes._transfer import probe_pair, probe_transfer, summarise_transfer
from seamscope.probes._tuned_lens import TunedLens, load_tuned_lens
from seamscope.probes._tuning import fit_tuned_lens

__all__ = [
    "PER_ITEM",
    "Directions",
    "Eraser",
    "EraserFitter",
    "Lens",
    "LinearProbe",
    "LogitLens",
    "TokenRanks",
    "TunedLens",
    "bootstrap_interval",
    "bootstrap_intervals",
    "control_labels",
    "exceeds",
    "false_discovery",
    "fit_direction",
    "fit_eraser",
    "fit_tuned_lens",
    "groups_of",
    "lens_ranks",
    "load_tuned_lens",
    "median_interval",
    "pair_contrast",
    "paired_bootstrap_interval",
    "probe_features",
    "probe_grid",
    "probe_pair",
    "probe_transfer",
    "random_eraser",
    "side_by_side",
    "summarise",
    "summarise_transfer",
    "token_ranks",
]
