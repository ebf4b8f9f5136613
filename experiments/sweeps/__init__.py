"""Patched runs of every item, and what became of the answers."""

from ._cells import BACK_SPANS, Cell, back_cells, decoder_sites, layer_cells
from ._experiment import EXPERIMENTS, LOCATING, Experiment
from ._paths import paths
from ._routes import ROUTES, exits, knockouts
from ._summary import best_cells, cell_columns, summarise_sweep
from ._sweep import Plan, patching, sites_of, sweep, sweep_all, sweep_item
from ._trials import BY, Trial

__all__ = [
    "BACK_SPANS",
    "BY",
    "EXPERIMENTS",
    "LOCATING",
    "ROUTES",
    "Cell",
    "Experiment",
    "Plan",
    "Trial",
    "back_cells",
    "best_cells",
    "cell_columns",
    "decoder_sites",
    "exits",
    "knockouts",
    "layer_cells",
    "patching",
    "paths",
    "sites_of",
    "summarise_sweep",
    "sweep",
    "sweep_all",
    "sweep_item",
]
