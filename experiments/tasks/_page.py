"""A text of any length as a picture: wrapped, and as large as it can be."""

from __future__ import annotations

from typing import Final

from seamscope.hooks import TaskError

from ._canvas import Canvas

LAYOUTS: Final = ("left", "centred")
SMALLEST: Final = 9  # pixels, below which nobody reads it
LEADING: Final = 1.3  # from line to line, of the height of the letters
SPACE: Final = 0.32


def write_page(canvas: Canvas, text: str) -> None:
    """Write a text on a canvas, line breaks kept, and note one box around it.

    Raises `TaskError` where it does not fit in letters that can be read.
    """
    side, unit = canvas.style.profile.canvas, canvas.style.profile.unit
    room = side - 6 * unit
    largest = max(int((5 + 3 * canvas.style.size) * unit), SMALLEST)
    for pixels in range(largest, SMALLEST - 1, -1):
        lines = _wrap(canvas, text, pixels=pixels, room=room)
        if lines is not None and len(lines) * LEADING * pixels <= room:
            return _write(canvas, lines, pixels=pixels)
    raise TaskError(
        f"a text of {len(text)} characters does not fit a canvas of {side} pixels "
        f"in letters of {SMALLEST} pixels; use the profile 'full', or shorten it"
    )


def _wrap(canvas: Canvas, text: str, *, pixels: int, room: float) -> list[list[str]] | None:
    """Break a text into lines of words; `None` where a word is too long for a line."""
    lines: list[list[str]] = []
    for paragraph in text.splitlines():
        lines.append([])
        for word in paragraph.split():
            if canvas.width(word, pixels=pixels) > room:
                return None
            if lines[-1] and _long(canvas, [*lines[-1], word], pixels=pixels) > room:
                lines.append([])
            lines[-1].append(word)
    return lines


def _long(canvas: Canvas, words: list[str], *, pixels: int) -> float:
    return sum(canvas.width(word, pixels=pixels) + SPACE * pixels for word in words) - SPACE * pixels


def _write(canvas: Canvas, lines: list[list[str]], *, pixels: int) -> None:
    side, margin = canvas.style.profile.canvas, 3 * canvas.style.profile.unit
    canvas.begin()
    dx, dy = canvas.style.shake(canvas.rng)
    top = (side - len(lines) * LEADING * pixels) / 2 + dy
    edges = []
    for k, words in enumerate(lines):
        long = _long(canvas, words, pixels=pixels)
        x = margin + dx if canvas.style.layout == "left" else (side - long) / 2 + dx
        edges += [x, x + long]
        for word in words:
            canvas.word((x, top + (k + 0.15) * LEADING * pixels), word, pixels=pixels)
            x += canvas.width(word, pixels=pixels) + SPACE * pixels
    over = 1 + 0.03 * pixels  # some letters reach beyond their advance
    canvas.bound(min(edges) - over, top, max(edges) + over, top + len(lines) * LEADING * pixels)
