"""The chat template around a prompt: the text for the tokenizer, and where the prompt's pieces are in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from seamscope.hooks._errors import SpanError
from seamscope.hooks.families import image_token_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from seamscope.hooks._prompt import Prompt
    from seamscope.hooks.families import Family

# A word that no prompt contains and no template changes; it shows where a template puts the user's text.
_MARKER = "SEAMSCOPEMARKER"
RESERVED = ("image", "last", "answer", "prompt", "generated")


@dataclass(frozen=True)
class Mark:
    """A named range of characters, the end excluded."""

    name: str
    start: int
    stop: int

    def clip(self, room: tuple[int, int]) -> Mark | None:
        """Give the part of it inside `room`, or None where there is none."""
        start, stop = max(self.start, room[0]), min(self.stop, room[1])
        return Mark(self.name, start, stop) if start < stop else None


@dataclass(frozen=True)
class Framed:
    """A prompt as text: the conversation with its answer, and the marks of its segments and its answer."""

    text: str
    marks: tuple[Mark, ...]


class Framer:
    """Writes prompts as texts for one model, and answers as that model would end them."""

    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self._render = partial(family.render, processor)
        words = [getattr(processor, f"{medium}_token", None) for medium in ("image", "video", "audio")]
        words.append(processor.tokenizer.convert_ids_to_tokens(image_token_id(model.config)))
        self._reserved = tuple(dict.fromkeys(str(word) for word in words if word))
        self.end = _turn_end(model, processor)

    def __call__(self, prompt: Prompt, name: str, answer: str | None = None) -> Framed:
        """Write a prompt, followed by `answer` and the token that ends a turn.

        `name` names the item in errors: a `SpanError` if the text contains a word that stands for pictures, if a
        segment asks for a reserved span, or if the template does not contain the prompt's text as it is.
        """
        _validate(self._reserved, prompt, name)
        text, start, room = self._written(prompt, name)
        marks = [clipped for mark in _segment_marks(prompt, start) if (clipped := mark.clip(room))]
        if answer is not None:
            marks.append(Mark("answer", len(text), len(text) + len(answer + self.end)))
            text += answer + self.end
        return Framed(text, tuple(marks))

    def _written(self, prompt: Prompt, name: str) -> tuple[str, int, tuple[int, int]]:
        """Give the conversation, the character at which the prompt's text starts, and the range it may fill."""
        n, text = len(prompt.pictures), prompt.text
        before, _, after = self._render(_MARKER, n).partition(_MARKER)
        rendered = self._render(text, n)
        for lead, kept in ((0, text), (len(text) - len(text.lstrip()), text.strip())):  # some templates strip it
            if rendered == before + kept + after:
                return rendered, len(before) - lead, (len(before), len(before) + len(kept))
        raise SpanError(f"the chat template changes the text of item {name!r}, so its segments cannot be found")


def _turn_end(model: Any, processor: Any) -> str:
    """The token that ends an answer: what the template puts after one, if generation ends there, or the usual one."""
    tokenizer, stops = processor.tokenizer, model.generation_config.eos_token_id
    turns = [{"role": role, "content": [{"type": "text", "text": _MARKER}]} for role in ("user", "assistant")]
    try:
        after = processor.apply_chat_template(turns, tokenize=False).rpartition(_MARKER)[2]
    except Exception:  # no template, or one that knows no assistant
        after = ""
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    if ids and ids[0] in ([stops] if isinstance(stops, int) else stops or []):
        return str(tokenizer.convert_ids_to_tokens(ids[0]))
    return tokenizer.eos_token or ""


def _validate(reserved: Sequence[str], prompt: Prompt, name: str) -> None:
    for word in reserved:
        if word in prompt.text:
            raise SpanError(f"the text of item {name!r} contains the placeholder {word!r}, which stands for a picture")
    for span in (span for segment in prompt.segments for span in segment.spans):
        if span.split(".")[0] in RESERVED:
            raise SpanError(f"item {name!r} names a segment {span!r}; the names {', '.join(RESERVED)} are reserved")


def _segment_marks(prompt: Prompt, start: int) -> Iterator[Mark]:
    for segment in prompt.segments:
        stop = start + len(segment.text)
        yield from (Mark(span, start, stop) for span in segment.spans)
        start = stop
