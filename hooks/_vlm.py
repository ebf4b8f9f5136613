"""A vision-language model with named sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from transformers import GenerationConfig

from seamscope.hooks._anatomy import anatomy_of
from seamscope.hooks._encode import Encoder, device_of, named_prompts
from seamscope.hooks._engine import TorchEngine, require_here
from seamscope.hooks._errors import RunError, SpanError, choose
from seamscope.hooks._points import Point, kinds_of, point_of, require_weights
from seamscope.hooks._proofs import Proofs
from seamscope.hooks._score import Score
from seamscope.hooks._site import Site, expand_sites, sites_of
from seamscope.hooks._steps import Fed
from seamscope.hooks._wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float, Int

    from seamscope.hooks._batch import Batch, Padding
    from seamscope.hooks._engine import Engine
    from seamscope.hooks._prompt import Prompt, Promptable
    from seamscope.hooks.families import Family

# Plain greedy decoding; None takes away what a checkpoint may ask for.
PLAIN: Final[Mapping[str, Any]] = {
    "do_sample": False,
    "num_beams": 1,
    "use_cache": True,
    "min_length": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    **dict.fromkeys(("min_new_tokens", "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id")),
}


class Vlm:
    """A model, its processor, and the names of its sites; made by `load_vlm`.

    `model` and `processor` are the transformers objects, `family` says what the model's family does differently.
    """

    def __init__(self, *, name: str, model: Any, processor: Any, family: Family, engine: Engine | None = None) -> None:
        self.name = name
        self.model = model
        self.processor = processor
        self.family = family
        self.anatomy = anatomy_of(model, family)
        self.engine: Engine = TorchEngine(model) if engine is None else engine
        self.wiring = Wiring(self.engine)
        self.proofs = Proofs()

    def __repr__(self) -> str:
        size = f"{self.n_vision_layers} vision and {self.n_layers} decoder layers of width {self.d_model}"
        return f"Vlm({self.name!r}, {self.family.name}, {size}, {self.dtype}, {self.device})"

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """Every site of this model, in forward order; `lm.L.pattern` under eager attention only."""
        kinds = [kinds_of(self.anatomy, layer, self.attn_implementation) for layer in range(self.n_layers)]
        return sites_of(n_vision_layers=self.n_vision_layers, lm=kinds)

    @property
    def routes(self) -> tuple[str, ...]:
        """The sites by which images come to the decoder; nothing else does it."""
        return ("projector.out", *(f"lm.{layer}.deepstack" for layer in range(len(self.anatomy.deepstack))))

    def entering(self, layer: int) -> tuple[str, ...]:
        """The routes by which images still come to the decoder in `layer` or after it, past its residual stream."""
        crossed = any(each.crossed for each in self.anatomy.layers[layer:])
        late = [f"lm.{each}.deepstack" for each in range(layer, len(self.anatomy.deepstack))]
        return (*(["projector.out"] if crossed else []), *late)

    def unembed(self, stream: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any vocab"]:
        """The logits that a residual stream after the last layer gives: normed once, projected, and soft-capped."""
        require_here(self.engine, "unembed")
        return self.cap(self.anatomy.head(self.anatomy.norm(stream)))

    def cap(self, logits: Tensor) -> Tensor:
        """Bound the head's output (`lm.logits`) as the model does, where it does; the model's logits otherwise."""
        most = getattr(self._text_config, "final_logit_softcapping", None)
        return logits if most is None else torch.tanh(logits / most) * most

    @property
    def n_layers(self) -> int:
        """How many layers the decoder has."""
        return len(self.anatomy.layers)

    @property
    def n_vision_layers(self) -> int:
        """How many layers the vision tower has."""
        return len(self.anatomy.tower_layers)

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
        """Where inputs go: the device on which the token embeddings are looked up."""
        return device_of(self.model.get_input_embeddings())

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

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.model, self.processor, self.family)

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
        """Give every site's shape; the sizes that depend on the batch are named.

        `patches` counts the patches of all images, which towers arrange in one dimension or in several.
        """
        return {name: self.shape(Site.parse(name)) for name in self.sites}

    def shape(self, site: Site) -> tuple[int | str, ...]:
        """Give one site's shape."""
        if site.visual:
            return ("patches", self.anatomy.tower_width if site.stack == "vision" else self.d_model)
        special: Mapping[str, tuple[int | str, ...]] = {
            "head_z": ("batch", "pos", self.n_heads, self._head_width(site)),
            "pattern": ("batch", self.n_heads, "query", "key"),
            "logits": ("batch", "pos", int(self._text_config.vocab_size)),
        }
        return special.get(site.kind, ("batch", "pos", self.d_model))

    def _head_width(self, site: Site) -> int:
        return self.anatomy.layers[site.layer or 0].head_width(self.n_heads)

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
        token that ends the model's turn, for `score`. Items with and without images mix, but in families whose
        `mixed_rows` says otherwise. Raises `RunError` or `SpanError`.
        """
        choose("padding", padding, ("left", "right"), RunError)
        named = named_prompts(items, condition, answers)
        return self._encoder(named, answers=answers, condition=condition, padding=padding)

    def widths(self, items: Sequence[Promptable | Prompt], *, condition: str | None = None) -> list[int]:
        """Give about how many positions each prompt takes, without making inputs of it: to sort by length."""
        return self._encoder.widths(named_prompts(items, condition, None))

    def forward(self, batch: Batch, *, logits_to_keep: int = 0) -> Float[Tensor, "batch pos vocab"]:
        """Run the model and give its logits, under inference mode and without a cache.

        `logits_to_keep`: of so many last positions; 0: of all, as also where something is hooked to the head.
        """
        keep: dict[str, Any] = {"logits_to_keep": logits_to_keep} if logits_to_keep and not self._head_is_hooked else {}
        return self.run(batch, pick="logits", **keep)  # type: ignore[no-any-return]

    def run(self, batch: Batch, *, pick: str | None = None, grad: bool = False, **options: Any) -> Any:
        """Do as `forward` does, with options of the model's own; give its whole output, or the element `pick` of it.

        `grad`: autograd notes what is done with tensors that require gradients.
        """
        given = {**batch.inputs, **batch.extra, "use_cache": False, **options}
        with torch.enable_grad() if grad else torch.inference_mode(), self.wiring.running(batch):
            return self.engine.run("__call__", given, self.wiring.taps, pick)

    def score(self, batch: Batch) -> Score:
        """Rate each item's answer, teacher-forced, its end included.

        Raises `SpanError` unless the batch was encoded with answers.
        """
        logits, targets, rows = self.answer_logits(batch)
        with torch.inference_mode():
            return Score.of(logits, targets, rows, len(batch))

    def answer_logits(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "tokens vocab"], Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
        """The logits from which the tokens of all answers are read, end to end; those tokens, and the row of each.

        Raises `SpanError` unless the batch was encoded with answers.
        """
        rows, positions = _answer_tokens(batch)
        kept, column = torch.unique(positions - 1, return_inverse=True)
        if self._head_is_hooked:
            kept, column = torch.arange(batch.width), positions - 1
        logits = self.run(batch, pick="logits", logits_to_keep=kept.to(self.device))
        with torch.inference_mode():
            rows, column, positions = (index.to(logits.device) for index in (rows, column, positions))
            return logits[rows, column], batch.inputs["input_ids"].to(logits.device)[rows, positions], rows

    def generate(self, batch: Batch, *, max_new_tokens: int) -> list[str]:
        """Continue each prompt greedily until the end-of-sequence token; give the new texts, stripped.

        Decoding is plain: what a checkpoint's generation settings say of sampling and penalties is left out. Patches
        and knockouts act on the pass over the prompt only; `capture` also has the span `generated`. Raises `RunError`
        for rows padded on the right or with answers.
        """
        if "answer" in batch.span_names:
            raise RunError("this batch already holds answers; encode it without them to generate")
        if batch.padding == "right" and not batch.inputs["attention_mask"].all():
            raise RunError("rows padded on the right cannot be continued; encode(..., padding='left')")
        every = {"logits_to_keep": 0} if self._head_is_hooked else {}  # every position, where a hook expects them
        with self._greedy() as settings, self._running(batch, generating=True), self._counting_passes():
            given = {**batch.inputs, **every, **settings, "max_new_tokens": max_new_tokens}
            new = self.engine.run("generate", given, self.wiring.taps)[:, batch.width :]
            self.wiring.fed = Fed.of(new, torch.tensor(settings["eos_token_id"]))
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @contextmanager
    def _greedy(self) -> Iterator[dict[str, Any]]:
        """Put plain greedy decoding for what the checkpoint asks for: sampling, penalties, forced tokens.

        Gives it as keywords, too: a model that is elsewhere keeps its configuration, which these outdo.
        """
        before, tokenizer = self.model.generation_config, self.processor.tokenizer
        end = before.eos_token_id if before.eos_token_id is not None else tokenizer.eos_token_id
        self.model.generation_config = GenerationConfig()
        try:
            yield {**PLAIN, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id}
        finally:
            self.model.generation_config = before

    @property
    def _head_is_hooked(self) -> bool:
        return self.anatomy.head in self.wiring.taps

    @contextmanager
    def _running(self, batch: Batch, *, generating: bool = False) -> Iterator[None]:
        with torch.inference_mode(), self.wiring.running(batch, generating=generating):
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
