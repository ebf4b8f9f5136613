"""The families of vision-language models: what each does differently, one small table each."""

from __future__ import annotations

from typing import Any, Final

from seamscope.hooks._errors import ModelError
from seamscope.hooks._layout import NOWHERE, Layout, chain, grid, with_row_ends
from seamscope.hooks.families._family import Family
from seamscope.hooks.families._gemma4 import GEMMA4_UNIFIED
from seamscope.hooks.families._llava import LLAVA, LLAVA_NEXT, LLAVA_ONEVISION
from seamscope.hooks.families._mllama import MLLAMA
from seamscope.hooks.families._molmo2 import MOLMO2
from seamscope.hooks.families._paligemma import PALIGEMMA
from seamscope.hooks.families._pixtral import MISTRAL3, PIXTRAL
from seamscope.hooks.families._qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from seamscope.hooks.families._rules import colours, image_token_id, side_of
from seamscope.hooks.families._tiled import GEMMA3, IDEFICS3, INTERNVL, SMOLVLM

FAMILIES: Final = (
    *(PIXTRAL, LLAVA, LLAVA_NEXT, LLAVA_ONEVISION, QWEN2_VL, QWEN2_5_VL, QWEN3_VL, MLLAMA, MOLMO2),
    *(INTERNVL, IDEFICS3, SMOLVLM, PALIGEMMA, GEMMA3, MISTRAL3, GEMMA4_UNIFIED),
)
REFUSED: Final = {
    "fuyu": "its processor has no chat template, gives no character offsets, takes one picture for a prompt and pads "
    "on the left only, so neither prompts nor spans can be made as for the others",
}

__all__ = [
    "FAMILIES",
    "NOWHERE",
    "REFUSED",
    "Family",
    "Layout",
    "chain",
    "colours",
    "family_of",
    "grid",
    "image_token_id",
    "side_of",
    "with_row_ends",
]


def family_of(config: Any) -> Family:
    """Give the family of a model by its configuration, or, for one that is not known here, a plain one to try.

    Raises `ModelError` for what is known not to work.
    """
    if config.model_type in REFUSED:
        raise ModelError(f"models of type {config.model_type!r} are not covered: {REFUSED[config.model_type]}")
    kind, tower = config.model_type, getattr(getattr(config, "vision_config", None), "model_type", None)
    known = (family for family in FAMILIES if kind in family.model_types and family.tower_type in (None, tower))
    return next(known, Family(name=kind, model_types=(kind,)))
