"""A tiny Qwen2-VL: every patch sees its whole image, mRoPE in sections, the head tied as in the 2B model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, Qwen2VLVideoProcessor

from ._qwen import MERGED, PATCH, qwen_processor, qwen_tokenizer, save_qwen, special_ids, text_shape


def build_qwen2_vl(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Qwen2-VL checkpoint of random weights."""
    tokenizer = qwen_tokenizer()
    config = Qwen2VLConfig(
        text_config=text_shape(tokenizer)
        | {
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "rope_theta": 1000000.0,
            "use_sliding_window": False,
            "sliding_window": 4096,
            "max_window_layers": 4,
        },
        vision_config={
            "depth": 3,
            "embed_dim": 32,
            "hidden_size": 64,
            "hidden_act": "quick_gelu",
            "mlp_ratio": 4,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        tie_word_embeddings=True,
        **special_ids(tokenizer),
    )
    processor = qwen_processor(
        Qwen2VLProcessor,
        tokenizer,
        Qwen2VLVideoProcessor,
        system=True,
        min_pixels=4 * MERGED,
        max_pixels=40 * MERGED,
    )
    model = Qwen2VLForConditionalGeneration(config)
    return save_qwen(folder, model, processor, seed=seed, dtype=dtype, temperature=0.01, top_p=0.001, top_k=1)
