"""The organism before training: a small LLaVA with its processor, built from configuration in code."""

from __future__ import annotations

from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from ..tasks import COLOURS, GAINS, LOSSES, NAMES, RANKS, SHAPES, SUITS

PIXELS: Final = 72
PATCH: Final = 12
WIDTH: Final = 128
VISION_LAYERS: Final = 4
DECODER_LAYERS: Final = 8
SPECIAL: Final = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<user>", "<assistant>")
COMMON: Final = ("read", "text", "list", "shapes", "cards", "first", "then", "so", "how", "many", "sort", "sum")
CHAT: Final = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<s><user>"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def vocabulary() -> tuple[str, ...]:
    """Every word that the small profile of the tasks can say; whole numbers to 40 are single words."""
    numbers = tuple(str(n) for n in range(41))
    ranks = tuple(rank for rank in RANKS if not rank.isdigit())
    words = (*COMMON, "result", "has", "?", "+", "-", *NAMES, *GAINS, *LOSSES, *COLOURS, *SHAPES, *SUITS)
    return (*SPECIAL, *numbers, *ranks, *words)


def build_processor() -> LlavaProcessor:
    """The real LLaVA processor, over a word-level tokenizer and the organism's canvas."""
    words = {word: k for k, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", "<user>", "<assistant>"],
        padding_side="left",
    )
    size = {"height": PIXELS, "width": PIXELS}
    images = SiglipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=CHAT,
    )


def build_config() -> LlavaConfig:
    """Four SigLIP layers, a two-layer projector, eight Llama layers, all of width 128."""
    words = vocabulary()
    vision = SiglipVisionConfig(
        image_size=PIXELS,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=4,
        vision_use_head=False,
    )
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        pad_token_id=words.index("<pad>"),
        bos_token_id=words.index("<s>"),
        eos_token_id=words.index("</s>"),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=words.index("<image>"),
        image_seq_length=(PIXELS // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """A model with fresh weights."""
    torch.manual_seed(seed)
    model: Any = LlavaForConditionalGeneration(build_config())
    return model
