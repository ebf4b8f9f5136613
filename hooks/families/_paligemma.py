"""PaliGemma: no chat template, pictures before everything, and a prompt whose tokens all see each other.

Its processor takes prompts with pictures only, and spoils those without when both come together; so we write what it
writes, and use its parts: the tokenizer, and the image processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seamscope.hooks.families._family import Family

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from seamscope.hooks._frame import Framed


def _render(processor: Any, text: str, n_images: int) -> str:
    """Pictures, the first token, the text, and the line break that ends a prompt."""
    pictures: str = processor.image_token * processor.image_seq_length * n_images
    return f"{pictures}{processor.tokenizer.bos_token}{text}\n"


def _process(
    processor: Any, framed: Sequence[Framed], images: Sequence[Sequence[Any]], padding: str
) -> dict[str, Tensor]:
    """Token types are 0 in the prompt, all of which sees itself, and 1 in the answer, which sees what is before it."""
    made = processor.tokenizer(
        [each.text for each in framed],
        add_special_tokens=False,
        padding=True,
        padding_side=padding,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    starts = torch.tensor(
        [next((mark.start for mark in each.marks if mark.name == "answer"), len(each.text)) for each in framed]
    )
    begins, ends = made.pop("offset_mapping").unbind(-1)
    answers = (begins >= starts[:, None]) & (ends > begins)
    inputs = {
        "input_ids": made["input_ids"],
        "attention_mask": made["attention_mask"],
        "token_type_ids": answers.long(),
    }
    flat = [image for row in images for image in row]
    if flat:
        inputs["pixel_values"] = processor.image_processor(images=flat, return_tensors="pt")["pixel_values"]
    return inputs


PALIGEMMA = Family(
    name="PaliGemma",
    model_types=("paligemma",),
    published=("google/paligemma-3b-mix-224", "google/paligemma2-3b-mix-448"),
    decoders={"PaliGemma 2": "gemma2"},
    render=_render,
    process=_process,
    lacks=(
        "a chat template: a prompt is the pictures and the text, and a task prefix such as `answer en` is up to you",
    ),
)
