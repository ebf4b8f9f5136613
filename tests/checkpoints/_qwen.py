"""What the tiny Qwen-VL checkpoints share: tokenizer, chat template, processor, generation settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BaseVideoProcessor,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
)

from ._shared import bpe_tokenizer, lively, save

PATCH = 8
MERGED = (2 * PATCH) ** 2  # pixels that become one image token
_PAD, _EOS = "<|endoftext|>", "<|im_end|>"
_KINDS = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
_VISION = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
_SPECIAL = [_PAD, "<|im_start|>", _EOS, *(f"<|{name}|>" for name in _KINDS + _VISION)]

_SYSTEM = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
_TURNS = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen's tokenizer: no token begins a text, and the one that pads is not the one that ends a turn."""
    return bpe_tokenizer(_SPECIAL, eos=_EOS, pad=_PAD, kind=Qwen2Tokenizer, extra_special_tokens=_SPECIAL[1:])


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Token ids that a Qwen-VL config names."""
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    return {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def text_shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Decoder settings that the three families have in common."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def qwen_processor(
    kind: type[ProcessorMixin],
    tokenizer: PreTrainedTokenizerFast,
    video_processor: type[BaseVideoProcessor],
    *,
    system: bool,
    **image_options: Any,
) -> ProcessorMixin:
    """Processor for patches of 8 and blocks of 2 by 2 patches; `system` adds the default system turn."""
    sizes = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": 2}
    return kind(
        image_processor=Qwen2VLImageProcessor(**sizes, **image_options),
        tokenizer=tokenizer,
        video_processor=video_processor(**sizes, size={"shortest_edge": 4 * MERGED, "longest_edge": 40 * MERGED}),
        chat_template=(_SYSTEM if system else "") + _TURNS,
    )


def save_qwen(
    folder: Path, model: PreTrainedModel, processor: Any, *, seed: int, dtype: torch.dtype, **sampling: Any
) -> Path:
    """Fill the weights and save; `sampling` goes into the generation config, which samples as published."""
    pad, eos = processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=pad, pad_token_id=pad, eos_token_id=[eos, pad], do_sample=True, **sampling
    )
    return save(folder, lively(model, seed), processor, dtype=dtype)
