"""How a playing card looks: plainly for the small profile, like a real one for the full."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from PIL import Image, ImageDraw

from seamscope.hooks import Box

from ._canvas import FINE, Canvas, Ink
from ._style import CAPITALS, HANDWRITTEN, font

SYMBOLS: Final = {"spades": "♠", "hearts": "♥", "diamonds": "♦", "clubs": "♣"}
RED: Final = (200, 25, 35)
BLACK: Final = (20, 20, 25)
WHITE: Final = (255, 255, 255)
EDGE: Final = (90, 90, 90)
GOLD: Final = (232, 178, 42)
SKIN: Final = (246, 218, 190)
PANEL: Final = (250, 245, 228)


def draw_card(canvas: Canvas, at: tuple[float, float, float, float], *, rank: str, suit: str) -> Box:
    """Draw a card with these corners (left, top, right, bottom) and note its box."""
    ink = RED if suit in ("hearts", "diamonds") else BLACK
    left, top, right, bottom = map(round, at)  # as Pillow rounds the corners of a rounded rectangle
    if canvas.style.profile.name == "small":
        radius = 2 * canvas.style.profile.unit
        canvas.draw.rounded_rectangle(at, radius=radius, fill=WHITE, outline=EDGE)
        _small_face(canvas, at, rank, suit, ink)
        written = canvas.style.font == HANDWRITTEN  # then the rank may look over the edge
        above = round(at[1] + 2 - (1 - CAPITALS) / 2 * _largest(canvas, at)) if written else top
        return canvas.bound(left, min(top, above), right, bottom)
    box = canvas.bound(left, top, right, bottom)
    _full_card(canvas, box, rank, suit, ink)
    return box


def _largest(canvas: Canvas, at: tuple[float, float, float, float]) -> int:
    """The height of a rank on a small card, in pixels, where nothing makes it smaller."""
    return round((0.42 + 0.06 * canvas.style.size) * (at[3] - at[1]))


def _small_face(canvas: Canvas, at: tuple[float, float, float, float], rank: str, suit: str, ink: Ink) -> None:
    """Rank above suit, as large as the card allows."""
    left, top, right, bottom = at
    middle, pixels = (left + right) / 2, _largest(canvas, at)
    while canvas.width(rank, pixels=pixels) > right - left - 3:
        pixels -= 1
    canvas.word((middle - canvas.width(rank, pixels=pixels) / 2, top + 2), rank, pixels=pixels, ink=ink)
    face = font("sans", round(0.5 * (bottom - top)))
    canvas.draw.text((middle, bottom - 2), SYMBOLS[suit], font=face, fill=ink, anchor="mb")


def _full_card(canvas: Canvas, box: Box, rank: str, suit: str, ink: Ink) -> None:
    """A card that reads the same upside down, but for the pips in its middle."""
    tile = canvas.tile(int(box.right - box.left), int(box.bottom - box.top))
    width, height = tile.image.size
    line = max(round(0.008 * width), FINE)
    tile.draw.rounded_rectangle(
        (0, 0, width - 1, height - 1), radius=0.07 * width, fill=WHITE, outline=EDGE, width=line
    )
    if rank in COURT:
        _court(tile, rank, suit, ink)
    else:
        _pips(tile, rank, suit, ink)
    _corners(tile, rank, suit, ink)
    canvas.put(tile, (int(box.left), int(box.top)))


def _corners(tile: Canvas, rank: str, suit: str, ink: Ink) -> None:
    """Rank above suit at the left top, and the same turned round at the right bottom."""
    width, height = tile.image.size
    column, pixels = 0.115 * width, round(0.2 * width)
    while tile.width(rank, pixels=pixels) > 0.19 * width:
        pixels -= 1
    index = tile.tile(1, 1)
    index.image = Image.new("RGBA", (width, height), (*ink, 0))
    index.draw = ImageDraw.Draw(index.image)
    top = 0.06 * width
    index.word((column - index.width(rank, pixels=pixels) / 2, top), rank, pixels=pixels, ink=ink)
    _stamp(index.image, suit, (column, top + 0.25 * width), 0.12 * width, ink)
    for layer in (index.image, index.image.transpose(Image.Transpose.ROTATE_180)):
        tile.image.alpha_composite(layer)


def _pips(tile: Canvas, rank: str, suit: str, ink: Ink) -> None:
    """As many pips as the card counts, upside down in the lower half; the ace has one large one."""
    width, height = tile.image.size
    size = (0.46 if rank == "A" else 0.17) * width
    for across, down in PIPS[rank]:
        at = (0.5 + 0.19 * across) * width, height / 2 + 0.5 * down * width
        _stamp(tile.image, suit, at, size, ink, turned=down > 0)


def _court(tile: Canvas, rank: str, suit: str, ink: Ink) -> None:
    """A framed figure of king, queen or jack, and the same turned round below it."""
    width, height = tile.image.size
    left, top = round(0.23 * width), round(0.11 * width)
    size = (width - 2 * left, height - 2 * top)
    half = Image.new("RGBA", (size[0], size[1] // 2), (*PANEL, 255))
    _figure(half, rank, ink)
    _stamp(half, suit, (0.17 * size[0], 0.15 * size[0]), 0.22 * size[0], ink)
    panel = Image.new("RGBA", size, (*PANEL, 255))
    panel.paste(half, (0, 0))
    panel.paste(half.transpose(Image.Transpose.ROTATE_180), (0, size[1] - half.height))
    line = max(round(0.008 * width), FINE)
    ImageDraw.Draw(panel).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=ink, width=line)
    tile.image.paste(panel, (left, top))


def _figure(half: Image.Image, rank: str, ink: Ink) -> None:
    """Robe, hair, face and what is worn on the head; lengths are shares of the panel's width."""
    draw, w, bottom = ImageDraw.Draw(half), half.width, half.height
    line = max(round(0.012 * w), 2)

    def points(*shares: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * w, y * w) for x, y in shares]

    low = bottom / w
    draw.polygon(points((0.08, low), (0.26, 0.74), (0.74, 0.74), (0.92, low)), fill=ink)
    draw.polygon(points((0.4, low), (0.36, 0.72), (0.64, 0.72), (0.6, low)), fill=GOLD)
    hair = {"K": (120, 120, 125), "Q": (150, 92, 40), "J": (205, 160, 70)}[rank]
    draw.ellipse(points((0.28, 0.28), (0.72, 0.82 if rank == "Q" else 0.74)), fill=hair)
    draw.ellipse(points((0.34, 0.32), (0.66, 0.72)), fill=SKIN, outline=BLACK, width=line)
    if rank == "K":
        draw.chord(points((0.34, 0.4), (0.66, 0.8)), 10, 170, fill=hair)
    for x in (0.43, 0.57):
        draw.ellipse(points((x - 0.022, 0.48), (x + 0.022, 0.525)), fill=BLACK)
    draw.arc(points((0.43, 0.5), (0.57, 0.625)), 40, 140, fill=RED, width=2 * line)
    if rank == "J":
        draw.polygon(points((0.26, 0.36), (0.3, 0.2), (0.72, 0.16), (0.76, 0.36)), fill=ink)
        draw.line(points((0.7, 0.28), (0.86, 0.06)), fill=GOLD, width=4 * line)
        return
    draw.polygon(points(*COURT[rank]), fill=GOLD, outline=BLACK, width=line)
    if rank == "Q":
        for x, y in COURT[rank][1:-1:2]:
            draw.ellipse(points((x - 0.035, y - 0.04), (x + 0.035, y + 0.03)), fill=RED)


# the outline of the crown, in shares of the panel's width; a jack wears a cap
COURT: Final[dict[str, tuple[tuple[float, float], ...]]] = {
    "J": (),
    "Q": ((0.32, 0.36), (0.28, 0.18), (0.41, 0.27), (0.5, 0.13), (0.59, 0.27), (0.72, 0.18), (0.68, 0.36)),
    "K": ((0.3, 0.38), (0.28, 0.08), (0.4, 0.24), (0.5, 0.06), (0.6, 0.24), (0.72, 0.08), (0.7, 0.38)),
}


def _stamp(
    image: Image.Image, suit: str, at: tuple[float, float], size: float, ink: Ink, *, turned: bool = False
) -> None:
    """Put a suit's symbol with its middle at a point; `size` is its height in pixels."""
    mask = _symbol(suit, max(round(size), 1))
    if turned:
        mask = mask.transpose(Image.Transpose.ROTATE_180)
    corner = round(at[0] - mask.width / 2), round(at[1] - mask.height / 2)
    image.paste((*ink, 255), corner, mask)


@lru_cache(maxsize=128)
def _symbol(suit: str, height: int) -> Image.Image:
    """The ink of a suit's symbol, cut to its edges."""
    face = font("sans", 2 * height)
    left, top, right, bottom = face.getbbox(SYMBOLS[suit])
    mask = Image.new("L", (int(right - left) + 1, int(bottom - top) + 1))
    ImageDraw.Draw(mask).text((-left, -top), SYMBOLS[suit], font=face, fill=255)
    cut = mask.crop(mask.getbbox())
    return cut.resize((max(round(cut.width * height / cut.height), 1), height), Image.Resampling.BOX)


def _columns(*rows: float) -> list[tuple[float, float]]:
    return [(side, row) for row in rows for side in (-1.0, 1.0)]


# where the pips of a card lie: across from -1 to 1, down from -1 to 1
PIPS: Final[dict[str, list[tuple[float, float]]]] = {
    "A": [(0, 0)],
    "2": [(0, -1), (0, 1)],
    "3": [(0, -1), (0, 0), (0, 1)],
    "4": _columns(-1, 1),
    "5": [*_columns(-1, 1), (0, 0)],
    "6": _columns(-1, 0, 1),
    "7": [*_columns(-1, 0, 1), (0, -0.5)],
    "8": [*_columns(-1, 0, 1), (0, -0.5), (0, 0.5)],
    "9": [*_columns(-1, -0.33, 0.33, 1), (0, 0)],
    "10": [*_columns(-1, -0.33, 0.33, 1), (0, -0.66), (0, 0.66)],
}
