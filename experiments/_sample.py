"""The item that a check-up looks at: drawn by a task, or a picture of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps

from seamscope.hooks import Box, RunError

from .tasks import Item, Task
from .tasks._record import UNREADABLE

SPREAD: Final = (0.1, 0.375, 0.65)  # where the boxes begin in a picture that has none
SIDE: Final = 0.25  # of the picture's sides: how large they are


def sample_item(task: Task, *, profile: str, image: Path | None = None, boxes: Sequence[str] = ()) -> Item:
    """The first item of a task, shown `image` in place of its own picture where one is given.

    `boxes` are such as "10,20,110,90"; a picture of the user's without them gets three from its top left to its bottom
    right. Raises `RunError` for a file that holds no picture and a box that is not inside it.
    """
    item = task.items(1, profile_name=profile)[0]
    if image is not None:
        picture = _read(image)
        item = replace(item, id=image.name, image=picture, boxes=tuple(_spread(picture)))
    return replace(item, boxes=tuple(_box(text, item.image) for text in boxes)) if boxes else item


def _read(file: Path) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except UNREADABLE as error:
        raise RunError(f"cannot read the picture {file}: {error}") from None


def _spread(image: Image.Image) -> list[Box]:
    corners = [(image.width * at, image.height * at) for at in SPREAD]
    wide, high = image.width * SIDE, image.height * SIDE
    return [Box(left=left, top=top, right=left + wide, bottom=top + high) for left, top in corners]


def _box(text: str, image: Image.Image) -> Box:
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        raise RunError(f"--box is {text!r}; expected LEFT,TOP,RIGHT,BOTTOM in pixels, such as 10,20,110,90") from None
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise RunError(f"--box {text} is not inside the picture of {image.width} x {image.height} pixels")
    return Box(left=left, top=top, right=right, bottom=bottom)
