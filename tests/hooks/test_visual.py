"""Numbers of image tokens in a batch against counting them one by one."""

from __future__ import annotations

import numpy as np
import pytest

from seamscope.hooks import Box, Picture, Prompt, Segment
from seamscope.hooks._geometry import Geometry, ramp
from seamscope.hooks._layout import NOWHERE, Layout, chain, grid
from seamscope.hooks._visual import STACKS, visual_of

LEFT, RIGHT, OUTSIDE = (Box(left=x, top=0, right=x + 8, bottom=8) for x in (0, 8, 90))


def geometry(*, reverse: bool = False) -> Geometry:
    """One row of two patches, or reversed: a class token before them in the tower, a row's end behind in the prompt."""
    patches = grid(0, rows=1, columns=2, cell=8)
    vision = chain([NOWHERE, patches[::-1] if reverse else patches])
    return Geometry(Layout(vision=vision, projector=patches, lm=chain([patches, NOWHERE])), np.array([[1.0, 0, 1, 0]]))


def prompt(*boxes: tuple[Box, ...]) -> Prompt:
    return Prompt(segments=(Segment("?"),), pictures=tuple(Picture(image=ramp((16, 8)), boxes=own) for own in boxes))


@pytest.fixture
def visual():
    """Three rows: two pictures, none, and one whose patches the tower has in another order."""
    prompts = [prompt((LEFT, RIGHT), (RIGHT, OUTSIDE)), prompt(), prompt((LEFT,))]
    return visual_of(prompts, [[geometry(), geometry()], [], [geometry(reverse=True)]])


def test_every_stack_counts_its_tokens(visual):
    assert visual.sizes == {"vision": 9, "projector": 6, "lm": 9}
    assert set(visual.spans) == set(STACKS)
    assert [len(row) for row in visual.geometries] == [2, 0, 1]


def test_tokens_of_the_tower_are_numbered_through_the_batch_without_those_that_show_no_place(visual):
    """0 c, 1 a, 2 b | 3 c, 4 a, 5 b || || 6 c, 7 b, 8 a, where c are class tokens and a is left of b."""
    first, second, third = ({name: index.tolist() for name, index in row.items()} for row in visual.spans["vision"])
    assert first["image"] == [1, 2, 4, 5]
    assert (first["image.object.0"], first["image.object.1"], first["image.object.2"]) == ([1], [2], [5])
    assert second == {}
    assert third == {"image": [8, 7], "image.object.0": [8]}


def test_tokens_of_the_projector_are_numbered_through_the_batch(visual):
    first, _, third = ({name: index.tolist() for name, index in row.items()} for row in visual.spans["projector"])
    assert first["image"] == [0, 1, 2, 3]
    assert (first["image.object.1"], first["image.object.2"]) == ([1], [3])
    assert third == {"image": [4, 5], "image.object.0": [4]}


def test_tokens_of_the_prompt_are_numbered_in_their_row_and_all_of_them_are_the_image(visual):
    first, second, third = ({name: index.tolist() for name, index in row.items()} for row in visual.spans["lm"])
    assert first["image"] == [0, 1, 2, 3, 4, 5]
    assert (first["image.object.0"], first["image.object.2"]) == ([0], [4])
    assert second == {}
    assert third == {"image": [0, 1, 2], "image.object.0": [0]}


def test_objects_outside_the_picture_keep_their_number_and_have_no_span(visual):
    for stack in STACKS:
        assert "image.object.3" not in visual.spans[stack][0]
        assert "image.object.2" in visual.spans[stack][0]
