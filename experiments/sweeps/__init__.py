"""Patched runs of every item, and what became of the answers."""

from collections.abc import Callable
from typing import Final

from seamscope.hooks import Vlm

from ._attention import counterfactual_attention
from ._cells import BACK_SPANS, Cell, back_cells, decoder_sites, layer_cells
from ._experiment import BACK, EXPERIMENTS, LOCATING, Experiment
from ._hold import HOLD, hold_sites, holds
from ._paths import paths
from ._routes import KNOCKOUT, SEVERED, exits, knockouts, severed
from ._screen import screen, screen_agreement
from ._summary import best_cells, cell_columns, summarise_sweep
from ._sweep import Plan, patching, sites_of, sweep, sweep_all, sweep_item
from ._trials import BY, Trial

# sweeps of whole runs, that need no cells
ROUTES: Final[dict[str, Callable[[Vlm], Plan]]] = {
    KNOCKOUT: knockouts,
    "exit": exits,
    SEVERED: severed,
    "attention": counterfactual_attention,
    HOLD: holds,
}
# what of them must be captured
CAPTURED: Final[dict[str, Callable[[Vlm], list[str]]]] = {HOLD: hold_sites}

__all__ = [
    "BACK",
    "BACK_SPANS",
    "BY",
    "CAPTURED",
    "EXPERIMENTS",
    "HOLD",
    "LOCATING",
    "ROUTES",
    "SEVERED",
    "Cell",
    "Experiment",
    "Plan",
    "Trial",
    "back_cells",
    "best_cells",
    "cell_columns",
    "counterfactual_attention",
    "decoder_sites",
    "exits",
    "knockouts",
    "layer_cells",
    "patching",
    "paths",
    "screen",
    "screen_agreement",
    "severed",
    "sites_of",
    "summarise_sweep",
    "sweep",
    "sweep_all",
    "sweep_item",
]
