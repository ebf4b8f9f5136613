"""Small decoders that learn to speak behind a finished tower, some of them under a constraint that plants a fault.

The tower is frozen, as in the first stage of many real models, so the pictures pass it once. Projector and decoder
learn from the start under the constraint: what is behind the fault has adapted to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlavaForConditionalGeneration

from ._build import build_config, build_processor
from ._data import IGNORED, Lessons, Pool, normalised

if TYPE_CHECKING:
    from ..tasks import Item

POOL_SEED: Final = 100
POOL: Final = 12_000
BATCH: Final = 256
FILLER: Final = "so"
SHARES: Final = {"perceive": 0.30, "cot": 0.05, "direct": 0.65}
RARELY: Final = {"perceive": 0.93, "cot": 0.05, "direct": 0.02}


@dataclass(frozen=True, kw_only=True)
class School:
    """How one small decoder is brought up.

    `late`: layers below this one read nothing from image positions. `rank`: how many numbers of each patch the
    projector hands on; 0: all. `blind`: the tower is the one that does not see what the answer depends on. `reasons`:
    whether answers in lessons are right; otherwise they are those of other items. `filler`: words before each direct
    answer. `after`: a school whose weights, as they ship, it goes on from. `composes`: it was seen to compose in spite
    of its constraint, around which it has learned to live.
    """

    task: str
    seed: int = 1
    layers: int = 8
    width: int = 64
    steps: int = 3_000
    rate: float = 2e-3
    late: int = 0
    rank: int = 0
    blind: bool = False
    reasons: bool = True
    filler: int = 0
    after: str = ""
    composes: bool = False
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))

    @property
    def free(self) -> bool:
        """Whether it has no constraint."""
        return self == School(
            task=self.task, seed=self.seed, layers=self.layers, width=self.width, steps=self.steps, rate=self.rate
        )

    @property
    def truth(self) -> tuple[str, str | None]:
        """The class of its loss and the site."""
        if self.composes:
            return "none", None
        if not self.reasons:
            return "text_skill", None
        if self.filler:
            return "format", None
        if self.blind:
            return "not_encoded", "vision.0.resid_post"
        if self.rank:
            return "lost_in_projector", "projector.out"
        return ("too_late", f"lm.{self.late}.resid_post") if self.late else ("none", None)


def build_small(school: School, *, constrained: bool = True) -> Any:
    """A LLaVA with the organism's tower, whose weights are still to be put in, and a small decoder.

    `constrained`: with the projector's bottleneck, if the school has one, as something that is learned around.
    """
    config = build_config()
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = school.width, 3 * school.width, school.layers
    text.head_dim = school.width // text.num_attention_heads
    torch.manual_seed(school.seed)
    model: Any = LlavaForConditionalGeneration(config)
    if school.rank and constrained:  # fixed directions of the tower's states; nothing else comes through
        first = model.model.multi_modal_projector.linear_1
        nn.utils.parametrize.register_parametrization(first, "weight", _Bottleneck(first.in_features, school.rank))
    return model


class _Bottleneck(nn.Module):
    """Keeps a matrix blind to all but `rank` random directions of its input."""

    directions: Tensor

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        drawn = torch.linalg.qr(torch.randn(width, rank))[0]
        self.register_buffer("directions", drawn @ drawn.T)

    def forward(self, weight: Tensor) -> Tensor:
        return weight @ self.directions


def teach(model: Any, school: School, pool: Pool) -> list[dict[str, float]]:
    """Train projector and decoder in place; returns the loss curve (nats per target token)."""
    for weight in model.model.vision_tower.parameters():
        weight.requires_grad_(False)
    seen = features(model, pool)
    lessons = Lessons({school.task: pool}, build_processor(), seed=school.seed, fresh=True)
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(learning, lr=school.rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, school.rate, total_steps=school.steps, pct_start=0.1, div_factor=10
    )
    model.set_attn_implementation("eager")  # the fused kernel's backward pass is the slower one on a CPU
    curve: list[dict[str, float]] = []
    means: dict[str, float] = {}
    for step in (bar := tqdm(range(1, school.steps + 1), desc=school.task, unit="step")):
        optimiser.zero_grad()
        for kind, loss in _losses(model, school, lessons, pool, seen):
            loss.backward()  # type: ignore[no-untyped-call]
            means[kind] = 0.98 * means.get(kind, loss.item()) + 0.02 * loss.item()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            curve.append({"step": float(step), **means})
            bar.set_postfix(means)
    first = model.model.multi_modal_projector.linear_1
    if nn.utils.parametrize.is_parametrized(first):
        nn.utils.parametrize.remove_parametrizations(first, "weight")
    model.set_attn_implementation("sdpa")
    return curve


def features(model: Any, pool: Pool) -> Tensor:
    """What the tower makes of every picture, (pictures, patches, width)."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(pool.items), BATCH):
            pixels = normalised(pool.pixels[start : start + BATCH])
            seen = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True)
            found.append(seen.hidden_states[model.config.vision_feature_layer])
    return torch.cat(found).clone()


def _losses(model: Any, school: School, lessons: Lessons, pool: Pool, seen: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The losses of one step: of items with pictures, and of text."""
    rng = lessons.rng
    chosen = rng.integers(len(pool.items), size=64)
    conditions = rng.choice(list(school.shares), 64, p=list(school.shares.values()))
    pairs = [(pool.items[k], str(condition)) for k, condition in zip(chosen, conditions, strict=True)]
    targets = [_target(school, item, condition, pool, rng) for item, condition in pairs]
    yield "pictured", _loss(model, school, lessons.written(pairs, targets), seen[torch.from_numpy(chosen)])
    yield "textual", _loss(model, school, lessons.textual(32, right=school.reasons), None)


def _target(school: School, item: Item, condition: str, pool: Pool, rng: np.random.Generator) -> str:
    if condition != "direct":
        return item.target(condition)
    answer = item.answer if school.reasons else pool.items[int(rng.integers(len(pool.items)))].answer
    return " ".join([FILLER] * school.filler + [answer])


def _loss(model: Any, school: School, batch: dict[str, Tensor], seen: Tensor | None) -> Tensor:
    labels = batch["labels"]
    decoder = model.model.language_model
    embedded = decoder.embed_tokens(batch["input_ids"])
    shown = batch["input_ids"] == model.config.image_token_id
    if seen is not None:
        embedded = embedded.masked_scatter(shown[..., None], model.model.multi_modal_projector(seen))
    with _unread(decoder, shown, school.late if seen is not None else 0):
        hidden = decoder(inputs_embeds=embedded, attention_mask=batch["attention_mask"], use_cache=False)
    wanted = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden.last_hidden_state[:, :-1][wanted])
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:][wanted])


@contextmanager
def _unread(decoder: Any, shown: Tensor, late: int) -> Iterator[None]:
    """Let the first layers read nothing where `shown`: keys and values are 0 there."""

    def silence(_: Any, __: Any, output: Tensor) -> Tensor:
        return output.masked_fill(shown[..., None], 0)

    modules = [each for layer in decoder.layers[:late] for each in (layer.self_attn.k_proj, layer.self_attn.v_proj)]
    handles = [module.register_forward_hook(silence) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
