"""From prompts to a batch: chat template, processor, positions, spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from seamscope.hooks._batch import Batch
from seamscope.hooks._errors import ModelError, RunError, SeamscopeError, SpanError
from seamscope.hooks._frame import Framed, Framer
from seamscope.hooks._geometry import Geometry, map_views, ramp
from seamscope.hooks._prompt import Picture, Prompt, Promptable, Segment
from seamscope.hooks._spans import Row, text_spans
from seamscope.hooks._visual import Visual, visual_of
from seamscope.hooks.families import image_token_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from seamscope.hooks._batch import Padding
    from seamscope.hooks.families import Family

    Named = tuple[str, Prompt]


class Encoder:
    """Turns prompts into model inputs for one model; every key that the processor returns is kept."""

    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self._model, self._processor, self._family = model, processor, family
        self._image_id = image_token_id(model.config)
        self._frame = Framer(model, processor, family)
        self._known: dict[tuple[tuple[int, int], int], Geometry] = {}

    def __call__(
        self,
        named: Sequence[Named],
        *,
        answers: Sequence[str] | None,
        condition: str | None,
        padding: Padding,
    ) -> Batch:
        """Encode named prompts, each followed by its answer where `answers` are given."""
        prompts = [prompt for _, prompt in named]
        self._require_equal_pictures(prompts)
        endings = [None] * len(named) if answers is None else answers
        framed = [self._frame(prompt, name, answer) for (name, prompt), answer in zip(named, endings, strict=True)]
        images = [[picture.image for picture in prompt.pictures] for prompt in prompts]
        inputs = self._process(framed, images, padding, [name for name, _ in named])
        visual = self._visual(prompts)
        spans = self._spans(named, framed, inputs, visual)
        extra = self._family.extra(self._model, inputs)
        embeddings = self._model.get_input_embeddings()
        place, dtype = device_of(embeddings), embeddings.weight.dtype
        if "position_ids" in extra:
            inputs["position_ids"] = extra.pop("position_ids")
        return Batch(
            inputs={key: _moved(value, place, dtype) for key, value in inputs.items()},
            extra={key: _moved(value, place, dtype) for key, value in extra.items()},
            spans=tuple(spans),
            ids=tuple(name for name, _ in named),
            texts=tuple(each.text for each in framed),
            condition=condition,
            padding=padding,
            visual=visual,
        )

    def widths(self, named: Sequence[Named]) -> list[int]:
        """About how many positions each prompt takes."""
        texts = [self._frame(prompt, name, None).text for name, prompt in named]
        words = [len(ids) for ids in self._processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]
        shown = [
            sum(len(self._geometry(each.image.size, len(prompt.pictures)).layout.lm) for each in prompt.pictures)
            for _, prompt in named
        ]
        return [text + image for text, image in zip(words, shown, strict=True)]

    def _require_equal_pictures(self, prompts: Sequence[Prompt]) -> None:
        counts = {len(prompt.pictures) for prompt in prompts}
        if len(counts) > 1 and not self._family.mixed_rows:
            raise RunError(
                f"{self._family.name} sees blank pictures where a prompt has fewer than another of its batch; "
                f"encode prompts with {' and '.join(map(str, sorted(counts)))} pictures apart"
            )

    def _process(
        self, framed: Sequence[Framed], images: Sequence[Sequence[Any]], padding: str, names: Sequence[str]
    ) -> dict[str, Tensor]:
        """Run the processor; what it refuses, a picture of an odd shape say, is told in one line."""
        try:
            return self._family.process(self._processor, framed, images, padding)
        except SeamscopeError:
            raise
        except Exception as error:
            told = " ".join(str(error).split())
            raise RunError(f"the processor refuses {', '.join(map(repr, names[:4]))}: {told}") from error

    def _visual(self, prompts: Sequence[Prompt]) -> Visual | None:
        rows = [
            [self._geometry(each.image.size, len(prompt.pictures)) for each in prompt.pictures] for prompt in prompts
        ]
        return visual_of(prompts, rows) if any(rows) else None

    def _geometry(self, size: tuple[int, int], n: int) -> Geometry:
        """Learn where the tokens of a picture of this size are, where a prompt has `n` pictures."""
        if (size, n) not in self._known:
            picture = Picture(image=ramp(size))
            asked = self._frame(Prompt(segments=(Segment("?"),), pictures=(picture,) * n), "ramp")
            inputs = self._process([asked], [[picture.image] * n], "left", [f"of {size[0]} x {size[1]} pixels"])
            self._known[size, n] = self._learn(size, (self._model, self._processor, inputs, n))
        return self._known[size, n]

    def _learn(self, size: tuple[int, int], given: tuple[Any, Any, Any, int]) -> Geometry:
        """Views that are no copies of the picture matter to boxes only, unless the layout fails as well."""
        maps: Any
        try:
            maps = map_views(self._family.views(*given), size)
        except SpanError as error:
            maps = error
        try:
            return Geometry(self._family.layout(*given), maps)
        except SpanError as error:
            raise (maps if isinstance(maps, SpanError) else error) from None

    def _spans(
        self, named: Sequence[Named], framed: Sequence[Framed], inputs: Mapping[str, Tensor], visual: Visual | None
    ) -> list[dict[str, Tensor]]:
        ids, real = inputs["input_ids"].numpy(), inputs["attention_mask"].bool().numpy()
        tokenizer = self._processor.tokenizer
        if not tokenizer.is_fast:
            raise ModelError(f"{type(tokenizer).__name__} gives no character offsets; a fast tokenizer is needed")
        read = tokenizer([each.text for each in framed], add_special_tokens=False, return_offsets_mapping=True)
        rows = []
        for number, (name, _) in enumerate(named):
            row = Row(
                name=name,
                ids=ids[number],
                real=real[number],
                is_image=ids[number] == self._image_id,
                plain_ids=np.asarray(read["input_ids"][number]),
                offsets=np.asarray(read["offset_mapping"][number]).reshape(-1, 2),
            )
            shown = visual.spans["lm"][number] if visual is not None else {}
            rows.append(text_spans(framed[number], row) | _image_spans(row, shown))
        return rows


def _image_spans(row: Row, shown: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the positions of image tokens, from their numbers among the row's image tokens."""
    held = torch.from_numpy(np.flatnonzero(row.is_image & row.real))
    expected = len(shown.get("image", ()))
    if len(held) != expected:
        raise SpanError(f"item {row.name!r} has {len(held)} image tokens, but its pictures should give {expected}")
    return {span: held[numbers] for span, numbers in shown.items()}


def _moved(value: Tensor, place: torch.device, dtype: torch.dtype) -> Tensor:
    """Inputs go where the embeddings are; pixels also take the model's precision."""
    return value.to(place, dtype) if value.is_floating_point() else value.to(place)


def device_of(module: Any) -> torch.device:
    """Where a module computes: where its weights are, or where accelerate, which keeps them elsewhere, brings them.

    The inputs of a model that is on another machine are made on the CPU.
    """
    hook = getattr(module, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    found = torch.device(module.weight.device if place is None else place)
    return torch.device("cpu") if found.type == "meta" else found


def named_prompts(
    items: Sequence[Promptable | Prompt], condition: str | None, answers: Sequence[str] | None
) -> list[Named]:
    """Name the prompts by their items' ids, or by their numbers where prompts are given as such.

    Raises `RunError` for an empty list, items without a condition, or answers of another number.
    """
    if not items:
        raise RunError("nothing to encode: an empty list of items")
    if answers is not None and (isinstance(answers, str) or not all(isinstance(each, str) for each in answers)):
        raise RunError("answers are a list of texts, one for each item")
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
