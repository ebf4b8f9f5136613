"""Reach inside a vision-language model: load it, name its sites and spans, capture, patch, replay, cut attention."""

from seamscope.hooks._align import align
from seamscope.hooks._attribution import Attribution
from seamscope.hooks._batch import Batch, Padding
from seamscope.hooks._capture import Activations, capture
from seamscope.hooks._cells import Cut, Edit
from seamscope.hooks._checks import Check, run_checks
from seamscope.hooks._errors import (
    ModelError,
    RunError,
    SeamscopeError,
    SiteError,
    SpanError,
    StoreError,
    TaskError,
    choose,
)
from seamscope.hooks._knockout import knockout
from seamscope.hooks._load import checkpoint_folder, load_vlm
from seamscope.hooks._patch import Patch, patch
from seamscope.hooks._paths import direct_path
from seamscope.hooks._prompt import Box, Picture, Prompt, Promptable, Segment
from seamscope.hooks._ragged import Ragged
from seamscope.hooks._replay import Replay, ReplayWarning, replay
from seamscope.hooks._score import Score
from seamscope.hooks._site import Site, expand_sites
from seamscope.hooks._vlm import Vlm
from seamscope.hooks.families import Family

__all__ = [
    "Activations",
    "Attribution",
    "Batch",
    "Box",
    "Check",
    "Cut",
    "Edit",
    "Family",
    "ModelError",
    "Padding",
    "Patch",
    "Picture",
    "Prompt",
    "Promptable",
    "Ragged",
    "Replay",
    "ReplayWarning",
    "RunError",
    "Score",
    "SeamscopeError",
    "Segment",
    "Site",
    "SiteError",
    "SpanError",
    "StoreError",
    "TaskError",
    "Vlm",
    "align",
    "capture",
    "checkpoint_folder",
    "choose",
    "direct_path",
    "expand_sites",
    "knockout",
    "load_vlm",
    "patch",
    "replay",
    "run_checks",
]
