"""A vision-language model with named sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seamscope.hooks._encode import Encoder, named_prompts
from seamscope.hooks._errors import RunError, SpanError, choose
from seamscope.hooks._families import anatomy_of
from seamscope.hooks._points import Point, point_of, require_weights
from seamscope.hooks._score import Score
from seamscope.hooks._site import Site, expand_sites, sites_of
from seamscope.hooks._wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float

    from seamscope.hooks._batch import Batch, Padding
    from seamscope.hooks._families import Family
    from seamscope.hooks._prompt import Prompt, Promptable


class Vlm:
    """A model, its processor, and the names of its sites; made by `load_vlm`.

    `model` and `processor` are the transformers objects, `family` the name of the model's family.
    """

    def __init__(self, *, name: str, model: Any, processor: Any, family: Family) -> None:
        self.name = name
        self.model = model
        self.processor = processor
        self.family = family.name
        self.anatomy = anatomy_of(model, family)
        self.wiring = Wiring()

    def __repr__(self) -> str:
        size = f"{self.n_vision_layers} vision and {self.n_layers} decoder layers of width {self.d_model}"
        return f"Vlm({self.name!r}, {self.family}, {size}, {self.dtype}, {self.device})"

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site of this model, in forward order; `lm.L.pattern` under eager attention only."""
        missing = () if self.attn_implementation == "eager" else ("pattern",)
        return sites_of(n_vision_layers=self.n_vision_layers, n_layers=self.n_layers, missing=missing)

    @property
    def n_layers(self) -> int:
        """How many layers the decoder has."""
        return len(self.anatomy.layers)

    @property
    def n_vision_layers(self) -> int:
        """How many layers the vision tower has."""
        return len(self.anatomy.tower_layers)

    @property
    def vision_read_layers(self) -> tuple[int, ...]:
        """The tower layers that the projector reads (-1: the tower's embedding); later ones are idle."""
        return self.anatomy.family.read_layers(self.model.config)

    @property
    def n_heads(self) -> int:
        """How many query heads a decoder layer has."""
        return int(self._text_config.num_attention_heads)

    @property
    def d_model(self) -> int:
        """The width of the decoder's residual stream."""
        return int(self._text_config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the token embeddings."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the decoder's weights."""
        return self.model.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]

    @property
    def attn_implementation(self) -> str:
        """The attention implementation of the decoder, such as `eager` or `sdpa`."""
        return str(self._text_config._attn_implementation)

    @property
    def _text_config(self) -> Any:
        return self.model.config.get_text_config()

    @property
    def _encoder(self) -> Encoder:
        return Encoder(self.processor, self.anatomy.family, self.model.config, self.device)

    def expand(self, patterns: str | Site | Iterable[str | Site]) -> tuple[str, ...]:
        """Resolve names and globs such as `lm.*.resid_post`, in forward order; `SiteError` if unknown."""
        wanted = [patterns] if isinstance(patterns, str | Site) else list(patterns)
        for pattern in wanted:
            require_weights(str(pattern), self.attn_implementation)
        return expand_sites(wanted, self.sites)

    def point(self, site: str | Site) -> Point:
        """Find one site by its name; `SiteError` if this model has no such site."""
        (name,) = self.expand(Site.parse(site))
        return point_of(self.anatomy, Site.parse(name), self.n_heads)

    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """Give every site's shape; the sizes that depend on the batch are named."""
        return {name: self._shape(Site.parse(name)) for name in self.sites}

    def _shape(self, site: Site) -> tuple[int | str, ...]:
        if site.stack == "vision":
            return ("image", "patch", int(self.model.config.vision_config.hidden_size))
        if site.stack == "projector":
            return ("image", "patch", self.d_model)
        special: Mapping[str, tuple[int | str, ...]] = {
            "head_z": ("batch", "pos", self.n_heads, self.anatomy.head_width(self.n_heads)),
            "pattern": ("batch", self.n_heads, "query", "key"),
            "logits": ("batch", "pos", int(self._text_config.vocab_size)),
        }
        return special.get(site.kind, ("batch", "pos", self.d_model))

    def encode(
        self,
        items: Sequence[Promptable | Prompt],
        *,
        condition: str | None = None,
        answers: Sequence[str] | None = None,
        padding: Padding = "left",
    ) -> Batch:
        """Make model inputs and spans of items under a condition, or of prompts as they are.

        `answers`, one for each item, are written after the generation prompt together with the
        end-of-sequence token, for `score`. Items with and without images mix. Raises `RunError` or
        `SpanError`.
        """
        choose("padding", padding, ("left", "right"), RunError)
        named = named_prompts(items, condition, answers)
        return self._encoder(named, answers=answers, condition=condition, padding=padding)

    def forward(self, batch: Batch) -> Float[Tensor, "batch pos vocab"]:
        """Run the model and give its logits, under inference mode and without a cache."""
        with self._running(batch):
            return self.model(**batch.inputs, use_cache=False).logits  # type: ignore[no-any-return]

    def score(self, batch: Batch) -> Score:
        """Rate each item's answer, teacher-forced, its end included.

        Raises `SpanError` unless the batch was encoded with answers.
        """
        rows, positions = _answer_tokens(batch)
        kept, column = torch.unique(positions - 1, return_inverse=True)
        if self._head_is_hooked:
            kept, column = torch.arange(batch.width), positions - 1
        with self._running(batch):
            logits = self.model(**batch.inputs, use_cache=False, logits_to_keep=kept.to(self.device)).logits
            rows, column, positions = (index.to(logits.device) for index in (rows, column, positions))
            targets = batch.inputs["input_ids"].to(logits.device)[rows, positions]
            return Score.of(logits[rows, column], targets, rows, len(batch))

    def generate(self, batch: Batch, *, max_new_tokens: int) -> list[str]:
        """Continue each prompt greedily until the end-of-sequence token; give the new texts, stripped.

        Hooks act on the pass over the prompt only. Raises `RunError` for rows padded on the right or with
        answers.
        """
        if "answer" in batch.span_names:
            raise RunError("this batch already holds answers; encode it without them to generate")
        if batch.padding == "right" and not batch.inputs["attention_mask"].all():
            raise RunError("rows padded on the right cannot be continued; encode(..., padding='left')")
        tokenizer, config = self.processor.tokenizer, self.model.generation_config
        settings = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        settings["eos_token_id"] = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
        settings |= {
            "pad_token_id": tokenizer.pad_token_id,
            "max_new_tokens": max_new_tokens,
            "use_cache": True,
        }
        if self._head_is_hooked:
            settings["logits_to_keep"] = 0  # every position, where a hook expects them
        with self._running(batch), self._counting_passes():
            tokens = self.model.generate(**batch.inputs, **settings)
        texts = self.processor.batch_decode(tokens[:, batch.width :], skip_special_tokens=True)
        return [text.strip() for text in texts]

    @property
    def _head_is_hooked(self) -> bool:
        return bool(self.anatomy.head._forward_hooks)

    @contextmanager
    def _running(self, batch: Batch) -> Iterator[None]:
        with torch.inference_mode(), self.wiring.running(batch):
            yield

    @contextmanager
    def _counting_passes(self) -> Iterator[None]:
        handle = self.model.register_forward_pre_hook(self.wiring.count_pass)
        try:
            yield
        finally:
            handle.remove()


def _answer_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """Give the rows and the positions of all answer tokens."""
    if "answer" not in batch.span_names:
        raise SpanError("this batch has no answers to score; encode(..., answers=[...])")
    answers = batch.positions("answer")
    rows = torch.arange(len(batch)).repeat_interleave(torch.tensor([len(each) for each in answers]))
    return rows, torch.cat(answers)
