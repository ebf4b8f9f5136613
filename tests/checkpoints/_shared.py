"""What the tiny checkpoints of all families share: a tokenizer trained here, lively weights, saving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

WORDS = (
    *("what", "is", "the", "sum", "of", "red", "blue", "green", "card", "ace", "king", "seven", "two", "one", "three"),
    *("four", "user", "assistant", ":", "?", ",", ".", "+"),
)


def bpe_tokenizer(
    special: Sequence[str],
    *,
    eos: str,
    pad: str,
    bos: str | None = None,
    unk: str | None = None,
    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words swallow the space before them, as Llama 3, Qwen and others have it.

    `special` are all special tokens in the order of their ids, those of `eos`, `pad` and the like among them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = [" " + word for word in WORDS] * 3 + [*WORDS, "  ", "\n"] * 3
    trainer = trainers.BpeTrainer(
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return kind(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        bos_token=bos,
        unk_token=unk,
        clean_up_tokenization_spaces=False,
        **options,
    )


def lively(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Fresh weights from `seed` that hide no mistake.

    Norms of weight 1 would hide a norm applied twice, small projectors an image that is ignored, gates of 0 a route
    that is closed, biases of 0 a bias that is lost.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                fan_in = parameter.shape[-1] if parameter.ndim == 2 else parameter[0].numel()
                parameter.normal_(std=min(0.5, 1.5 / fan_in**0.5), generator=generator)
            elif ("norm" in name or "ln_" in name) and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(std=0.3, generator=generator)
    return model.eval()


def save(folder: Path, model: PreTrainedModel, processor: Any, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a checkpoint folder as a published one is laid out."""
    model.to(dtype).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
