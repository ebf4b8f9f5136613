"""From prompts to a batch: chat template, processor, spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seamscope.hooks._batch import Batch
from seamscope.hooks._errors import ModelError, RunError
from seamscope.hooks._frame import Framed, frame
from seamscope.hooks._prompt import Prompt, Promptable
from seamscope.hooks._spans import object_spans, text_spans

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor

    from seamscope.hooks._batch import Padding
    from seamscope.hooks._families import Family, Visual

    Named = tuple[str, Prompt]


@dataclass(frozen=True)
class Encoder:
    """Turns prompts into model inputs for one model; every key that the processor returns is kept."""

    processor: Any
    family: Family
    config: Any
    device: torch.device

    def __call__(
        self,
        named: Sequence[Named],
        *,
        answers: Sequence[str] | None,
        condition: str | None,
        padding: Padding,
    ) -> Batch:
        """Encode named prompts, each followed by its answer where `answers` are given."""
        endings = [None] * len(named) if answers is None else answers
        pairs = zip(named, endings, strict=True)
        framed = [frame(self.processor, prompt, name, ending) for (name, prompt), ending in pairs]
        inputs = self._process(framed, [prompt for _, prompt in named], padding)
        offsets = inputs.pop("offset_mapping").numpy()
        visual = self._visual(inputs, sum(len(prompt.pictures) for _, prompt in named))
        spans = self._spans(named, framed, inputs, offsets, visual)
        real = inputs["attention_mask"]
        inputs["position_ids"] = (real.cumsum(-1) - 1).clamp(min=0)
        return Batch(
            inputs={key: value.to(self.device) for key, value in inputs.items()},
            spans=tuple(spans),
            ids=tuple(name for name, _ in named),
            texts=tuple(each.text for each in framed),
            condition=condition,
            padding=padding,
            visual=visual,
        )

    def _process(self, framed: list[Framed], prompts: list[Prompt], padding: Padding) -> dict[str, Tensor]:
        tokenizer = self.processor.tokenizer
        if not tokenizer.is_fast:
            raise ModelError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
        begun = tokenizer.bos_token is not None and framed[0].text.startswith(tokenizer.bos_token)
        images = [picture.image for prompt in prompts for picture in prompt.pictures]
        out = self.processor(
            text=[each.text for each in framed],
            images=images or None,
            padding=True,
            padding_side=padding,
            add_special_tokens=not begun,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        return dict(out)

    def _visual(self, inputs: Mapping[str, Tensor], n_images: int) -> Visual | None:
        if not n_images:
            return None
        total = int((inputs["input_ids"] == self.config.image_token_id).sum())
        return self.family.visual(self.config, inputs, total // n_images)

    def _spans(
        self,
        named: Sequence[Named],
        framed: list[Framed],
        inputs: Mapping[str, Tensor],
        offsets: np.ndarray[Any, Any],
        visual: Visual | None,
    ) -> list[dict[str, Tensor]]:
        is_image = (inputs["input_ids"] == self.config.image_token_id).numpy()
        real = inputs["attention_mask"].bool().numpy()
        rows = []
        for row, (name, prompt) in enumerate(named):
            spans = text_spans(
                framed[row],
                offsets=offsets[row],
                is_image=is_image[row],
                real=real[row],
                placeholder=self.processor.image_token,
                name=name,
            )
            if visual is not None and prompt.pictures:
                height, width = inputs["pixel_values"].shape[-2:]
                objects = object_spans(
                    prompt.pictures,
                    spans["image"],
                    visual=visual,
                    processor=self.processor.image_processor,
                    pixels=(height, width),
                )
                spans.update(objects)
            rows.append(spans)
        return rows


def named_prompts(
    items: Sequence[Promptable | Prompt], condition: str | None, answers: Sequence[str] | None
) -> list[Named]:
    """Name the prompts by their items' ids, or by their numbers where prompts are given as such.

    Raises `RunError` for an empty list, items without a condition, or answers of another number.
    """
    if not items:
        raise RunError("nothing to encode: an empty list of items")
    if answers is not None and len(answers) != len(items):
        raise RunError(f"{len(answers)} answers were given for {len(items)} items")
    return [_named(item, row, condition) for row, item in enumerate(items)]


def _named(item: Promptable | Prompt, row: int, condition: str | None) -> Named:
    if isinstance(item, Prompt):
        return str(row), item
    if not isinstance(item, Promptable):
        raise RunError(f"cannot encode a {type(item).__name__}; expected a Prompt, or an item with id and prompt()")
    if condition is None:
        raise RunError("items are encoded under a condition: encode(items, condition=...)")
    return item.id, item.prompt(condition)
