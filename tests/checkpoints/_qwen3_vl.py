"""A tiny Qwen3-VL: DeepStack from tower layers 1, 2, 3 to decoder layers 0, 1, 2, interleaved mRoPE, heads normed."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

from ._qwen import MERGED, PATCH, qwen_processor, qwen_tokenizer, save_qwen, special_ids, text_shape


def build_qwen3_vl(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Qwen3-VL checkpoint of random weights; its heads together are wider than its residual stream."""
    tokenizer = qwen_tokenizer()
    config = Qwen3VLConfig(
        text_config=text_shape(tokenizer)
        | {
            "head_dim": 32,
            "attention_bias": False,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
            "rope_theta": 5000000,
        },
        vision_config={
            "depth": 5,
            "hidden_size": 32,
            "intermediate_size": 64,
            "out_hidden_size": 64,
            "hidden_act": "gelu_pytorch_tanh",
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [1, 2, 3],
        },
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    half = [0.5, 0.5, 0.5]
    processor = qwen_processor(
        Qwen3VLProcessor,
        tokenizer,
        Qwen3VLVideoProcessor,
        system=False,
        size={"shortest_edge": 4 * MERGED, "longest_edge": 40 * MERGED},
        image_mean=half,
        image_std=half,
    )
    model = Qwen3VLForConditionalGeneration(config)
    return save_qwen(folder, model, processor, seed=seed, dtype=dtype, temperature=0.7, top_p=0.8, top_k=20)
