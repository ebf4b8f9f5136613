"""Tiny random LLaVA checkpoints, built in code, saved and loaded as real ones are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.utils.hooks import RemovableHandle
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from seamscope.hooks import Box, Picture, Prompt, Segment, Vlm, load_vlm
from seamscope.hooks._encode import Encoder
from seamscope.hooks.families import family_of

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

WORDS = [
    "what",
    "is",
    "the",
    "sum",
    "of",
    "red",
    "blue",
    "green",
    "card",
    "ace",
    "king",
    "seven",
    "two",
    "one",
    "three",
    "four",
    "USER",
    "ASSISTANT",
    ":",
    "?",
    ",",
    ".",
    "+",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}USER : "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT : {% endif %}"
)
PIXELS, PATCH = 24, 8  # a grid of 3 x 3 patches


def word_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS, *map(str, range(10))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d|\w+|[^\w\s]"), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return as_fast(tokenizer)


def vision(kind: str) -> tuple[SiglipVisionConfig | CLIPVisionConfig, object]:
    size = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    size |= {"image_size": PIXELS, "patch_size": PATCH}
    if kind == "siglip":
        square = {"height": PIXELS, "width": PIXELS}
        return SiglipVisionConfig(**size, vision_use_head=False), SiglipImageProcessor(size=square)
    crop = {"height": PIXELS, "width": PIXELS}
    return CLIPVisionConfig(**size), CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=crop)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words swallow the space before them, as GPT-2, Llama 3 and Qwen have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [" " + word for word in WORDS] * 3 + [*WORDS, "  ", "\n"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus, trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return as_fast(tokenizer)


def sentence_tokenizer() -> PreTrainedTokenizerFast:
    """BPE that writes spaces as ▁ and puts one before every piece of text, as Llama 1 and 2 and Vicuna have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Replace("▁", " ")
    letters = sorted({*"".join(WORDS), *"0123456789\n"})
    trainer = trainers.BpeTrainer(special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(WORDS * 3, trainer)
    return as_fast(tokenizer)


def as_fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    names = {f"{name}_token": token for name, token in zip(("pad", "bos", "eos", "unk"), SPECIAL, strict=False)}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=["<image>"],
        clean_up_tokenization_spaces=False,
        **names,
    )


def make_processor(kind: str, tokenizer: PreTrainedTokenizerFast, template: str = TEMPLATE) -> LlavaProcessor:
    """A CLIP tower has a CLS token, which the model drops again."""
    cls = int(kind == "clip")
    return LlavaProcessor(
        image_processor=vision(kind)[1],
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default" if cls else "full",
        num_additional_image_tokens=cls,
        chat_template=template,
    )


def make_config(kind: str, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaConfig(
        vision_config=vision(kind)[0],
        text_config=text_config,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2 if kind == "clip" else -1,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
    )


def make_encoder(kind: str, tokenizer: PreTrainedTokenizerFast, template: str = TEMPLATE) -> Encoder:
    config = make_config(kind, tokenizer)
    model = LlavaForConditionalGeneration(config)
    return Encoder(model, make_processor(kind, tokenizer, template), family_of(config))


def build_checkpoint(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Save a tiny LLaVA: `siglip` reads its tower's last layer, `clip` has CLS and reads the one before."""
    tokenizer = word_tokenizer()
    with_lively_weights(make_config(kind, tokenizer), seed).to(dtype).save_pretrained(folder)
    make_processor(kind, tokenizer).save_pretrained(folder)
    return folder


def with_lively_weights(config: LlavaConfig, seed: int) -> LlavaForConditionalGeneration:
    """Norms of weight 1 would hide a norm applied twice, small projectors an image that is ignored."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            if "projector" in name and name.endswith("weight"):
                parameter.normal_(std=0.3)
    return model


def picture(seed: int, *, size: tuple[int, int] = (PIXELS, PIXELS), boxes: tuple[Box, ...] = ()) -> Picture:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Picture(image=Image.fromarray(noise), boxes=boxes)


def ask(text: str, *pictures: Picture) -> Prompt:
    return Prompt(segments=(Segment(text, ("question",)),), pictures=pictures)


CORNERS = (Box(left=0, top=0, right=8, bottom=8), Box(left=9, top=9, right=23, bottom=15))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("siglip"), "siglip")


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("clip"), "clip")


@pytest.fixture(scope="session")
def vlm(siglip_folder: Path) -> Vlm:
    """SigLIP tower, sdpa attention."""
    return load_vlm(siglip_folder, device="cpu")


@pytest.fixture(scope="session")
def eager(siglip_folder: Path) -> Vlm:
    """The same weights under eager attention."""
    return load_vlm(siglip_folder, device="cpu", attn_implementation="eager")


@pytest.fixture(scope="session")
def clip(clip_folder: Path) -> Vlm:
    """CLIP tower with CLS, eager attention."""
    return load_vlm(clip_folder, device="cpu", attn_implementation="eager")


@pytest.fixture(params=["vlm", "eager", "clip"])
def each(request: pytest.FixtureRequest) -> Vlm:
    """Every model in turn."""
    found: Vlm = request.getfixturevalue(request.param)
    return found


@contextmanager
def held(handle: RemovableHandle) -> Iterator[None]:
    """Remove a hook of the test's own, whatever happens."""
    try:
        yield
    finally:
        handle.remove()


def footprint(vlm: Vlm) -> list[tuple[int, int, int]]:
    """Count the hooks on every module, and tell its configuration apart: equal before and after means clean."""
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks), id(getattr(module, "config", None)))
        for module in vlm.model.modules()
    ]


@pytest.fixture
def prompts() -> list[Prompt]:
    """Two with an image, of different lengths, and one without."""
    return [
        ask("what is the sum of seven + two ?", picture(1, boxes=CORNERS)),
        ask("red card ?", picture(2, boxes=CORNERS[:1])),
        ask("what is the sum ?"),
    ]
