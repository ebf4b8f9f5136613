"""A tiny Molmo2: overlapping crops, two tower layers pooled by attention, features added to their placeholders."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
)

from ._shared import bpe_tokenizer, lively, save

CROP, PATCH = 40, 8  # 5 patches a side: an odd number, as published
_PAD, _EOS = "<|endoftext|>", "<|im_end|>"
_IMAGE = ["<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>"]
_VIDEO = ["<frame_start>", "<frame_end>", "<|video|>"]

# All images come before the first turn, wherever the messages have them.
_TEMPLATE = """\
{%- set images = namespace(n=0) -%}
{%- for message in messages -%}{%- if message['content'] is not string -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set images.n = images.n + 1 -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}{%- endfor -%}
{%- if images.n == 1 -%}{{- '<|image|>' -}}{%- else -%}
{%- for i in range(images.n) -%}{{- 'Image ' ~ (i + 1) ~ '<|image|>' -}}{%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' and not loop.first -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}
{{- message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}{{- '<|im_end|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def build_molmo2(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Molmo2 checkpoint of random weights; the heads of its decoder are twice as wide as its stream."""
    tokenizer = bpe_tokenizer([_PAD, "<|im_start|>", _EOS], eos=_EOS, pad=_PAD, bos=_EOS)
    vocabulary = len(tokenizer)  # all that the head can say; the image tokens come after it
    added = [AddedToken(token, special=True, normalized=False) for token in _IMAGE + _VIDEO]
    tokenizer.add_tokens(added, special_tokens=True)
    start, end, patch, _, low_res_start, *_ = tokenizer.convert_tokens_to_ids(_IMAGE)
    frame_start, frame_end, _ = tokenizer.convert_tokens_to_ids(_VIDEO)
    config = Molmo2Config(
        text_config={
            "vocab_size": vocabulary,
            "additional_vocab_size": 16,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "qk_norm_type": "qwen3",
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "image_size": [CROP, CROP],
            "patch_size": PATCH,
        },
        adapter_config={
            "vision_feature_layer": [3, 1],  # the last layer comes first, as published
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 8,
            "text_hidden_size": 32,
        },
        image_start_token_id=start,
        image_end_token_id=end,
        image_patch_id=patch,
        low_res_image_start_token_id=low_res_start,
        frame_start_token_id=frame_start,
        frame_end_token_id=frame_end,
    )
    size = {"size": {"height": CROP, "width": CROP}, "patch_size": PATCH}
    processor = Molmo2Processor(
        image_processor=Molmo2ImageProcessor(**size, max_crops=4, overlap_margins=[1, 1], pooling_size=[2, 2]),
        video_processor=Molmo2VideoProcessor(**size),
        tokenizer=tokenizer,
        chat_template=_TEMPLATE,
        use_single_crop_col_tokens=False,
    )
    model = lively(Molmo2ForConditionalGeneration(config), seed)
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(bos_token_id=eos, eos_token_id=eos, pad_token_id=pad)
    return save(folder, model, processor, dtype=dtype)
