"""A tiny LLaVA-OneVision: SigLIP tower, Qwen2 decoder with tied head; tiles for one image, an overview for several."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Tokenizer,
)

from ._shared import bpe_tokenizer, lively, save

PIXELS, PATCH = 26, 8  # a grid of 3 x 3 patches; as in the published models no patch shows the last 2 pixels of a tile
PINPOINTS = [[PIXELS * rows, PIXELS * columns] for rows in range(1, 7) for columns in range(1, 7)]
_PAD, _EOS = "<|endoftext|>", "<|im_end|>"

_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + ' ' -}}
{%- if message['content'] is string -%}{{- '\\n' + message['content'] -}}{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'video' -%}{{- '<video>' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- '\\n' + part['text'] -}}{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_llava_onevision(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny LLaVA-OneVision checkpoint of random weights."""
    special = [_PAD, "<|im_start|>", _EOS]
    tokenizer = bpe_tokenizer(special, eos=_EOS, pad=_PAD, kind=Qwen2Tokenizer, extra_special_tokens=special[1:])
    marks = [AddedToken(token, special=True, normalized=False) for token in ("<image>", "<video>")]
    tokenizer.add_tokens(marks, special_tokens=True)
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": PIXELS,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": -(-len(tokenizer) // 64) * 64,  # some rows more than there are tokens
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        image_grid_pinpoints=PINPOINTS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=True,
    )
    square, half = {"height": PIXELS, "width": PIXELS}, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=PINPOINTS, **half),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=square, **half),
        num_image_tokens=(PIXELS // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=_TEMPLATE,
    )
    model = lively(LlavaOnevisionForConditionalGeneration(config), seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.pad_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
    )
    return save(folder, model, processor, dtype=dtype)
