"""A tiny Qwen2.5-VL: tower layers that see windows of 2 by 2 image tokens and layers that see whole images."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
)

from ._qwen import MERGED, PATCH, qwen_processor, qwen_tokenizer, save_qwen, special_ids, text_shape


def build_qwen2_5_vl(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Qwen2.5-VL checkpoint of random weights; its generation config penalizes repetition."""
    tokenizer = qwen_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config=text_shape(tokenizer)
        | {
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 4,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 84,
            "out_hidden_size": 64,
            "hidden_act": "silu",
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 4 * PATCH,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        tie_word_embeddings=False,
        **special_ids(tokenizer),
    )
    processor = qwen_processor(
        Qwen2_5_VLProcessor,
        tokenizer,
        Qwen2VLVideoProcessor,
        system=True,
        min_pixels=4 * MERGED,
        max_pixels=40 * MERGED,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    return save_qwen(folder, model, processor, seed=seed, dtype=dtype, repetition_penalty=1.05, temperature=0.000001)
