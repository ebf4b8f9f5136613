"""Tiny random-weight checkpoints of real model classes with their real processors, built in code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from ._gemma3 import build_gemma3
from ._gemma4_unified import build_gemma4_unified
from ._idefics3 import build_idefics3, build_smolvlm
from ._internvl import build_internvl
from ._llava import build_llava
from ._llava_next import build_llava_next
from ._llava_onevision import build_llava_onevision
from ._mistral3 import build_mistral3, build_pixtral
from ._mllama import build_mllama
from ._molmo2 import build_molmo2
from ._paligemma import build_paligemma, build_paligemma2
from ._qwen2_5_vl import build_qwen2_5_vl
from ._qwen2_vl import build_qwen2_vl
from ._qwen3_vl import build_qwen3_vl

BUILDERS: Final[dict[str, Callable[[Path], Path]]] = {
    "llava": build_llava,
    "llava_next": build_llava_next,
    "llava_onevision": build_llava_onevision,
    "qwen2_vl": build_qwen2_vl,
    "qwen2_5_vl": build_qwen2_5_vl,
    "qwen3_vl": build_qwen3_vl,
    "mllama": build_mllama,
    "molmo2": build_molmo2,
    "internvl": build_internvl,
    "idefics3": build_idefics3,
    "smolvlm": build_smolvlm,
    "paligemma": build_paligemma,
    "paligemma2": build_paligemma2,
    "gemma3": build_gemma3,
    "mistral3": build_mistral3,
    "pixtral": build_pixtral,
    "gemma4_unified": build_gemma4_unified,
}

__all__ = ["BUILDERS"]
