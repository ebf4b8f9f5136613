"""What a model is asked, with the pieces of it that later become spans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from seamscope.hooks._errors import SpanError

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in the pixels of the original image: left and top inclusive, right and bottom exclusive."""

    left: float
    top: float
    right: float
    bottom: float

    def __post_init__(self) -> None:
        if not (self.left <= self.right and self.top <= self.bottom):
            raise SpanError(f"{self} has its edges in the wrong order, or no numbers for them")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and the boxes of the objects in it; object k becomes the span `image.object.k`."""

    image: Image
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Segment:
    """A piece of the user's text, and the spans that its tokens belong to, such as `intermediate.0`."""

    text: str
    spans: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One user turn: pictures first, then the text: the segments put end to end without separators."""

    segments: tuple[Segment, ...]
    pictures: tuple[Picture, ...] = ()

    @property
    def text(self) -> str:
        """The text of the turn."""
        return "".join(segment.text for segment in self.segments)


@runtime_checkable
class Promptable(Protocol):
    """Anything with a name that can say what it asks under a condition, such as a task's item."""

    @property
    def id(self) -> str:
        """A name that is unique among the items of a run."""

    def prompt(self, condition: str) -> Prompt:
        """Give the user turn that this item asks under `condition`."""
