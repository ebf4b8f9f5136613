"""One example of the user's own data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from seamscope.hooks import Box, TaskError

UNREADABLE: Final = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True, kw_only=True)
class Record:
    """One example; `image` is `None` where the question itself is to be drawn as the picture."""

    where: str
    id: str
    image: Path | None
    question: str
    parts: tuple[str, ...]
    answer: str
    variables: dict[str, str]
    types: dict[str, str]
    boxes: tuple[Box, ...]
    pair: str | None
    group: str | None
    perceive: str | None

    def picture(self) -> Image.Image:
        """Load the image as RGB, upright, transparent parts white; `TaskError` where it cannot be."""
        try:
            with Image.open(str(self.image)) as file:
                upright = ImageOps.exif_transpose(file).convert("RGBA")
        except UNREADABLE as error:
            raise TaskError(f"{self.where}, field 'image': cannot read {self.image} ({error})") from None
        paper = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, upright).convert("RGB")
