"""Generated tasks: seeded scenes, held-out content, counterfactual partners."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from seamscope.hooks import Prompt, TaskError

from ._canvas import Canvas
from ._item import Intermediate, Item
from ._style import Look, Profile, Style, profile
from ._task import Task

Scene = TypeVar("Scene")
HELD_OUT_SHARE = 10  # one scene in this many is held out
TRIES = 2_000


@dataclass(frozen=True)
class Source(Generic[Scene]):
    """What an item was made from, so that its partner can be; `starts` as in `Canvas`."""

    scene: Scene
    style: Style
    starts: tuple[Any, ...] = ()


def held_out(text: str) -> bool:
    """Whether content is kept out of every training set: a tenth of all, chosen by a hash of its text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % HELD_OUT_SHARE == 0


class GeneratedTask(Task, Generic[Scene]):
    """A task whose scenes are sampled, drawn in a style, described and solved.

    A new task says how to do these things; seeds, splits, pairs, prompts and scoring are shared.
    """

    layouts: ClassVar[tuple[str, ...]]

    @abstractmethod
    def sample(self, rng: np.random.Generator, profile: Profile) -> Scene:
        """Draw the content of one item."""

    @abstractmethod
    def vary(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Change one object, so that layout and question stay and the answer may differ."""

    @abstractmethod
    def paint(self, scene: Scene, canvas: Canvas) -> None:
        """Draw the scene: `canvas.begin()` and one box for each part of the intermediate."""

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

        `split`: `held_out` (content and handwriting that no shipped model was trained on), `train`, `None`.
        Raises `TaskError` for an argument that is none of the choices.
        """
        check_request(n, seed=seed, split=split)
        form, look = profile(profile_name), look or Look()
        return [self._make(k, form=form, seed=seed, split=split, look=look) for k in range(n)]

    def item(
        self,
        k: int,
        *,
        profile_name: str = "small",
        seed: int = 0,
        split: str | None = "held_out",
        look: Look | None = None,
    ) -> Item:
        """The k-th item alone, as `items` gives it."""
        check_request(1, seed=seed, split=split)
        return self._make(k, form=profile(profile_name), seed=seed, split=split, look=look or Look())

    def exercise(self, k: int, *, seed: int, split: str | None, profile_name: str = "small") -> tuple[Prompt, str]:
        """The k-th item's oracle prompt and its answer, without drawing it."""
        form = profile(profile_name)
        scene = self._content(self._rng(seed, k), form=form, split=split)
        words, handed = self.wording[form.name], self.describe(scene, form).segments()
        segments = words.fill(words.reason, intermediate=handed, question=self.question(scene, form))
        return Prompt(segments=segments), self.solve(scene)

    def partner(self, item: Item) -> Item:
        """The counterfactual partner: same layout, question and style; another answer.

        One object is changed where the item's split has such a partner, and one more for every 200 failed
        tries; every other object is drawn with the same pixels. About one small item in a hundred has no
        partner in its split, which holds only a tenth of few possible scenes: then content of either will do.
        """
        source = item.source
        if item.task != self.name or not isinstance(source, Source):
            raise TaskError(f"item {item.id} is of task {item.task!r}, not {self.name!r}; it has no partner here")
        scene = self._other(item, same_split=True) or self._other(item, same_split=False)
        if scene is None:
            raise TaskError(f"item {item.id}: no counterfactual partner found in {2 * TRIES} tries")
        return self._finish(f"{item.id}'", item.group, scene, source.style, source.starts)

    def _other(self, item: Item, *, same_split: bool) -> Scene | None:
        source: Source[Scene] = item.source
        rng = np.random.default_rng([source.style.seed, 1])
        kept = held_out(item.intermediate.text)
        for attempt in range(TRIES):
            scene = source.scene
            for _ in range(1 + attempt // 200):
                scene = self.vary(scene, rng)
            fits = not same_split or held_out(self.describe(scene, source.style.profile).text) == kept
            if fits and self.solve(scene) != item.answer:
                return scene
        return None

    def _make(self, k: int, *, form: Profile, seed: int, split: str | None, look: Look) -> Item:
        rng = self._rng(seed, k)
        scene = self._content(rng, form=form, split=split)
        style = Style.sample(rng, look=look, profile=form, layouts=self.layouts, held_out=split != "train")
        name = f"{self.name}-{form.name}-{seed}-{k}"
        return self._finish(name, name, scene, style)

    def _rng(self, seed: int, k: int) -> np.random.Generator:
        return np.random.default_rng([seed, k, *self.name.encode()])

    def _content(self, rng: np.random.Generator, *, form: Profile, split: str | None) -> Scene:
        for _ in range(TRIES):
            scene = self.sample(rng, form)
            if split is None or held_out(self.describe(scene, form).text) == (split == "held_out"):
                return scene
        raise TaskError(f"{self.name}: no {split} content found in {TRIES} tries")

    def _finish(self, name: str, group: str, scene: Scene, style: Style, starts: Sequence[Any] = ()) -> Item:
        canvas = Canvas(style, starts=starts)
        self.paint(scene, canvas)
        variables = self.variables(scene)
        return Item(
            id=name,
            task=self.name,
            image=canvas.image,
            question=self.question(scene, style.profile),
            intermediate=self.describe(scene, style.profile),
            answer=self.solve(scene),
            variables={key: label for key, (label, _) in variables.items()},
            types={key: kind for key, (_, kind) in variables.items()},
            boxes=tuple(canvas.boxes),
            group=group,
            wording=self.wording[style.profile.name],
            source=Source(scene, style, tuple(canvas.starts)),
        )


def check_request(n: int, *, seed: int, split: str | None) -> None:
    """Refuse a number of items, a seed or a split that cannot be, with `TaskError`."""
    if n < 1:
        raise TaskError(f"cannot make {n} items; at least 1")
    if seed < 0:
        raise TaskError(f"seed is {seed}; expected 0 or more")
    if split not in ("held_out", "train", None):
        raise TaskError(f"unknown split {split!r}; one of: held_out, train")
