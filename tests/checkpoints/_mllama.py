"""A tiny Llama 3.2 Vision: tiles, two vision transformers, gated layers that attend to the tiles alone."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, processors
from transformers import (
    GenerationConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)

from ._shared import bpe_tokenizer, lively, save

TILE, PATCH = 32, 8
_BOS, _EOS, _PAD = "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
_TURN = ["<|start_header_id|>", "<|end_header_id|>"]

_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}
{%- if message['content'] is string -%}{{- message['content'] | trim -}}{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<|image|>' -}}{%- elif 'text' in part -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}
"""


def build_mllama(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny Llama 3.2 Vision checkpoint of random weights; decoder layers 1 and 3 are cross-attention."""
    tokenizer = _tokenizer()
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = MllamaConfig(
        text_config={
            "vocab_size": len(tokenizer) - 1,  # the head cannot say `<|image|>`, the embedding has 8 rows more
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": [1, 3],
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": False,
            **{f"{name}_token_id": number for name, number in ids.items()},
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_global_layers": 2,
            "attention_heads": 4,
            "intermediate_layers_indices": [0, 2],  # as published, the last layer is not among them
            "vision_output_dim": 3 * 32,
            "image_size": TILE,
            "patch_size": PATCH,
            "max_num_tiles": 4,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    pictures = MllamaImageProcessor(
        size={"height": TILE, "width": TILE},
        max_image_tiles=4,
        image_mean=[0.48145466, 0.4578275, 0.40821073],
        image_std=[0.26862954, 0.26130258, 0.27577711],
    )
    processor = MllamaProcessor(image_processor=pictures, tokenizer=tokenizer, chat_template=_TEMPLATE)
    model = lively(MllamaForConditionalGeneration(config), seed)
    _open_gates(model)
    model.generation_config = GenerationConfig(
        bos_token_id=ids["bos"],
        pad_token_id=ids["pad"],
        eos_token_id=[tokenizer.convert_tokens_to_ids(end) for end in ("<|end_of_text|>", "<|eom_id|>", _EOS)],
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
    )
    return save(folder, model, processor, dtype=dtype)


def _open_gates(model: MllamaForConditionalGeneration) -> None:
    """Move every gate away from 0, and the embeddings that a gate lets in."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.shape == (1,):
                parameter.add_(parameter.sign() / 2)
            elif "tile_" in name:
                parameter.div_(2 * parameter.std())


def _tokenizer() -> PreTrainedTokenizerFast:
    """Llama 3's tokenizer: it puts a first token before every text; `<|image|>` comes after all other tokens."""
    special = [_BOS, "<|end_of_text|>", _PAD, *_TURN, "<|eom_id|>", _EOS, "<|python_tag|>"]
    tokenizer = bpe_tokenizer(special, eos=_EOS, pad=_PAD, bos=_BOS)
    tokenizer.add_tokens([AddedToken("<|image|>", special=True, normalized=False)], special_tokens=True)
    first = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, tokenizer.bos_token_id)])
    steps = [processors.ByteLevel(trim_offsets=False), first]
    tokenizer.backend_tokenizer.post_processor = processors.Sequence(steps)
    return tokenizer
