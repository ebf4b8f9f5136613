"""Tokens in a picture, learned from a ramp, against what is worked out by hand and what real processors draw."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor

from seamscope.hooks import Box, ModelError, SpanError
from seamscope.hooks._geometry import SHARE, Geometry, map_views, ramp
from seamscope.hooks._layout import NOWHERE, Layout, chain, grid
from seamscope.hooks.families._rules import (
    class_tokens,
    colours,
    image_token_count,
    image_token_id,
    plain_extra,
    plain_layout,
    plain_render,
    plain_views,
    side_of,
    tile_cells,
)

SQUARE = SiglipImageProcessor(size={"height": 24, "width": 32})
THIRDS = SiglipImageProcessor(size={"height": 24, "width": 24})
CROPPED = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
PADDED = LlavaImageProcessor(do_pad=True, size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
PROCESSORS = {"square": SQUARE, "thirds": THIRDS, "cropped": CROPPED, "padded": PADDED}
PATCH, IMAGE = 8, 7  # a patch's side in pixels, the id of the image token
NEAR = 0.02  # of a token's width: how far a border that is read off a ramp may be from the true one


def model(*parameters: str) -> SimpleNamespace:
    """What the plain rules ask of a model: its patches, its image token, and the names of its parameters."""
    config = SimpleNamespace(vision_config=SimpleNamespace(patch_size=PATCH), image_token_id=IMAGE)
    return SimpleNamespace(config=config, named_parameters=lambda: [(name, None) for name in parameters])


def asked(pixels: torch.Tensor, n_tokens: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels, "input_ids": torch.tensor([[1, *[IMAGE] * n_tokens, 2]])}


def learned(processor, size: tuple[int, int]) -> Geometry:
    """Send a ramp through an image processor, with as many image tokens as there are whole patches."""
    pixels = processor(ramp(size), return_tensors="pt")["pixel_values"]
    inputs = asked(pixels, (pixels.shape[-2] // PATCH) * (pixels.shape[-1] // PATCH))
    whole = SimpleNamespace(image_processor=processor)
    maps = map_views(plain_views(model(), whole, inputs, 1), size)
    return Geometry(plain_layout(model(), whole, inputs, 1), maps)


@cache
def known(name: str, size: tuple[int, int]) -> Geometry:
    return learned(PROCESSORS[name], size)


def cells(name: str, box: Box, size: tuple[int, int]) -> list[int]:
    return known(name, size).holding("lm", box).tolist()


def box(left: float, top: float, right: float, bottom: float) -> Box:
    return Box(left=left, top=top, right=right, bottom=bottom)


sides = st.integers(8, 90)


def meets(low: int, high: int, start: Fraction, stop: Fraction) -> bool | None:
    """Whether a token from `start` to `stop` shows enough of an object, exactly; None where it hardly matters."""
    width = stop - start
    shared = (min(high, stop) - max(low, start)) / width
    beyond = shared - Fraction(SHARE)
    if high - low <= 2 * Fraction(SHARE) * width:  # thinner than what must be shown of it on both sides of a border
        middle = Fraction(low + high, 2)
        beyond = min(middle - start, stop - middle) / width
    return None if abs(beyond) < NEAR else beyond > 0


@settings(deadline=None, max_examples=300)
@given(sides, sides, st.data())
def test_cells_are_those_whose_own_pixels_meet_the_box(width: int, height: int, data: st.DataObject):
    """The other way round, in exact arithmetic: from every patch back to the original image."""
    left, right = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    found = cells("thirds", box(left, top, right, bottom), (width, height))
    assert found == sorted(found)
    assert found
    for cell in range(9):
        row, column = divmod(cell, 3)
        across = meets(left, right, Fraction(column * width, 3), Fraction((column + 1) * width, 3))
        down = meets(top, bottom, Fraction(row * height, 3), Fraction((row + 1) * height, 3))
        if across is False or down is False:
            assert cell not in found
        elif across and down:
            assert cell in found


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["square", "cropped", "padded"]), sides, sides, st.data())
@example("padded", 80, 20, None)
def test_every_patch_that_a_drawn_box_changes_is_among_the_cells(name: str, width: int, height: int, data):
    """What the processor itself does with a white box on black, against what is said of it."""
    assume(name != "padded" or max(width, height) <= 4 * min(width, height))  # else too few pixels are left to read
    edges = [10, 70, 5, 15] if data is None else sorted(data.draw(st.lists(sides, min_size=2, max_size=2)))
    left, right = (edges[0], edges[1]) if data is None else (edges[0] % width, edges[1] % width)
    left, right = min(left, right), max(left, right) + 1
    top, bottom = height // 4, height // 4 + max(2, height // 3)
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[top:bottom, left:right] = 255
    shown, blank = (
        PROCESSORS[name](Image.fromarray(each), return_tensors="np", do_normalize=False)["pixel_values"][0].mean(0)
        for each in (image, np.zeros_like(image))
    )
    rows, columns = shown.shape[0] // PATCH, shown.shape[1] // PATCH
    light = np.abs(shown - blank).reshape(rows, PATCH, columns, PATCH).mean((1, 3)).reshape(-1)
    size, bleed = (width, height), 2 * max(1, max(width, height) / 24)  # how far bicubic light can leak
    found = cells(name, box(left, top, right, bottom), size)
    reach = box(left - bleed, top - bleed, right + bleed, bottom + bleed)
    assert set(np.flatnonzero(light > 0.35)) <= set(found)
    assert set(np.flatnonzero(light > 1e-3)) <= set(cells(name, reach, size))


def test_a_token_that_shows_hardly_any_of_an_object_is_left_out_on_either_axis():
    tokens = grid(0, rows=2, columns=2, cell=10.0)
    flat = Geometry(Layout(vision=tokens, projector=tokens, lm=tokens), np.array([[2.0, 100.0, 2.0, 0.0]]))
    border = 20 * SHARE
    assert flat.holding("lm", box(100, 0, 120 + border - 0.01, 20)).tolist() == [0]
    assert flat.holding("lm", box(100, 0, 120 + border + 0.01, 20)).tolist() == [0, 1]
    assert flat.holding("lm", box(100, 0, 120, 20 + border - 0.01)).tolist() == [0]
    assert flat.holding("lm", box(100, 0, 120, 20 + border + 0.01)).tolist() == [0, 2]


@pytest.mark.parametrize("thickness", [0.0, 0.01, 0.04, 0.06, 0.09, 0.1, 0.11])
def test_an_object_as_thin_as_a_line_always_has_a_token(thickness: float):
    """On the border of two tokens neither may show enough of it."""
    tokens = grid(0, rows=1, columns=3, cell=10.0)
    strip = Geometry(Layout(vision=tokens, projector=tokens, lm=tokens), np.array([[1.0, 0.0, 1.0, 0.0]]))
    for left in np.arange(0, 30 - 10 * thickness, 0.07):
        found = strip.holding("lm", box(left, 0, left + 10 * thickness, 10)).tolist()
        assert found
        assert (left + 5 * thickness) // 10 in found
        assert len(found) <= 1 + (thickness > 0.1)


def test_a_box_that_ends_on_a_border_does_not_touch_the_next_patch():
    assert cells("square", box(0, 0, 12, 8), (32, 24)) == [0, 1]
    assert cells("square", box(0, 0, 8, 8), (32, 24)) == [0]
    assert cells("square", box(0, 0, 8.1, 8), (32, 24)) == [0]
    assert cells("square", box(0, 0, 8.6, 8), (32, 24)) == [0, 1]
    for size in range(8, 300):  # in floating point some thirds end a hair too far, others too early
        assert cells("thirds", box(size / 3, 0, 2 * size / 3, size / 3), (size, size)) == [1]


def test_pixels_beyond_the_last_whole_patch_belong_to_none():
    """A tower of 384 pixels and patches of 14, as SigLIP's, looks at 378 of them."""
    strip = learned(SiglipImageProcessor(size={"height": 30, "width": 30}), (60, 60))  # 6 pixels of 30 left over
    assert strip.holding("lm", box(0, 0, 60, 60)).tolist() == list(range(9))
    assert strip.holding("lm", box(30, 0, 34, 8)).tolist() == [1, 2]
    assert strip.holding("lm", box(50, 50, 60, 60)).tolist() == []


def test_a_box_without_area_has_the_patch_of_its_centre():
    assert cells("square", box(20, 10, 20, 10), (32, 24)) == [6]
    assert cells("square", box(33, 25, 33, 25), (32, 24)) == []


def test_a_box_outside_the_centre_crop_has_no_patch():
    wide = (96, 24)  # the crop keeps x from 36 to 60
    assert cells("cropped", box(0, 0, 30, 24), wide) == []
    assert cells("cropped", box(0, 0, 36, 24), wide) == []
    assert cells("cropped", box(30, 0, 40, 8), wide) == [0]
    assert cells("cropped", box(0, 0, 96, 24), wide) == list(range(9))


def test_padding_to_a_square_moves_boxes():
    tall = (10, 40)  # 15 pixels are added on the left and on the right
    assert cells("padded", box(0, 0, 10, 10), tall) == [1]
    assert cells("padded", box(0, 30, 10, 40), tall) == [7]


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (24, 16), (224, 225), (3000, 447)])
def test_a_ramp_rises_by_column_in_red_and_by_row_in_green(size: tuple[int, int]):
    drawn = np.asarray(ramp(size)).astype(int)
    assert drawn.shape == (size[1], size[0], 3)
    assert (drawn[..., 2] == 255).all()
    assert (drawn[..., 0] == drawn[:1, :, 0]).all()
    assert (drawn[..., 1] == drawn[:, :1, 1]).all()
    for steps, n in ((np.diff(drawn[0, :, 0]), size[0]), (np.diff(drawn[:, 0, 1]), size[1])):
        assert (steps >= 0).all()
        assert n > 224 or len(set(steps)) <= 1  # exact where there is a colour for each
    assert drawn.max() <= 255
    assert drawn.min() == 16


def view_of(size: tuple[int, int]) -> np.ndarray:
    return np.asarray(ramp(size)).transpose(2, 0, 1).astype(float)


def test_cuts_and_margins_are_read_off_exactly():
    """Tiles cut out of the ramp itself, without any resizing."""
    whole = view_of((60, 50))
    padded = np.zeros((3, 70, 64))
    padded[:, 7:57, 3:63] = whole
    views = [whole, whole[:, 10:40, 20:50], padded, np.zeros((3, 8, 8))]
    wanted = [[1, 0, 1, 0], [1, 20, 1, 10], [1, -3, 1, -7], [np.nan] * 4]
    assert map_views(views, (60, 50)) == pytest.approx(np.array(wanted), abs=1e-9, nan_ok=True)
    assert map_views([], (60, 50)).shape == (0, 4)


def test_enlarged_and_shrunk_copies_are_read_off():
    for factor in (2, 3):
        larger = view_of((60, 50)).repeat(factor, axis=1).repeat(factor, axis=2)
        smaller = view_of((60, 60)).reshape(3, 60 // factor, factor, 60 // factor, factor).mean((2, 4))
        assert map_views([larger], (60, 50))[0] == pytest.approx([1 / factor, 0, 1 / factor, 0], abs=0.02)
        assert map_views([smaller], (60, 60))[0] == pytest.approx([factor, 0, factor, 0], abs=1e-9)


def stretched(width: int, height: int) -> list[float]:
    return [width / 384, 0, height / 384, 0]


def cropped(width: int, height: int) -> list[float]:
    wide, high = (336, 336 * height // width) if width <= height else (336 * width // height, 336)
    scale_x, scale_y = width / wide, height / high
    return [scale_x, (wide - 336) // 2 * scale_x, scale_y, (high - 336) // 2 * scale_y]


def padded(width: int, height: int) -> list[float]:
    side = max(width, height)
    return [side / 336, -((side - width) // 2), side / 336, -((side - height) // 2)]


LARGE = {
    "stretched": (SiglipImageProcessor(size={"height": 384, "width": 384}), stretched),
    "cropped": (CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}), cropped),
    "padded": (
        LlavaImageProcessor(do_pad=True, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        padded,
    ),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("size", [(640, 480), (1024, 1024), (333, 500), (2000, 1500), (1280, 720), (300, 200)])
def test_borders_of_tokens_are_known_to_a_hundredth_of_their_width(name: str, size: tuple[int, int]):
    """With processors as published: 24 or 27 patches of 14 pixels to a side."""
    processor, exactly = LARGE[name]
    (scale_x, shift_x, scale_y, shift_y) = learned(processor, size).maps[0]
    wanted_x, moved_x, wanted_y, moved_y = exactly(*size)
    for at in (0, 336):
        assert abs(scale_x * at + shift_x - wanted_x * at - moved_x) < 0.01 * 14 * wanted_x
        assert abs(scale_y * at + shift_y - wanted_y * at - moved_y) < 0.01 * 14 * wanted_y


def bent(view: np.ndarray) -> np.ndarray:
    """Shows the left half of the picture at another scale than the right one."""
    return np.concatenate([view[:, :, :30].repeat(3, axis=2), view[:, :, 30:]], axis=2)


def halved(view: np.ndarray) -> np.ndarray:
    """Exchanges the left and the right half."""
    return np.concatenate([view[:, :, 30:], view[:, :, :30]], axis=2)


def folded(view: np.ndarray) -> np.ndarray:
    """Shows the picture beside its mirror image."""
    return np.concatenate([view, view[:, :, ::-1]], axis=2)


def mirrored(view: np.ndarray) -> np.ndarray:
    return view[:, :, ::-1]


def turned(view: np.ndarray) -> np.ndarray:
    return view.transpose(0, 2, 1)


@pytest.mark.parametrize("warp", [bent, halved, folded, mirrored, turned])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_processor_that_does_more_than_scale_and_shift_is_refused(warp, axis: int):
    view = view_of((60, 60)) if axis == 0 else view_of((60, 60)).transpose(0, 2, 1)
    warped = warp(view) if axis == 0 else warp(view).transpose(0, 2, 1)
    assert map_views([view_of((60, 60))], (60, 60)).shape == (1, 4)
    with pytest.raises(SpanError, match="the processor does more to a picture than scale, shift, pad and cut it"):
        map_views([warped], (60, 60))


def test_tokens_without_a_place_hold_nothing_and_views_come_one_after_another():
    first, second = grid(0, rows=1, columns=2, cell=10.0), grid(1, rows=1, columns=2, cell=10.0)
    shuffled = chain([NOWHERE, second[::-1], first, NOWHERE])
    layout = Layout(vision=shuffled, projector=first, lm=chain([first, NOWHERE]))
    geometry = Geometry(layout, np.array([[1.0, 0.0, 1.0, 0.0], [1.0, 20.0, 1.0, 0.0]]))
    assert geometry.in_order("vision").tolist() == [3, 4, 2, 1]
    assert geometry.in_order("lm").tolist() == [0, 1]
    everything = box(0, 0, 40, 10)
    assert geometry.holding("vision", everything).tolist() == [3, 4, 2, 1]
    assert geometry.holding("vision", box(11, 0, 29, 10)).tolist() == [4, 2]
    assert geometry.holding("projector", everything).tolist() == [0, 1]


def test_a_view_that_shows_nothing_of_the_picture_holds_nothing():
    both = chain([grid(0, rows=1, columns=1, cell=10.0), grid(1, rows=1, columns=1, cell=10.0)])
    geometry = Geometry(Layout(vision=both, projector=both, lm=both), np.array([[1.0, 0.0, 1.0, 0.0], [np.nan] * 4]))
    assert geometry.holding("vision", box(0, 0, 10, 10)).tolist() == [0]


# ---- what most families do alike ----


def test_normalisation_is_undone_exactly():
    for processor in (THIRDS, CROPPED, SiglipImageProcessor(do_normalize=False, size={"height": 24, "width": 24})):
        pixels = processor(ramp((24, 24)), return_tensors="pt")["pixel_values"][0]
        assert colours(pixels, SimpleNamespace(image_processor=processor)) == pytest.approx(view_of((24, 24)), abs=1e-3)
    raw = SiglipImageProcessor(do_normalize=False, do_rescale=False, size={"height": 24, "width": 24})
    pixels = raw(ramp((24, 24)), return_tensors="pt")["pixel_values"][0]
    assert colours(pixels, SimpleNamespace(image_processor=raw)) == pytest.approx(view_of((24, 24)), abs=1e-3)


@pytest.mark.parametrize(("prefix", "tokens"), [((), 16), ((), 4), ((), 1), (("tower.class_embedding",), 16)])
@pytest.mark.parametrize("tiles", [1, 3])
def test_plain_layouts_number_tiles_one_after_another(prefix: tuple[str, ...], tokens: int, tiles: int):
    """A tile of 4 x 4 patches, with or without a class token, whole or in blocks, for the first of two pictures."""
    inputs = asked(torch.zeros(2 * tiles, 3, 32, 32), 2 * tiles * tokens)
    layout = plain_layout(model(*prefix), None, inputs, 2)
    before, block = [NOWHERE] * len(prefix), {16: 1, 4: 2, 1: 4}[tokens]
    patches = [part for tile in range(tiles) for part in (*before, grid(tile, rows=4, columns=4, cell=8))]
    blocks = [grid(tile, rows=4 // block, columns=4 // block, cell=8 * block) for tile in range(tiles)]
    assert np.array_equal(layout.vision, chain(patches), equal_nan=True)
    assert np.array_equal(layout.lm, chain(blocks))
    assert np.array_equal(layout.projector, chain(blocks))
    five = {**inputs, "pixel_values": inputs["pixel_values"][None]}
    assert np.array_equal(plain_layout(model(*prefix), None, five, 2).vision, layout.vision, equal_nan=True)


def test_a_class_token_may_reach_the_prompt():
    kept = tile_cells(17, 4, 4, 8, prefix=1)
    assert np.isnan(kept[0]).all()
    assert np.array_equal(kept[1:], grid(0, rows=4, columns=4, cell=8))


def test_blocks_leave_out_patches_that_do_not_fill_one():
    assert np.array_equal(tile_cells(4, 5, 5, 8), grid(0, rows=2, columns=2, cell=16))


@pytest.mark.parametrize("tokens", [0, 3, 5, 15, 17, 64])
def test_numbers_of_tokens_that_are_no_grid_are_refused(tokens: int):
    message = f"cannot tell which part of a picture of 4x4 patches its {tokens} tokens show"
    with pytest.raises(SpanError, match=message):
        tile_cells(tokens, 4, 4, 8)


def test_small_questions_about_a_model():
    assert class_tokens(model("a.class_embedding", "b.cls_token", "b.cls_token.weight", "head.weight")) == 2
    assert (side_of(14), side_of([16, 16]), side_of((8, 8))) == (14, 16, 8)
    assert image_token_id(SimpleNamespace(image_token_id=5, image_token_index=6)) == 5
    assert image_token_id(SimpleNamespace(image_token_index=0)) == 0
    assert image_token_id(SimpleNamespace(image_token_id=0, image_token_index=6)) == 0
    assert image_token_count(model(), asked(torch.zeros(1), 3)) == 3


def test_positions_count_from_the_first_real_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert plain_extra(None, {"attention_mask": mask})["position_ids"].tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_a_processor_without_a_template_is_refused():
    with pytest.raises(ModelError, match="the checkpoint's SimpleNamespace has no chat template"):
        plain_render(SimpleNamespace(chat_template=None), "red", 0)


@pytest.mark.parametrize("size", [(100, 80), (100, 64), (64, 100), (32, 24), (48, 30)])
def test_small_pictures_that_are_padded_and_then_enlarged_are_followed(size: tuple[int, int]):
    """Enlarging mixes the padding some of the picture's own pixels deep into it; the middle is what counts."""
    processor = LlavaImageProcessor(do_pad=True, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    pixels = processor(images=[ramp(size)], return_tensors="pt")["pixel_values"][0]
    view = colours(pixels, SimpleNamespace(image_processor=processor))
    scale_x, shift_x, scale_y, shift_y = map_views([view], size)[0]
    side = max(size)
    token = 14 * side / 336  # of a published tower, in the picture's own pixels
    for scale, shift, own in ((scale_x, shift_x, size[0]), (scale_y, shift_y, size[1])):
        margin = (side - own) // 2
        wanted = np.array([-margin, side - margin])
        assert np.abs(np.array([shift, 336 * scale + shift]) - wanted).max() < 0.2 * token
