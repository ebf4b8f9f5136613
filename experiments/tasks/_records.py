"""The user's own examples, one JSON object in a line, checked before anything is done with them."""

from __future__ import annotations

import json
import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps

from seamscope.hooks import Box, TaskError

from ._numbers import canonical_number
from ._pairs import check_ids, check_pairs, grouped
from ._record import UNREADABLE, Record

FIELDS: Final = ("image", "question", "intermediate", "answer", "id", "variables", "types", "boxes", "pair")
OPTIONAL: Final = ("group", "perceive")
WORKED: Final = "####"  # GSM8K puts the reasoning before it and the answer behind it


def read_records(path: Path) -> tuple[Record, ...]:
    """Read and check a whole file; the first thing that is wrong is a `TaskError` with line and field."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise TaskError(f"cannot read {path}: {reason}") from None
    rows = [(f"{path}, line {k}", line) for k, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise TaskError(f"{path} holds no records; expected one JSON object in each line")
    records = [_Row(where, line, path).record() for where, line in rows]
    check_ids(records)
    check_pairs(records)
    return grouped(records)


class _Row:
    """One line while it is being checked."""

    def __init__(self, where: str, line: str, path: Path) -> None:
        self.where, self.path = where, path
        try:
            self.data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TaskError(f"{where}: this is not JSON ({error})") from None
        if not isinstance(self.data, dict):
            raise TaskError(f"{where}: expected a JSON object, got {_kind(self.data)}")
        for name in self.data:
            near = get_close_matches(name, (*FIELDS, *OPTIONAL), n=1, cutoff=0.8)
            if near and near[0] != name and near[0] not in self.data:
                raise self.error(name, f"unknown; is it {near[0]!r}?")

    def error(self, name: str, reason: str) -> TaskError:
        return TaskError(f"{self.where}, field {name!r}: {reason}")

    def record(self) -> Record:
        """Check every field."""
        worked = isinstance(self.data.get("answer"), str) and WORKED in self.data["answer"]
        answer = self.answer(worked=worked)
        image = None if worked and self.data.get("image") is None else self.image()
        parts = (self.text("question"),) if image is None else self.parts()
        return Record(
            where=self.where,
            id=self.optional("id") or f"{self.path.stem}-{self.where.rpartition(' ')[2]}",
            image=image,
            question=self.text("question"),
            parts=parts,
            answer=answer,
            variables=self.labels("variables"),
            types=self.types(),
            boxes=self.boxes(len(parts), image),
            pair=self.optional("pair"),
            group=self.optional("group"),
            perceive=self.optional("perceive"),
        )

    def text(self, name: str) -> str:
        """A text that has to be there."""
        value = self.data.get(name)
        if value is None:
            raise self.error(name, "missing")
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, f"expected a text, got {_kind(value)}")
        return value.strip()

    def optional(self, name: str) -> str | None:
        """A text or whole number, or nothing."""
        value = self.data.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return None if value is None else self.text(name)

    def answer(self, *, worked: bool) -> str:
        """A text or number; behind the last `####` where there is one, and then a number."""
        value = self.data.get("answer")
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return canonical_number(f"{value:f}" if isinstance(value, float) else str(value)) or str(value)
        text = self.text("answer").rpartition(WORKED)[2].strip()
        number = canonical_number(text)
        if worked and number is None:
            raise self.error("answer", f"expected a number behind the last {WORKED}, got {text!r}")
        return number or text

    def image(self) -> Path:
        """A file with an image that can be opened, relative to the file of records."""
        if self.data.get("image") is None:
            raise self.error("image", f"missing; without one, the answer has to end in '{WORKED} number', as in GSM8K")
        path = self.path.parent / self.text("image")
        if not path.is_file():
            raise self.error("image", f"there is no file {path}")
        try:
            with Image.open(path) as file:
                file.verify()
        except UNREADABLE as error:
            raise self.error("image", f"cannot read {path} ({error})") from None
        return path

    def parts(self) -> tuple[str, ...]:
        """What the visual skill should say: a text, or one text for each object."""
        value = self.data.get("intermediate")
        if not isinstance(value, list):
            return (self.text("intermediate"),)
        if not value or not all(isinstance(part, str) and part.strip() for part in value):
            raise self.error("intermediate", "expected a text, or a list of one or more texts")
        return tuple(part.strip() for part in value)

    def labels(self, name: str) -> dict[str, str]:
        """Names with labels."""
        value = self.data.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(name, f"expected an object of names and labels, got {_kind(value)}")
        for key, label in value.items():
            if not isinstance(label, str | int | float):
                raise self.error(name, f"the label of {key!r} is {_kind(label)}; expected a text or number")
        return {key: str(label) for key, label in value.items()}

    def types(self) -> dict[str, str]:
        """The finer type of each variable; what is seen as a whole, where it is not given."""
        given, variables = self.labels("types"), self.labels("variables")
        for name in given:
            if name not in variables:
                raise self.error("types", f"{name!r} is not among the variables: {', '.join(variables)}")
        whole = self.data.get("intermediate", self.data["question"])
        return {name: given.get(name, f"{label}: {whole}") for name, label in variables.items()}

    def boxes(self, parts: int, image: Path | None) -> tuple[Box, ...]:
        """One box [left, top, right, bottom] in pixels for each part, or none at all."""
        value = self.data.get("boxes")
        if value is None:
            return ()
        if image is None:
            raise self.error("boxes", "a question that is drawn as the picture gets its box from the drawing")
        if not isinstance(value, list):
            raise self.error("boxes", f"expected a list of [left, top, right, bottom], got {_kind(value)}")
        if len(value) != parts:
            raise self.error(
                "boxes",
                f"there are {len(value)}, for {parts} texts in 'intermediate'; give a list of texts",
            )
        with Image.open(image) as file:
            width, height = ImageOps.exif_transpose(file).size
        return tuple(self.box(k, corners, width, height) for k, corners in enumerate(value))

    def box(self, k: int, corners: Any, width: int, height: int) -> Box:
        """One box inside an image of this size."""
        numbers = isinstance(corners, list) and all(type(edge) in (int, float) for edge in corners)
        if not numbers or len(corners) != 4:
            raise self.error("boxes", f"box {k} is {corners}; expected [left, top, right, bottom]")
        left, top, right, bottom = corners
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise self.error("boxes", f"box {k} is {corners}; expected it inside the {width} x {height} image")
        return Box(left=left, top=top, right=right, bottom=bottom)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return "an empty text" if value == "" else names.get(type(value), "a number")
