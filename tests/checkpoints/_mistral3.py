"""Tiny Mistral 3 and Pixtral: a tower that reads all images as one sequence, row ends between image tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedModel,
)

from ._shared import bpe_tokenizer, lively, save

# In the order of their ids: [IMG] is 10.
SPECIAL = [
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *("[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"),
    *("[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST]' }}{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' }}"
    "{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for block in message['content'] %}{% if block['type'] == 'text' %}{{ block['text'] }}"
    "{% elif block['type'] in ['image', 'image_url'] %}{{ '[IMG]' }}{% endif %}{% endfor %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[/INST]' }}{% elif message['role'] == 'system' %}{{ '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)


def build_mistral3(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a Mistral 3: 2 x 2 patches of 4 pixels become one token, an image is 48 pixels long at most."""
    config = {
        "spatial_merge_size": 2,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
    }
    return _build(folder, Mistral3Config, Mistral3ForConditionalGeneration, config, 4, seed, dtype)


def build_pixtral(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a Pixtral: a LLaVA whose patches of 8 pixels become one token each."""
    config = {
        "vision_feature_select_strategy": "full",
        "multimodal_projector_bias": True,
        "image_seq_length": 1,
        "tie_word_embeddings": False,
    }
    return _build(folder, LlavaConfig, LlavaForConditionalGeneration, config, 8, seed, dtype)


def _build(
    folder: Path,
    config: type[Mistral3Config | LlavaConfig],
    kind: type[PreTrainedModel],
    own: dict[str, Any],
    patch: int,
    seed: int,
    dtype: torch.dtype,
) -> Path:
    tokenizer = bpe_tokenizer(
        SPECIAL, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>", model_input_names=["input_ids", "attention_mask"]
    )
    begin = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    processor = PixtralProcessor(
        image_processor=PixtralImageProcessor(patch_size=patch, size={"longest_edge": 48}),
        tokenizer=tokenizer,
        patch_size=patch,
        spatial_merge_size=own.get("spatial_merge_size", 1),
        chat_template=TEMPLATE,
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    settings = config(
        vision_config=PixtralVisionConfig(
            **tower, image_size=48, patch_size=patch, hidden_act="silu", rope_theta=10_000.0
        ),
        text_config=MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=40,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=1024,
            rope_theta=1_000_000_000.0,
            rms_norm_eps=1e-5,
            sliding_window=None,
            tie_word_embeddings=False,
        ),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        **own,
    )
    model = lively(kind(settings), seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return save(folder, model, processor, dtype=dtype)
