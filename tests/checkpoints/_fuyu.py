"""A tiny Fuyu: no vision tower, patches of pixels go through one linear layer straight into the decoder.

Its processor knows no chat template, gives no character offsets, takes one image a prompt and pads on the left.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import (
    FuyuConfig,
    FuyuForCausalLM,
    FuyuImageProcessor,
    FuyuProcessor,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from ._shared import WORDS, lively, save

PATCH = 8
_SPECIAL = ["<unk>", "<s>", "|ENDOFTEXT|", "|SPEAKER|", "|NEWLINE|", *(f"<0x{byte:02X}>" for byte in range(5))]


def build_fuyu(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Fuyu checkpoint of random weights: images keep their size, up to 8 by 6 patches."""
    tokenizer = _tokenizer()
    eos = tokenizer.eos_token_id
    config = FuyuConfig(
        text_config={
            "model_type": "persimmon",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "hidden_act": "relu2",
            "qk_layernorm": True,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": eos,
        },
        patch_size=PATCH,
        image_size=PATCH,  # as published, where it means nothing
        image_token_id=tokenizer.convert_tokens_to_ids("|SPEAKER|"),
    )
    sizes = {"size": {"height": 6 * PATCH, "width": 8 * PATCH}, "patch_size": {"height": PATCH, "width": PATCH}}
    processor = FuyuProcessor(image_processor=FuyuImageProcessor(**sizes), tokenizer=tokenizer)
    model = lively(FuyuForCausalLM(config), seed)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
    return save(folder, model, processor, dtype=dtype)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Fuyu's kind of tokenizer: unigrams, with a `▁` before every text, image tokens among the ordinary pieces."""
    words = [(f"▁{word}", -3.0) for word in dict.fromkeys(WORDS)]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,.:?+\n"]
    unigrams = Tokenizer(models.Unigram([(piece, 0.0) for piece in _SPECIAL] + words + letters, unk_id=0))
    unigrams.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    unigrams.decoder = decoders.Metaspace()
    end = "|ENDOFTEXT|"
    return PreTrainedTokenizerFast(tokenizer_object=unigrams, bos_token="<s>", eos_token=end, unk_token="<unk>")
