"""What the organism is trained on: pools of drawn scenes, and fresh text exercises."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from PIL.Image import Image, Resampling
from tqdm import tqdm

from seamscope.hooks import Prompt

from ..tasks import DATA_SETS, HANDWRITTEN, RENDERINGS, Item, Look, generated

Picture = np.ndarray[Any, np.dtype[np.uint8]]
Odds = tuple[float, ...] | None  # of the data sets, in their order; None: equal
IGNORED: Final = -100  # the label that transformers leaves out of a loss
FRESH_SEED: Final = 1_000  # apart from the seeds of pools
HANDWRITING: Final = Look(fonts=(*RENDERINGS, HANDWRITTEN, HANDWRITTEN, HANDWRITTEN))
TILT: Final = 7.0  # degrees
SHIFT: Final = 2  # pixels by which a pooled picture is moved at random


@dataclass(frozen=True)
class Pool:
    """Drawn items of one data set, with their pictures as one array (n, height, width, 3) of bytes."""

    items: list[Item]
    pixels: Picture

    @classmethod
    def draw(cls, name: str, n: int, *, seed: int) -> Pool:
        """Items of the training split only."""
        task = generated(name)
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


def tilted(picture: Image, rng: np.random.Generator) -> Picture:
    """A picture turned by up to `TILT` degrees about its middle."""
    turned = picture.rotate(rng.uniform(-TILT, TILT), Resampling.BICUBIC, fillcolor=picture.getpixel((0, 0)))
    return np.asarray(turned)


class Lessons:
    """Batches of (prompt, target) pairs as model inputs, padded on the right, with labels on targets only.

    From pools, items come again and again, moved a little. With `fresh` no item comes twice, handwriting comes more
    often, and pictures are tilted as well.
    """

    def __init__(self, pools: Mapping[str, Pool], processor: Any, *, seed: int, fresh: bool = False) -> None:
        self.pools, self.rng, self.fresh = pools, np.random.default_rng(seed), fresh
        self.processor, self.tokenizer = processor, processor.tokenizer
        self._cache: dict[str, list[int]] = {}
        self._seed, self._drawn = FRESH_SEED + seed, itertools.count()

    def pictured(self, n: int, *, shares: Mapping[str, float], odds: Odds = None) -> dict[str, torch.Tensor]:
        """`n` items with pictures; `shares` are the odds of each condition: perceive, direct, cot."""
        chosen = [self._picture(name) for name in self._names(n, odds)]
        conditions = self.rng.choice(list(shares), n, p=np.array(list(shares.values())) / sum(shares.values()))
        pixels = np.stack([moved(picture, self.rng) for _, picture in chosen])
        pairs = [(item, str(condition)) for (item, _), condition in zip(chosen, conditions, strict=True)]
        batch = self.written(pairs, [item.target(condition) for item, condition in pairs])
        batch["pixel_values"] = normalised(pixels)
        return batch

    def written(self, pairs: Sequence[tuple[Item, str]], targets: Sequence[str]) -> dict[str, torch.Tensor]:
        """The prompts of items under conditions, and what is to be said."""
        prompts = [self._prompt(item.prompt(condition)) for item, condition in pairs]
        return self._tokens(list(zip(prompts, targets, strict=True)))

    def textual(self, n: int, *, odds: Odds = None, right: bool = True) -> dict[str, torch.Tensor]:
        """`n` items as text only: the gold intermediate and the question; the answers of others, unless `right`."""
        pairs = [self._exercise(name) for name in self._names(n, odds)]
        if right:
            return self._tokens(pairs)
        return self._tokens([(prompt, pairs[k - 1][1]) for k, (prompt, _) in enumerate(pairs)])

    def _names(self, n: int, odds: Odds) -> list[str]:
        return [str(name) for name in self.rng.choice(list(self.pools), n, p=odds)]

    def _picture(self, name: str) -> tuple[Item, Picture]:
        if self.fresh:
            item = generated(name).item(next(self._drawn), seed=self._seed, split="train", look=HANDWRITING)
            return item, tilted(item.image, self.rng)
        pool = self.pools[name]
        k = int(self.rng.integers(len(pool.items)))
        return pool.items[k], pool.pixels[k]

    def _exercise(self, name: str) -> tuple[list[int], str]:
        if self.fresh:
            prompt, answer = generated(name).exercise(next(self._drawn), seed=self._seed, split="train")
            return self._prompt(prompt), answer
        item, _ = self._picture(name)
        return self._prompt(item.prompt("oracle")), item.answer

    def _tokens(self, pairs: list[tuple[list[int], str]]) -> dict[str, torch.Tensor]:
        rows, labels = [], []
        for prompt, words in pairs:
            target = self._ids(f"{words} </s>")
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

    def _prompt(self, prompt: Prompt) -> list[int]:
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
