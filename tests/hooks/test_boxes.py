from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor

from seamscope.hooks import Box, SpanError
from seamscope.hooks._boxes import box_cells
from seamscope.hooks._families import Visual

SQUARE = SiglipImageProcessor(size={"height": 24, "width": 32})
CROPPED = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
PADDED = LlavaImageProcessor(do_pad=True, size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})


def cells(processor, box: Box, size: tuple[int, int], pixels: tuple[int, int]) -> list[int]:
    grid = pixels[0] // 8, pixels[1] // 8
    visual = Visual(grid=grid, patch=8, tokens=grid[0] * grid[1], dropped=0, prefix=0)
    return box_cells(processor, box, size=size, pixels=pixels, visual=visual)


sides = st.integers(8, 90)


@settings(deadline=None, max_examples=200)
@given(sides, sides, st.data())
def test_cells_are_those_whose_own_pixels_meet_the_box(width: int, height: int, data: st.DataObject):
    """The other way round, in exact arithmetic: from every patch back to the original image."""
    left, right = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    wanted = [
        row * 3 + column
        for row in range(3)
        for column in range(3)
        if max(left, Fraction(8 * column * width, 24)) < min(right, Fraction(8 * (column + 1) * width, 24))
        and max(top, Fraction(8 * row * height, 24)) < min(bottom, Fraction(8 * (row + 1) * height, 24))
    ]
    square = SiglipImageProcessor(size={"height": 24, "width": 24})
    assert cells(square, Box(left=left, top=top, right=right, bottom=bottom), (width, height), (24, 24)) == wanted


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([SQUARE, CROPPED, PADDED]), sides, sides, st.data())
@example(PADDED, 80, 20, None)
def test_every_patch_that_a_drawn_box_changes_is_among_the_cells(processor, width: int, height: int, data):
    """What the processor itself does with a white box on black, against what is said of it."""
    edges = [10, 70, 5, 15] if data is None else sorted(data.draw(st.lists(sides, min_size=2, max_size=2)))
    left, right = (edges[0], edges[1]) if data is None else (edges[0] % width, edges[1] % width)
    left, right = min(left, right), max(left, right) + 1
    top, bottom = height // 4, height // 4 + max(2, height // 3)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[top:bottom, left:right] = 255
    plain = np.zeros_like(image)
    shown, blank = (
        processor(Image.fromarray(each), return_tensors="np", do_normalize=False)["pixel_values"][0].mean(0)
        for each in (image, plain)
    )
    grid = shown.shape[0] // 8, shown.shape[1] // 8
    light = np.abs(shown - blank).reshape(grid[0], 8, grid[1], 8).mean((1, 3)).reshape(-1)
    size, bleed = (width, height), 2 * max(1, max(width, height) / 24)  # how far bicubic light can leak
    found = cells(processor, Box(left=left, top=top, right=right, bottom=bottom), size, shown.shape)
    reach = Box(left=left - bleed, top=top - bleed, right=right + bleed, bottom=bottom + bleed)
    assert set(np.flatnonzero(light > 0.35)) <= set(found)
    assert set(np.flatnonzero(light > 1e-3)) <= set(cells(processor, reach, size, shown.shape))


def test_a_box_that_ends_on_a_border_does_not_touch_the_next_patch():
    assert cells(SQUARE, Box(left=0, top=0, right=12, bottom=8), (32, 24), (24, 32)) == [0, 1]
    assert cells(SQUARE, Box(left=0, top=0, right=8, bottom=8), (32, 24), (24, 32)) == [0]
    assert cells(SQUARE, Box(left=0, top=0, right=8.01, bottom=8), (32, 24), (24, 32)) == [0, 1]
    square = SiglipImageProcessor(size={"height": 24, "width": 24})
    for size in range(8, 300):  # in floating point some thirds end a hair too far, others too early
        third = Box(left=size / 3, top=0, right=2 * size / 3, bottom=size / 3)
        assert cells(square, third, (size, size), (24, 24)) == [1]


def test_pixels_beyond_the_last_whole_patch_belong_to_none():
    """A tower of 384 pixels and patches of 14, as SigLIP's, looks at 378 of them."""
    strip = SiglipImageProcessor(size={"height": 30, "width": 30})  # three patches of 8 and 6 pixels left over
    whole = Box(left=0, top=0, right=60, bottom=60)
    assert cells(strip, whole, (60, 60), (30, 30)) == list(range(9))
    assert cells(strip, Box(left=30, top=0, right=34, bottom=8), (60, 60), (30, 30)) == [1, 2]
    assert cells(strip, Box(left=50, top=50, right=60, bottom=60), (60, 60), (30, 30)) == []


def test_a_box_without_area_has_the_patch_of_its_centre():
    assert cells(SQUARE, Box(left=20, top=10, right=20, bottom=10), (32, 24), (24, 32)) == [6]
    assert cells(SQUARE, Box(left=32, top=24, right=32, bottom=24), (32, 24), (24, 32)) == []


def test_a_box_outside_the_centre_crop_has_no_patch():
    wide = (96, 24)  # the crop keeps x from 36 to 60
    assert cells(CROPPED, Box(left=0, top=0, right=30, bottom=24), wide, (24, 24)) == []
    assert cells(CROPPED, Box(left=30, top=0, right=40, bottom=8), wide, (24, 24)) == [0]
    assert cells(CROPPED, Box(left=0, top=0, right=96, bottom=24), wide, (24, 24)) == list(range(9))


def test_padding_to_a_square_moves_boxes():
    tall = (10, 40)  # 15 pixels are added on the left and on the right
    assert cells(PADDED, Box(left=0, top=0, right=10, bottom=10), tall, (24, 24)) == [1]


def test_an_unknown_geometry_is_refused():
    processor = SimpleNamespace(do_resize=True, size={"height": 24, "width": 24})
    with pytest.raises(SpanError, match="an image of 50x40 became 48x24, expected 24x24"):
        cells(processor, Box(left=0, top=0, right=1, bottom=1), (50, 40), (24, 48))
