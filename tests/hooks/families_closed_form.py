"""Where the tokens of a picture are in it, by each family's arithmetic, written out here for the tiny checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import ceil, floor, sqrt
from typing import NamedTuple

Rect = tuple[float, float, float, float]  # left, top, right, bottom
Range = tuple[float, float]


class Tokens(NamedTuple):
    """The tokens of one picture, stack by stack: rectangles in the picture's pixels, None where nothing is shown."""

    vision: list[Rect | None]
    projector: list[Rect | None]
    lm: list[Rect | None]


def closed_form(name: str, size: tuple[int, int], n: int) -> Tokens:
    """Tokens of a picture of `size` (width, height), one of `n` in its prompt."""
    return _FORMS[name](*size, n)


def crossed(columns: Sequence[Range], rows: Sequence[Range]) -> list[Rect]:
    """Rectangles of a grid, row by row."""
    return [(left, top, right, bottom) for top, bottom in rows for left, right in columns]


def steps(count: int, length: float, start: float = 0) -> list[Range]:
    """Ranges of `length` one after another."""
    return [(start + length * k, start + length * (k + 1)) for k in range(count)]


def cells(rows: int, columns: int, side: float, left: float = 0, top: float = 0) -> list[Rect]:
    """A grid of squares in the pixels of a view."""
    return crossed(steps(columns, side, left), steps(rows, side, top))


def drawn(rects: Sequence[Rect], x: float, y: float, left: float = 0, top: float = 0) -> list[Rect]:
    """Rectangles of a view in the pixels of the picture, which begins at (left, top) and is drawn 1/x by 1/y large."""
    return [((a - left) * x, (b - top) * y, (c - left) * x, (d - top) * y) for a, b, c, d in rects]


def _cropped(width: int, height: int, n: int) -> Tokens:
    """LLaVA 1.5: the shorter side to 32, the middle cut out."""
    wide, high = (32, int(32 * height / width)) if width <= height else (int(32 * width / height), 32)
    patches = drawn(cells(4, 4, 8), width / wide, height / high, -int((wide - 32) / 2), -int((high - 32) / 2))
    return Tokens([None, *patches], patches, patches)


def _stretched(width: int, height: int, n: int, *, patch: int, token: int) -> Tokens:
    """PaliGemma, Gemma 3: 32 by 32 pixels, whatever the shape was."""
    patches, tokens = (drawn(cells(32 // side, 32 // side, side), width / 32, height / 32) for side in (patch, token))
    return Tokens(patches, tokens, tokens)


def _anyres(
    width: int, height: int, n: int, *, tile: int, patch: int, grids: Sequence[tuple[int, int]], most: int, prefix: int
) -> Tokens:
    """LLaVA-NeXT and OneVision: an overview, and tiles of a canvas that the picture was fitted into."""
    side, big = tile // patch, max(width, height)
    view = cells(side, side, patch)
    if most and n > 1:  # OneVision pads the pictures of several to squares
        shift = ((big - edge) // 2 * tile / big for edge in (width, height))
        square = drawn(view, big / tile, big / tile, *shift)
        return Tokens(square, square, [*square, None])
    high, wide = _roomiest(width, height, [(rows * tile, columns * tile) for rows, columns in grids])
    if wide / width < high / height:
        new_width, new_height = wide, min(ceil(height * (wide / width)), high)
    else:
        new_width, new_height = min(ceil(width * (high / height)), wide), high
    inside = partial(
        drawn, x=width / new_width, y=height / new_height, left=(wide - new_width) // 2, top=(high - new_height) // 2
    )
    views = [drawn(view, width / tile, height / tile)]
    views += [inside(cells(side, side, patch, x, y)) for y in range(0, high, tile) for x in range(0, wide, tile)]
    rows, columns = (
        [(y, y + patch) for t in range(0, edge, tile) for y, _ in steps(side, patch, t)] for edge in (high, wide)
    )
    if width / height > len(columns) / len(rows):
        rows = _middle(rows, int(round(height * (len(columns) / width), 7)))
    else:
        columns = _middle(columns, int(round(width * (len(rows) / height), 7)))
    excess = sqrt(len(rows) * len(columns) / (most * side**2)) if most else 0
    if excess > 1.1:
        rows, columns = (_bilinear(ranges, int(len(ranges) // excess)) for ranges in (rows, columns))
    packed: list[Rect | None] = [*views[0]]
    for row in rows:
        packed += [*inside(crossed(columns, [row])), None]
    begun: list[Rect | None] = [None] * prefix
    return Tokens([x for each in views for x in (*begun, *each)], [x for each in views for x in each], packed)


def _roomiest(width: int, height: int, canvases: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The canvas (height, width) that keeps most pixels, and of those the smallest."""

    def kept(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[1] / width, canvas[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, -canvas[0] * canvas[1]

    return max(canvases, key=kept)


def _middle(ranges: list[Range], n: int) -> list[Range]:
    drop = (len(ranges) - n) // 2
    return ranges[drop : len(ranges) - drop]


def _bilinear(ranges: list[Range], n: int) -> list[Range]:
    """Each of `n` is mixed from the one or two nearest."""
    out = []
    for k in range(n):
        at = max((k + 0.5) * len(ranges) / n - 0.5, 0.0)
        low = floor(at + 1e-9)
        high = min(low + 1, len(ranges) - 1) if at - low > 1e-6 else low
        out.append((ranges[low][0], ranges[high][1]))
    return out


def _qwen(width: int, height: int, n: int, *, windows: bool = False) -> Tokens:
    """Patches of 8 in blocks of 2 x 2; Qwen2.5 orders the blocks by windows of 2 x 2 of them."""
    rows, columns = (round(edge / 16) for edge in (height, width))
    if rows * columns > 40:
        shrink = sqrt(height * width / (40 * 256))
        rows, columns = (max(1, floor(edge / shrink / 16)) for edge in (height, width))
    elif rows * columns < 4:
        grow = sqrt(4 * 256 / (height * width))
        rows, columns = (ceil(edge * grow / 16) for edge in (height, width))
    inside = partial(drawn, x=width / (16 * columns), y=height / (16 * rows))
    order = list(product(range(rows), range(columns)))
    if windows:
        order.sort(key=lambda place: (place[0] // 2, place[1] // 2, place))
    patches = [patch for row, column in order for patch in inside(cells(2, 2, 8, 16 * column, 16 * row))]
    tokens = [inside(cells(1, 1, 16, 16 * column, 16 * row))[0] for row, column in order]
    return Tokens(patches, tokens, inside(cells(rows, columns, 16)))


def _mllama(width: int, height: int, n: int) -> Tokens:
    """At most four tiles of 32, the picture in their top left corner; no token of its own in the prompt."""
    scales = {
        (rows, columns): min(32 * rows / height, 32 * columns / width)
        for rows, columns in product(range(1, 5), repeat=2)
        if rows * columns <= 4
    }
    up = [scale for scale in scales.values() if scale >= 1]
    best = min(up) if up else max(scales.values())
    rows, columns = min((grid for grid in scales if scales[grid] == best), key=lambda grid: grid[0] * grid[1])
    high, wide = (min(max(edge, 32), 32 * count) for edge, count in ((height, rows), (width, columns)))
    if wide / width < high / height:
        high = min(floor(height * (wide / width)) or 1, high)
    else:
        wide = min(floor(width * (high / height)) or 1, wide)
    used = [
        drawn(cells(4, 4, 8, 32 * column, 32 * row), width / wide, height / high)
        for row, column in product(range(rows), range(columns))
    ]
    absent = 4 - len(used)
    vision = [x for tile in used for x in (None, *tile, *[None] * 7)] + [None] * 24 * absent
    return Tokens(vision, [x for tile in used for x in (None, *tile)] + [None] * 17 * absent, [None])


def _molmo2(width: int, height: int, n: int) -> Tokens:
    """Crops of 5 x 5 patches of 8, one every 3 of them; tokens of 2 x 2 patches of the canvas, or of what is left."""
    grids = sorted(
        (each for each in product(range(1, 5), repeat=2) if each[0] * each[1] <= 4), key=lambda g: (g[0] * g[1], g[0])
    )
    scales = [min(24 * rows / (height - 16), 24 * columns / (width - 16)) for rows, columns in grids]
    up = [scale for scale in scales if scale >= 1]
    rows, columns = grids[scales.index(min(up) if up else max(scales))]
    high, wide = 24 * rows + 16, 24 * columns + 16
    inside = partial(drawn, x=width / wide, y=height / high)
    overview = partial(drawn, x=width / 40, y=height / 40)
    vision = overview(cells(5, 5, 8))
    for row, column in product(range(rows), range(columns)):
        vision += inside(cells(5, 5, 8, 24 * column, 24 * row))

    def pairs(length: int) -> list[Range]:
        return [(start, min(start + 16, length)) for start in range(0, length, 16)]

    tokens = overview(crossed(pairs(40), pairs(40))) + inside(crossed(pairs(wide), pairs(high)))
    return Tokens(vision, tokens, tokens)


def _internvl(width: int, height: int, n: int) -> Tokens:
    """At most six tiles of 32 in the grid nearest in shape, and a thumbnail unless there is one tile."""
    grids = [each for each in product(range(1, 7), repeat=2) if each[0] * each[1] <= 6]  # (columns, rows)
    best, off = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width / height - columns / rows)
        if apart < off or (apart == off and width * height > 0.5 * 32 * 32 * columns * rows):
            best, off = (columns, rows), apart
    return _tiles(width, height, *best, tile=32, patch=8, token=16, prefix=1)


def _idefics(width: int, height: int, n: int, *, tile: int, patch: int, token: int) -> Tokens:
    """The longer side to three tiles, the shorter to as many as cover it; then all of it in one."""

    def shorter(longer: int, ratio: float) -> int:
        length = int(longer / ratio)
        return length + length % 2

    ratio = width / height
    wide, high = (3 * tile, shorter(3 * tile, ratio)) if ratio >= 1 else (shorter(3 * tile, 1 / ratio), 3 * tile)
    return _tiles(width, height, ceil(wide / tile), ceil(high / tile), tile=tile, patch=patch, token=token, prefix=0)


def _tiles(
    width: int, height: int, columns: int, rows: int, *, tile: int, patch: int, token: int, prefix: int
) -> Tokens:
    """Tiles of a stretched picture, row by row, and, if there are several, all of it once more in one."""

    def in_tiles(side: int) -> list[list[Rect]]:
        count = tile // side
        found = [
            drawn(
                cells(count, count, side, tile * column, tile * row), width / (tile * columns), height / (tile * rows)
            )
            for row, column in product(range(rows), range(columns))
        ]
        whole = [drawn(cells(count, count, side), width / tile, height / tile)]
        return found + (whole if rows * columns > 1 else [])

    begun: list[Rect | None] = [None] * prefix
    tokens = [x for each in in_tiles(token) for x in each]
    return Tokens([x for each in in_tiles(patch) for x in (*begun, *each)], [*tokens], [*tokens])


def _pixtral(width: int, height: int, n: int, *, patch: int, block: int) -> Tokens:
    """At most 48 pixels long, each side a whole number of tokens."""
    shrink = max(height / 48, width / 48, 1)
    side = patch * block
    rows, columns = (ceil(floor(edge / shrink) / side) for edge in (height, width))
    inside = partial(drawn, x=width / (side * columns), y=height / (side * rows))
    tokens = inside(cells(rows, columns, side))
    return Tokens(inside(cells(rows * block, columns * block, patch)), [*tokens], [*tokens])


def _gemma4(width: int, height: int, n: int) -> Tokens:
    """As many tokens of 6 by 6 pixels as 70 allow; the projector's others hold nothing."""
    grow = sqrt(70 * 36 / (width * height))
    rows, columns = (floor(grow * edge / 6) for edge in (height, width))
    tokens = drawn(cells(rows, columns, 6), width / (6 * columns), height / (6 * rows))
    return Tokens([], tokens + [None] * (70 - len(tokens)), [*tokens])


_NEXT = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_FORMS: dict[str, Callable[[int, int, int], Tokens]] = {
    "llava": _cropped,
    "llava_next": partial(_anyres, tile=24, patch=8, grids=_NEXT, most=0, prefix=1),
    "llava_onevision": partial(_anyres, tile=26, patch=8, grids=[*product(range(1, 7), repeat=2)], most=9, prefix=0),
    "qwen2_vl": _qwen,
    "qwen2_5_vl": partial(_qwen, windows=True),
    "qwen3_vl": _qwen,
    "mllama": _mllama,
    "molmo2": _molmo2,
    "internvl": _internvl,
    "idefics3": partial(_idefics, tile=32, patch=8, token=16),
    "smolvlm": partial(_idefics, tile=38, patch=6, token=18),
    "paligemma": partial(_stretched, patch=8, token=8),
    "paligemma2": partial(_stretched, patch=8, token=8),
    "gemma3": partial(_stretched, patch=4, token=8),
    "mistral3": partial(_pixtral, patch=4, block=2),
    "pixtral": partial(_pixtral, patch=8, block=1),
    "gemma4_unified": _gemma4,
}
