"""What the organism is trained on: pools of drawn scenes, and fresh text exercises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from tqdm import tqdm

from ..tasks import DATA_SETS, Item, get

Picture = np.ndarray[Any, np.dtype[np.uint8]]
Odds = tuple[float, ...] | None  # of the data sets, in their order; None: equal
IGNORED: Final = -100  # the label that transformers leaves out of a loss
SHIFT: Final = 2  # pixels by which a pooled picture is moved at random


@dataclass(frozen=True)
class Pool:
    """Drawn items of one data set, with their pictures as one array (n, height, width, 3) of bytes."""

    items: list[Item]
    pixels: Picture

    @classmethod
    def draw(cls, name: str, n: int, *, seed: int) -> Pool:
        """Items of the training split only."""
        task = get(name)
        made = task.items(n, seed=seed, split="train")
        return cls(made, np.stack([np.asarray(item.image) for item in made]))


def draw_pools(n: int, *, seed: int) -> dict[str, Pool]:
    """One pool for each data set."""
    return {name: Pool.draw(name, n, seed=seed) for name in tqdm(DATA_SETS, desc="drawing", unit="pool")}


def moved(pixels: Picture, rng: np.random.Generator) -> Picture:
    """A picture (height, width, 3) moved by up to `SHIFT` pixels."""
    padded = np.pad(pixels, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    x, y = rng.integers(0, 2 * SHIFT + 1, 2)
    side = pixels.shape[0]
    return padded[y : y + side, x : x + side]


def normalised(pixels: Picture) -> torch.Tensor:
    """Pictures (n, height, width, 3) of bytes as the processor gives them: (n, 3, height, width), -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


class Lessons:
    """Batches of (prompt, target) pairs as model inputs, padded on the right, with labels on targets only."""

    def __init__(self, pools: Mapping[str, Pool], processor: Any, *, seed: int) -> None:
        self.pools, self.rng = pools, np.random.default_rng(seed)
        self.processor, self.tokenizer = processor, processor.tokenizer
        self._cache: dict[str, list[int]] = {}

    def pictured(self, n: int, *, shares: Mapping[str, float], odds: Odds = None) -> dict[str, torch.Tensor]:
        """`n` items with pictures; `shares` are the odds of each condition: perceive, direct, cot."""
        chosen = list(self._choose(n, odds))
        conditions = self.rng.choice(list(shares), n, p=np.array(list(shares.values())) / sum(shares.values()))
        pairs = [
            (self.pools[name].items[k], condition) for (name, k), condition in zip(chosen, conditions, strict=True)
        ]
        pixels = np.stack([moved(self.pools[name].pixels[k], self.rng) for name, k in chosen])
        batch = self._tokens([(item, str(condition)) for item, condition in pairs])
        batch["pixel_values"] = normalised(pixels)
        return batch

    def textual(self, n: int, *, odds: Odds = None) -> dict[str, torch.Tensor]:
        """`n` items as text only: the gold intermediate and the question."""
        return self._tokens([(self.pools[name].items[k], "oracle") for name, k in self._choose(n, odds)])

    def _choose(self, n: int, odds: Odds) -> Iterator[tuple[str, int]]:
        names = self.rng.choice(list(self.pools), n, p=odds)
        for name in names:
            yield str(name), int(self.rng.integers(len(self.pools[str(name)].items)))

    def _tokens(self, pairs: list[tuple[Item, str]]) -> dict[str, torch.Tensor]:
        rows, labels = [], []
        for item, condition in pairs:
            prompt, target = self._prompt(item, condition), self._ids(f"{item.target(condition)} </s>")
            rows.append(prompt + target)
            labels.append([IGNORED] * len(prompt) + target)
        long = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (long - len(row)) for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": (ids != pad).long(),
            "labels": torch.tensor([row + [IGNORED] * (long - len(row)) for row in labels]),
        }

    def _prompt(self, item: Item, condition: str) -> list[int]:
        prompt = item.prompt(condition)
        content = [{"type": "image"} for _ in prompt.pictures] + [{"type": "text", "text": prompt.text}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        side = self.processor.image_processor.size["height"] // self.processor.patch_size
        return self._ids(text.replace("<image>", "<image>" * side**2))

    def _ids(self, text: str) -> list[int]:
        if text not in self._cache:
            ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if self.tokenizer.unk_token_id in ids:
                raise ValueError(f"a word of {text!r} is not in the organism's vocabulary")
            self._cache[text] = ids
        return self._cache[text]
