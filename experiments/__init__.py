"""Questions put to a model: tasks, conditions, sweeps, the locator, figures, the report, the command line."""

from ._conditions import both_steps_pass, composition_gap, run_conditions
from ._erasing import erase_sweep, push_sweep
from ._erasing_effects import decodable_and_causal, summarise_erasing, summarise_pushes
from ._lensing import lens_table, summarise_lens
from ._run import Run, Settings
from ._study import Study
from ._token_boxes import token_boxes
from ._verdict import LOCI, Evidence, Repair, Verdict
from .locator import Decision, Facts, Thresholds, decide, locate
from .sweeps import EXPERIMENTS, Cell, Experiment, back_cells, best_cells, layer_cells, summarise_sweep, sweep

__all__ = [
    "EXPERIMENTS",
    "LOCI",
    "Cell",
    "Decision",
    "Evidence",
    "Experiment",
    "Facts",
    "Repair",
    "Run",
    "Settings",
    "Study",
    "Thresholds",
    "Verdict",
    "back_cells",
    "best_cells",
    "both_steps_pass",
    "composition_gap",
    "decide",
    "decodable_and_causal",
    "erase_sweep",
    "layer_cells",
    "lens_table",
    "locate",
    "push_sweep",
    "run_conditions",
    "summarise_erasing",
    "summarise_lens",
    "summarise_pushes",
    "summarise_sweep",
    "sweep",
    "token_boxes",
]
