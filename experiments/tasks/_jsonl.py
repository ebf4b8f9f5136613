"""A task from the user's own data: one JSON object in a line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from seamscope.hooks import TaskError

from ._canvas import Canvas
from ._generated import check_request
from ._item import Intermediate, Item, Wording
from ._numbers import canonical_number, last_number
from ._page import LAYOUTS, write_page
from ._record import Record
from ._records import read_records
from ._style import Look, Style, profile
from ._task import Part, Task

SOLVE: Final = "Solve the problem. Reply with the number only."
PICTURE: Final = Wording(
    perceive="List what the image shows in reading order, separated by commas. Reply with the list only.",
    reason="An image shows: {intermediate}.\n\n{question}",
    cot="First say what the image shows, then answer. {question} End with 'Answer:' and the answer.",
    answer_marker="Answer:",
)
PAGE: Final = Wording(
    perceive="Transcribe the text in the image, exactly as it is written. Reply with the text only.",
    reason="{intermediate}\n\n{question}",
    cot="First transcribe the text in the image, then answer. {question} End with 'Answer:' and the number.",
    answer_marker="Answer:",
)
_QUOTES: Final = str.maketrans("‘’“”", "''\"\"")
_LEAD: Final = re.compile(r"(?:(?:is|are)\b[\s:=]+)?(?:(?:a|an|the)\s+(?=\w))?")


@dataclass(frozen=True)
class Origin:
    """The record that an item was made from, and the style of its drawing where it was drawn."""

    record: Record
    style: Style


class JsonlTask(Task):
    """A task from a file of records.

    Each line is an object with `image` (a path, relative to the file or absolute), `question`, `intermediate`
    (a text, or a list with a text for each object) and `answer` (a text or number). Optional: `id`; `boxes`
    ([left, top, right, bottom] in pixels, one for each text of the intermediate); `variables` (what probes
    predict: name to label; the name of an object's has its number, as `card.0.rank`) and `types` (the finer type
    of each, for control tasks); `pair` (the id of the counterfactual partner: same question, another
    intermediate and answer); `group` (records that no split may separate; partners share one by themselves);
    `perceive` (the prompt of call 1). A record without an image whose answer ends in `#### number`, as in GSM8K,
    is drawn: the question becomes the picture.

    Answers: where every answer of the file is a number, the last number that a model says, so that `1,000`,
    `1000` and `1000.0` are equal. Otherwise the whole text, without case, outer punctuation, articles and
    repeated spaces; a text that is a number is compared as one.

    The file is checked as a whole: the first thing that is wrong is a `TaskError` with file, line and field.
    """

    def __init__(self, path: str | Path, *, wording: Wording | None = None, budget: int = 512) -> None:
        self.path = Path(path)
        self._records = read_records(self.path)
        self._by_id = {record.id: record for record in self._records}
        self._wording = wording
        self._budget = budget
        self._numeric = all(canonical_number(record.answer) is not None for record in self._records)

    @property
    def name(self) -> str:
        """The name of the file, without its ending unless a generated task has that name."""
        from ._registry import DATA_SETS

        return self.path.name if self.path.stem in DATA_SETS else self.path.stem

    @property
    def summary(self) -> str:
        """How many records, and where."""
        return f"{len(self._records)} records of {self.path}"

    @property
    def wording(self) -> Mapping[str, Wording]:
        """The prompts: those that were given, else fixed ones; a record may have its own `perceive`."""
        drawn = all(record.image is None for record in self._records)
        words = self._wording or (PAGE if drawn else PICTURE)
        return {"small": words, "full": words}

    @property
    def budget(self) -> Mapping[str, int]:
        """New tokens at most; the same for both profiles."""
        return {"small": self._budget, "full": self._budget}

    @property
    def files(self) -> list[Path]:
        """The file itself, and the pictures of its records."""
        return [self.path, *dict.fromkeys(record.image for record in self._records if record.image is not None)]

    @property
    def size(self) -> int:
        """How many records there are."""
        return len(self._records)

    def items(
        self,
        n: int,
        *,
        profile_name: str = "full",
        seed: int = 0,
        split: str | None = None,
        look: Look | None = None,
    ) -> list[Item]:
        """Give the first `n` records; a seed other than 0 shuffles them.

        Profile, seed and look also say how questions are drawn; images stay as they are. No shipped model
        was trained on a user's file: `held_out` and `None` are the whole file, `train` is a `TaskError`.
        """
        self._check(n, seed=seed, split=split)
        asked = {"profile_name": profile_name, "seed": seed, "split": split, "look": look}
        return [self.item(k, **asked) for k in range(n)]  # type: ignore[arg-type]

    def item(
        self,
        k: int,
        *,
        profile_name: str = "full",
        seed: int = 0,
        split: str | None = None,
        look: Look | None = None,
    ) -> Item:
        """The k-th record alone, as `items` gives it."""
        self._check(k + 1, seed=seed, split=split)
        number = int(_order(self.size, seed)[k])
        rng = np.random.default_rng([seed, number])
        style = Style.sample(rng, look=look or Look(), profile=profile(profile_name), layouts=LAYOUTS, held_out=True)
        return self._make(self._records[number], style)

    def pairing(self, n: int, *, seed: int = 0) -> list[tuple[int, bool]]:
        """As for every task; a partner that is one of the items itself comes once.

        Raises `TaskError` for a record that has no partner.
        """
        self._check(n, seed=seed, split=None)
        records = [self._records[number] for number in _order(self.size, seed)[:n]]
        seen, pairs = {record.id for record in records}, []
        for k, record in enumerate(records):
            pairs.append((k, False))
            partner = _pair_of(record)
            if partner not in seen:
                seen.add(partner)
                pairs.append((k, True))
        return pairs

    def _check(self, n: int, *, seed: int, split: str | None) -> None:
        check_request(n, seed=seed, split=split)
        if split == "train":
            raise TaskError(f"{self.path} has no split 'train': it is all held out; use 'held_out'")
        if n > self.size:
            raise TaskError(f"{self.path} holds {self.size} records, {n} were asked for; at most {self.size}")

    def partner(self, item: Item) -> Item:
        """The record that the field `pair` names, drawn in the same style where it is drawn."""
        origin = item.source
        if not isinstance(origin, Origin):
            raise TaskError(f"item {item.id} is of task {item.task!r}; it has no partner in {self.path}")
        return self._make(self._by_id[_pair_of(origin.record)], origin.style)

    def find(self, text: str) -> tuple[Part, ...] | None:
        """The pieces between commas, semicolons and line breaks, without case and outer punctuation."""
        parts = []
        for piece in re.finditer(r"(?:[^,;\n]|,(?=\d))+", text):
            name = plain(piece[0])
            if name is not None:
                start = piece.start() + len(piece[0]) - len(piece[0].lstrip())
                parts.append(Part(name, start, start + len(piece[0].strip())))
        return tuple(parts) or None

    def hand_over(self, item: Item, text: str) -> Intermediate:
        """As for every task; an intermediate that is one text is not cut."""
        if len(item.intermediate.parts) == 1:
            return Intermediate(parts=(text.strip(),))
        return super().hand_over(item, text)

    def read_answer(self, text: str) -> str | None:
        """The last number where all answers of the file are numbers, else the whole text, made plain."""
        return last_number(text) if self._numeric else plain(text)

    def _make(self, record: Record, style: Style) -> Item:
        if record.image is None:
            canvas = Canvas(style)
            try:
                write_page(canvas, record.question)
            except TaskError as error:
                raise TaskError(f"{record.where}, field 'question': {error}") from None
            image, boxes, question, words = canvas.image, tuple(canvas.boxes), SOLVE, self._wording or PAGE
        else:
            image, boxes, question = record.picture(), record.boxes, record.question
            words = self._wording or PICTURE
        return Item(
            id=record.id,
            task=self.name,
            image=image,
            question=question,
            intermediate=Intermediate(parts=record.parts, separator=", " if len(record.parts) > 1 else " "),
            answer=record.answer,
            variables=record.variables,
            types=record.types,
            boxes=boxes,
            group=record.group or record.id,
            wording=replace(words, perceive=record.perceive) if record.perceive else words,
            source=Origin(record, style),
        )


def _pair_of(record: Record) -> str:
    """The id of a record's counterfactual partner."""
    if record.pair is None:
        raise TaskError(
            f"{record.where}: no counterfactual partner; add the field 'pair' with the id of a "
            "record that asks the same, and has another intermediate and answer"
        )
    return record.pair


@lru_cache(maxsize=8)
def _order(size: int, seed: int) -> NDArray[np.int64]:
    """The records' order."""
    return np.random.default_rng(seed).permutation(size) if seed else np.arange(size)


def plain(text: str) -> str | None:
    """Give a text without case, outer punctuation, leading article, repeated spaces; numbers in one form."""
    words = " ".join(unicodedata.normalize("NFKC", text).translate(_QUOTES).casefold().split())
    words = _LEAD.sub("", words.strip(" .,;:!?\"'`*()[]{}"), count=1)
    return canonical_number(words) or words or None
