"""A tiny Gemma 4 12B: no vision tower; patches of pixels, embedded with their place in the image, are tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedVideoProcessor,
    GenerationConfig,
)

from ._gemma3 import gemma_tokenizer
from ._shared import lively, save

PATCH, MERGE, TOKENS = 2, 3, 70  # no processor of this family gives fewer tokens to an image
_NAMED = {
    **{"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"},
    **{"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"},
    **{"sot_token": "<|turn>", "eot_token": "<turn|>", "think_token": "<|think|>"},
}
_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] | trim -}}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}{%- elif 'text' in part -%}{{- part['text'] | trim -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|turn>model\\n' -}}{%- endif -%}
"""


def build_gemma4_unified(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Gemma 4 12B checkpoint of random weights: layer 5 attends fully, with other heads, and no values."""
    tokenizer = gemma_tokenizer([*_NAMED.values(), "<|video|>"], extra_special_tokens=_NAMED)
    tokenizer.add_bos_token = False  # the chat template gives it
    ids = dict(zip(_NAMED, tokenizer.convert_tokens_to_ids(list(_NAMED.values())), strict=True))
    config = Gemma4UnifiedConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 6,  # five sliding, one full
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_global_key_value_heads": 1,
            "head_dim": 8,
            "global_head_dim": 16,
            "attention_k_eq_v": True,
            "sliding_window": 24,
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": 1024,
        },
        vision_config={
            "patch_size": PATCH,
            "pooling_kernel_size": MERGE,
            "mm_embed_dim": 32,
            "output_proj_dims": 32,
            "mm_posemb_size": TOKENS,
        },
        audio_config={"audio_embed_dim": 16},
        image_token_id=ids["image_token"],
        boi_token_id=ids["boi_token"],
        eoi_token_id=ids["eoi_token"],
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        audio_token_id=ids["audio_token"],
        boa_token_id=ids["boa_token"],
        eoa_token_index=ids["eoa_token"],
    )
    sizes = {"patch_size": PATCH, "pooling_kernel_size": MERGE, "max_soft_tokens": TOKENS}
    processor = Gemma4UnifiedProcessor(
        feature_extractor=Gemma4UnifiedAudioFeatureExtractor(feature_size=16, audio_samples_per_token=16),
        image_processor=Gemma4UnifiedImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Gemma4UnifiedVideoProcessor(**sizes),
        chat_template=_TEMPLATE,
        image_seq_length=TOKENS,
    )
    model = lively(Gemma4UnifiedForConditionalGeneration(config), seed)
    for number, layer in enumerate(model.model.language_model.layers):
        layer.layer_scalar.fill_(1.25 - number / 10)  # in published weights, too, it is not 1
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, ids["eot_token"]],
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=1.0,
        top_k=64,
        top_p=0.95,
    )
    return save(folder, model, processor, dtype=dtype)
