"""Tiny PaliGemma 1 and 2: SigLIP, a linear projector, a prefix that attends to all of itself, Gemma 1 or 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    GemmaConfig,
    GenerationConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
)
from transformers.models.paligemma.processing_paligemma import EXTRA_TOKENS

from ._gemma3 import SIGLIP, gemma_tokenizer
from ._shared import lively, save

# Published checkpoints have none. The processor itself writes <bos> after the images and a newline after the text.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
)


def build_paligemma(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a PaliGemma on Gemma 1: one key-value head, two norms a layer, images of 16 tokens."""
    shape = {"hidden_size": 32, "num_key_value_heads": 1, "head_dim": 8, "hidden_act": "gelu_pytorch_tanh"}
    return _build(folder, GemmaConfig, shape, seed, dtype)


def build_paligemma2(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a PaliGemma on Gemma 2: four norms a layer, sliding and full layers in turn, soft-caps on both logits."""
    shape = {
        "hidden_size": 36,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 12,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    }
    return _build(folder, Gemma2Config, shape, seed, dtype)


def _build(folder: Path, kind: type[PreTrainedConfig], shape: dict[str, Any], seed: int, dtype: torch.dtype) -> Path:
    tokenizer = gemma_tokenizer()
    tokenizer.add_tokens(EXTRA_TOKENS)
    images = SiglipImageProcessor(size={"height": 32, "width": 32}, image_seq_length=16)
    processor = PaliGemmaProcessor(images, tokenizer, chat_template=TEMPLATE)
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**SIGLIP, image_size=32, patch_size=8, vision_use_head=False),
        text_config=kind(
            vocab_size=len(tokenizer),
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=512,
            **shape,
        ),
        image_token_index=processor.image_token_id,
        vocab_size=len(tokenizer),
        projection_dim=shape["hidden_size"],
        hidden_size=shape["hidden_size"],
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = lively(PaliGemmaForConditionalGeneration(config), seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return save(folder, model, processor, dtype=dtype)
