"""A tiny Gemma 3: SigLIP, pooled image tokens that see each other, five sliding layers to one full, four norms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma3TextConfig,
    GemmaTokenizer,
    GenerationConfig,
    SiglipVisionConfig,
)

from ._shared import WORDS, lively, save

IMAGE = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] if messages[0]['content'] is string"
    " else messages[0]['content'][0]['text'] %}"
    "{% set prefix = system + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set prefix = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}"
    "{{ prefix if loop.first else '' }}"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SIGLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


def gemma_tokenizer(special: Sequence[str] = (), **options: Any) -> GemmaTokenizer:
    """Gemma's tokenizer: spaces become `▁`, bytes stand for unknown characters, newlines merge with newlines."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    fixed = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    corpus = [f" {word}" for word in WORDS] * 3 + [*WORDS, "\n\n\n", "  "] * 3
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(special_tokens=fixed, show_progress=False))
    trained = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = GemmaTokenizer(vocab=trained["vocab"], merges=merges, add_bos_token=True, **options)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def build_gemma3(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a Gemma 3 whose images are 8 x 8 patches and 16 tokens, more than its sliding window of 12 holds."""
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = gemma_tokenizer([*turns, *IMAGE.values()], extra_special_tokens=IMAGE)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        chat_template=TEMPLATE,
        image_seq_length=16,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in IMAGE.items()}
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**SIGLIP, image_size=32, patch_size=4, vision_use_head=False),
        text_config=Gemma3TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=40,
            intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=12,
            sliding_window_pattern=6,
            rope_theta=1_000_000.0,
            rope_local_base_freq=10_000.0,
            rope_scaling={"rope_type": "linear", "factor": 8.0},
            max_position_embeddings=1024,
        ),
        mm_tokens_per_image=16,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )
    model = lively(Gemma3ForConditionalGeneration(config), seed)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")],
        pad_token_id=tokenizer.pad_token_id,
        cache_implementation="hybrid",
        do_sample=True,
        top_k=64,
        top_p=0.95,
    )
    return save(folder, model, processor, dtype=dtype)
