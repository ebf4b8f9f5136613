"""A tiny LLaVA 1.6 (Mistral): an overview, tiles of the image fitted to a grid, a newline after each row of patches."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessor, LlavaNextProcessor

from ._llava import clip_shape, generation, padded, sentence_tokenizer
from ._shared import lively, save

PIXELS, PATCH = 24, 8  # a grid of 3 x 3 patches for each tile
PINPOINTS = [[PIXELS * rows, PIXELS * columns] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]

_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '[INST] ' -}}{%- else -%}{{- ' ' -}}{%- endif -%}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}{{- ' [/INST]' -}}{%- else -%}{{- '</s>' -}}{%- endif -%}
{%- endfor -%}
"""


def build_llava_next(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny LLaVA 1.6 checkpoint of random weights."""
    tokenizer = sentence_tokenizer(always=False)
    config = LlavaNextConfig(
        vision_config=clip_shape(PIXELS, PATCH),
        text_config={
            "model_type": "mistral",
            "vocab_size": padded(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_window": None,
        },
        image_grid_pinpoints=PINPOINTS,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(PIXELS // PATCH) ** 2,
        pad_token_id=tokenizer.pad_token_id,
    )
    pictures = LlavaNextImageProcessor(
        size={"shortest_edge": PIXELS},
        crop_size={"height": PIXELS, "width": PIXELS},
        image_grid_pinpoints=PINPOINTS,
    )
    processor = LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    model = lively(LlavaNextForConditionalGeneration(config), seed)
    model.generation_config = generation(tokenizer)
    return save(folder, model, processor, dtype=dtype)
