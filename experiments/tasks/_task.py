"""What every generated task shares: seeded items, held-out content, counterfactual partners, scoring."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from PIL.Image import Image

from seamscope.hooks import Box, TaskError

from ._item import Intermediate, Item, Wording
from ._style import Look, Profile, Style, profile

Scene = TypeVar("Scene")
HELD_OUT_SHARE = 10  # one scene in this many is held out
TRIES = 2_000


@dataclass(frozen=True)
class Source(Generic[Scene]):
    """What an item was made from, so that its partner can be."""

    scene: Scene
    style: Style


def held_out(text: str) -> bool:
    """Whether content is kept out of every training set: a tenth of all, chosen by a hash of its text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % HELD_OUT_SHARE == 0


class Task(ABC, Generic[Scene]):
    """A task with generated items: scenes are sampled, drawn in a style, described and solved.

    A new task says how to do these five things; seeds, splits, pairs, prompts and scoring are shared.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    layouts: ClassVar[tuple[str, ...]]
    wording: ClassVar[Mapping[str, Wording]]
    budget: ClassVar[Mapping[str, int]]

    @abstractmethod
    def sample(self, rng: np.random.Generator, profile: Profile) -> Scene:
        """Draw the content of one item."""

    @abstractmethod
    def vary(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Change one object, so that the question stays and the answer may differ."""

    @abstractmethod
    def paint(self, scene: Scene, style: Style) -> tuple[Image, tuple[Box, ...]]:
        """Draw the scene; one box for each part of the intermediate."""

    @abstractmethod
    def describe(self, scene: Scene, profile: Profile) -> Intermediate:
        """What the visual skill should say."""

    @abstractmethod
    def question(self, scene: Scene, profile: Profile) -> str:
        """The question that the textual skill answers."""

    @abstractmethod
    def solve(self, scene: Scene) -> str:
        """The answer, in canonical form."""

    @abstractmethod
    def variables(self, scene: Scene) -> dict[str, tuple[str, str]]:
        """What probes predict: name to (label, the finer type that a control task labels at random)."""

    @abstractmethod
    def read_intermediate(self, text: str) -> tuple[str, ...] | None:
        """Cut what call 1 said into the texts of its objects in canonical form, `None` where it cannot be read."""

    @abstractmethod
    def read_answer(self, text: str) -> str | None:
        """The answer in what a model said, in canonical form, `None` where there is none."""

    def items(
        self,
        n: int,
        *,
        profile_name: str = "small",
        seed: int = 0,
        split: str | None = "held_out",
        look: Look | None = None,
    ) -> list[Item]:
        """Make items from a seed; the k-th item does not depend on `n`.

        `split`: `held_out` (content and handwriting that no shipped model was trained on), `train`, or `None`.
        """
        if n < 1:
            raise TaskError(f"cannot make {n} items; at least 1")
        if split not in ("held_out", "train", None):
            raise TaskError(f"unknown split {split!r}; one of: held_out, train")
        form, look = profile(profile_name), look or Look()
        return [self._make(k, form=form, seed=seed, split=split, look=look) for k in range(n)]

    def partner(self, item: Item) -> Item:
        """The counterfactual partner: same layout, question and split, another answer.

        One object is changed where the split has such a partner, and one more for every 200 failed tries.
        """
        source: Source[Scene] = item.source
        rng = np.random.default_rng([source.style.seed, 1])
        kept = held_out(item.intermediate.text)
        for attempt in range(TRIES):
            scene = source.scene
            for _ in range(1 + attempt // 200):
                scene = self.vary(scene, rng)
            text = self.describe(scene, source.style.profile).text
            if self.solve(scene) != item.answer and held_out(text) == kept:
                return self._finish(f"{item.id}'", item.group, Source(scene, source.style))
        raise TaskError(f"item {item.id}: no counterfactual partner found in {TRIES} tries")

    def score(self, item: Item, text: str) -> bool:
        """Exact match of what a model answered, after parsing; anything before the answer marker is ignored."""
        return self.read_answer(self._after_marker(text, item.wording)) == item.answer

    def saw(self, item: Item, text: str) -> bool:
        """Whether call 1 named every object, in order."""
        return self.read_intermediate(text) == self.read_intermediate(item.intermediate.text)

    def hand_over(self, item: Item, text: str) -> Intermediate:
        """What call 1 said, cut into parts where it can be read, as it stands where it cannot."""
        parts = self.read_intermediate(text)
        if parts is None or len(parts) != len(item.intermediate.parts):
            return Intermediate(parts=(text.strip(),))
        return Intermediate(parts=self._as_said(text, parts, item), separator=item.intermediate.separator)

    def _as_said(self, text: str, parts: tuple[str, ...], item: Item) -> tuple[str, ...]:
        return parts

    @staticmethod
    def _after_marker(text: str, wording: Wording) -> str:
        return re.split(rf"\b{re.escape(wording.answer_marker)}\b", text, flags=re.IGNORECASE)[-1]

    def _make(self, k: int, *, form: Profile, seed: int, split: str | None, look: Look) -> Item:
        rng = np.random.default_rng([seed, k, *self.name.encode()])
        for _ in range(TRIES):
            scene = self.sample(rng, form)
            if split is None or held_out(self.describe(scene, form).text) == (split == "held_out"):
                break
        style = Style.sample(
            rng, look=look, profile=form, layouts=self.layouts, held_out=split != "train"
        )
        name = f"{self.name}-{form.name}-{seed}-{k}"
        return self._finish(name, name, Source(scene, style))

    def _finish(self, name: str, group: str, source: Source[Any]) -> Item:
        scene, style = source.scene, source.style
        image, boxes = self.paint(scene, style)
        variables = self.variables(scene)
        return Item(
            id=name,
            task=self.name,
            image=image,
            question=self.question(scene, style.profile),
            intermediate=self.describe(scene, style.profile),
            answer=self.solve(scene),
            variables={key: label for key, (label, _) in variables.items()},
            types={key: kind for key, (_, kind) in variables.items()},
            boxes=boxes,
            group=group,
            wording=self.wording[style.profile.name],
            source=source,
        )
