"""The chat template around a prompt: the text for the tokenizer, and where the prompt's pieces are in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seamscope.hooks._errors import ModelError, SpanError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from seamscope.hooks._prompt import Prompt

# A word that no prompt contains and no template changes; it shows where a template puts the user's text.
_MARKER = "SEAMSCOPEMARKER"
RESERVED = ("image", "last", "answer", "prompt")


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


def frame(processor: Any, prompt: Prompt, name: str, answer: str | None = None) -> Framed:
    """Render a prompt with the processor's chat template, followed by `answer` and the end-of-sequence token.

    `name` names the item in errors: a `SpanError` if the text contains the image placeholder, if a segment
    asks for a reserved span, or if the template does not contain the prompt's text as it is.
    """
    _validate(processor, prompt, name)
    text, start, room = _render(processor, prompt, name)
    marks = [clipped for mark in _segment_marks(prompt, start) if (clipped := mark.clip(room))]
    if answer is not None:
        ending = answer + (processor.tokenizer.eos_token or "")
        marks.append(Mark("answer", len(text), len(text) + len(ending)))
        text += ending
    return Framed(text, tuple(marks))


def _validate(processor: Any, prompt: Prompt, name: str) -> None:
    if processor.image_token in prompt.text:
        raise SpanError(f"the text of item {name!r} contains the image placeholder {processor.image_token!r}")
    for span in (span for segment in prompt.segments for span in segment.spans):
        if span.split(".")[0] in RESERVED:
            raise SpanError(f"item {name!r} names a segment {span!r}; the names {', '.join(RESERVED)} are reserved")


def _render(processor: Any, prompt: Prompt, name: str) -> tuple[str, int, tuple[int, int]]:
    """Give the conversation, the character at which the prompt's text starts, and the range it may fill."""
    before, _, after = _conversation(processor, _MARKER, len(prompt.pictures)).partition(_MARKER)
    text, rendered = prompt.text, _conversation(processor, prompt.text, len(prompt.pictures))
    for lead, kept in ((0, text), (len(text) - len(text.lstrip()), text.strip())):  # some templates strip it
        if rendered == before + kept + after:
            return rendered, len(before) - lead, (len(before), len(before) + len(kept))
    raise SpanError(f"the chat template changes the text of item {name!r}, so its segments cannot be found")


def _conversation(processor: Any, text: str, n_images: int) -> str:
    if not getattr(processor, "chat_template", None):
        raise ModelError(f"the checkpoint's {type(processor).__name__} has no chat template")
    content = [{"type": "image"}] * n_images + [{"type": "text", "text": text}]
    turn = [{"role": "user", "content": content}]
    rendered: str = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return rendered


def _segment_marks(prompt: Prompt, start: int) -> Iterator[Mark]:
    for segment in prompt.segments:
        stop = start + len(segment.text)
        yield from (Mark(span, start, stop) for span in segment.spans)
        start = stop
