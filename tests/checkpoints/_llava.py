"""A tiny LLaVA 1.5: CLIP tower read one layer before its last, Llama decoder without grouped heads, Vicuna's tokens."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    GenerationConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from ._shared import WORDS, lively, save

PIXELS, PATCH = 32, 8  # a grid of 4 x 4 patches
_NAMED = ("unk", "bos", "eos", "pad")

_TEMPLATE = """\
{%- for message in messages -%}
{{- message['role'].upper() + ': ' -}}
{%- if message['content'] is string -%}{{- message['content'] + ' ' -}}{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] + ' ' -}}{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def build_llava(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny LLaVA 1.5 checkpoint of random weights."""
    tokenizer = sentence_tokenizer(always=True)
    config = LlavaConfig(
        vision_config=clip_shape(PIXELS, PATCH),
        text_config={
            "model_type": "llama",
            "vocab_size": padded(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,  # Vicuna's heads share no keys
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(PIXELS // PATCH) ** 2,
        pad_token_id=tokenizer.pad_token_id,
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}, do_convert_rgb=True
    )
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    model = lively(LlavaForConditionalGeneration(config), seed)
    model.generation_config = generation(tokenizer)
    return save(folder, model, processor, dtype=dtype)


def clip_shape(pixels: int, patch: int) -> dict[str, object]:
    """Tower settings; the layer that is read, -2, leaves the last one unused."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return {"model_type": "clip_vision_model", "image_size": pixels, "patch_size": patch, "projection_dim": 32, **sizes}


def padded(tokenizer: LlamaTokenizer) -> int:
    """Embeddings have some rows more than there are tokens."""
    return -(-len(tokenizer) // 64) * 64


def generation(tokenizer: LlamaTokenizer) -> GenerationConfig:
    """Generation settings that agree with the tokenizer."""
    return GenerationConfig(**{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in _NAMED[1:]})


def sentence_tokenizer(*, always: bool) -> LlamaTokenizer:
    """SentencePiece's way: spaces are ▁, unknown characters are bytes, `<image>` and `<pad>` come last.

    A ▁ is put before every piece of text between special tokens (`always`), or before the first one only.
    """
    tokenizer = Tokenizer(models.BPE())
    words = [*WORDS, "USER", "ASSISTANT", "[INST]", "[/INST]"]
    trainer = trainers.BpeTrainer(initial_alphabet=[*"".join(words), *"0123456789"], show_progress=False)
    tokenizer.train_from_iterator([f"▁{word}" for word in words] * 3, trainer)
    learnt = json.loads(tokenizer.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*first, *sorted(learnt["vocab"], key=learnt["vocab"].get)]
    merges = [tuple(merge) for merge in learnt["merges"]]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer.model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    if always:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*first[:3], "<image>", "<pad>")])
    named = dict(zip((f"{name}_token" for name in _NAMED), (*first[:3], "<pad>"), strict=True))
    options = {"legacy": False, "add_bos_token": True, "padding_side": "left", "extra_special_tokens": ["<image>"]}
    return LlamaTokenizer(tokenizer_object=tokenizer, **options, **named)
