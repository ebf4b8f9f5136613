"""Tiny Idefics3 and SmolVLM: tiles with row and column markers, a global image last, pixel shuffle, a Llama decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import processors
from transformers import (
    GenerationConfig,
    GPT2Tokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from ._shared import bpe_tokenizer, lively, save

AROUND = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
TEMPLATE = (
    "BOS{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'] is string %}{{ ': ' + message['content'] }}{% else %}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def build_idefics3(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save an Idefics3 with an untied head; its tokenizer begins each text, and spells tile markers out."""
    tokenizer = bpe_tokenizer(
        ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", *AROUND],
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad="<|finetune_right_pad_id|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    begin = ("<|begin_of_text|>", tokenizer.bos_token_id)
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[begin])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 96}, max_image_size={"longest_edge": 32}),
        tokenizer,
        image_seq_len=4,
        chat_template=TEMPLATE.replace("BOS", "<|begin_of_text|>"),
    )
    config = Idefics3Config(**_parts(tokenizer, tile=32, patch=8), scale_factor=2, tie_word_embeddings=False)
    model = lively(Idefics3ForConditionalGeneration(config), seed)
    return _save(folder, model, processor, dtype)


def build_smolvlm(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a SmolVLM with a tied head, tile markers that are tokens, and tiles of 38 pixels in patches of 6.

    The last two rows and columns of a tile's pixels are in no patch, as in SmolVLM 2.2B (384 pixels in patches
    of 14). `SmolVLMProcessor` needs the package num2words.
    """
    tokenizer = bpe_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<global-img>", *TILES, *AROUND],
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
        kind=GPT2Tokenizer,
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
    )
    sizes = {"size": {"longest_edge": 114}, "max_image_size": {"longest_edge": 38}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(**sizes, video_sampling={"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 38}}),
        image_seq_len=4,
        chat_template=TEMPLATE.replace("BOS", "<|im_start|>"),
    )
    config = SmolVLMConfig(**_parts(tokenizer, tile=38, patch=6, tied=True), scale_factor=3, tie_word_embeddings=True)
    model = lively(SmolVLMForConditionalGeneration(config), seed)
    return _save(folder, model, processor, dtype)


def _parts(tokenizer: PreTrainedTokenizerFast, *, tile: int, patch: int, tied: bool = False) -> dict[str, Any]:
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {
        "text_config": text,
        "vision_config": {**tower, "image_size": tile, "patch_size": patch},
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
    }


def _save(folder: Path, model: Any, processor: Any, dtype: torch.dtype) -> Path:
    tokenizer = processor.tokenizer
    ends = dict.fromkeys([tokenizer.convert_tokens_to_ids("<end_of_utterance>"), tokenizer.eos_token_id])
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id
    )
    return save(folder, model, processor, dtype=dtype)
