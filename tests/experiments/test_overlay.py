"""The overlay: whose tokens it says are where, against rectangles counted here, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from seamscope.experiments import tasks
from seamscope.experiments._overlay import ABSENT, EDGES, OBJECTS, STACKS, draw_overlay, token_table
from seamscope.hooks import Batch, Box, Vlm, load_vlm

from ..checkpoints import BUILDERS
from ..hooks.families_fixture import checkpoint

ITEM = tasks.get("cards.sum").items(1, profile_name="full")[0]


@cache
def batch_of(name: str) -> Batch:
    return load_vlm(checkpoint(name), device="cpu", check=False).encode([ITEM], condition="direct")


@cache
def drawn(name: str) -> Figure:
    return draw_overlay(ITEM.image, ITEM.boxes, token_table(batch_of(name)), title=name)


def shared(cell: Any, box: Box) -> tuple[float, float]:
    """The share of a cell's width and of its height that a box has."""
    wide = min(cell.right, box.right) - max(cell.left, box.left)
    high = min(cell.bottom, box.bottom) - max(cell.top, box.top)
    return wide / (cell.right - cell.left), high / (cell.bottom - cell.top)


def filled(figure: Figure, row: int, column: int) -> list[list[Any]]:
    """The vertices of what is filled in a panel, object by object: the grid itself comes first."""
    axes = figure.axes[3 * row + column]
    _, *objects = [each for each in axes.collections if isinstance(each, PatchCollection)]
    return [[path.vertices for path in each.get_paths()] for each in objects]


class TestTokens:
    @pytest.mark.parametrize("name", BUILDERS)
    def test_each_object_has_the_cells_that_show_it(self, name: str) -> None:
        """Counted by rectangles: whoever shows a good part of a box is its own, whoever shows none is not."""
        table = token_table(batch_of(name))
        placed = table[table.view.notna()]
        assert len(placed) > 0
        for cell in placed.itertuples():
            for k, box in enumerate(ITEM.boxes):
                x, y = shared(cell, box)
                if x > 0.1 and y > 0.1:
                    assert k in cell.objects
                if x < 0 or y < 0:
                    assert k not in cell.objects

    @pytest.mark.parametrize("name", BUILDERS)
    def test_cells_cover_the_picture(self, name: str) -> None:
        """Nearly every pixel is in some cell of each stack that has cells, and every cell is near the picture."""
        for _, cells in token_table(batch_of(name)).dropna().groupby("stack"):
            seen = np.zeros((448, 448), dtype=bool)
            for cell in cells.itertuples():
                seen[max(0, round(cell.top)) : round(cell.bottom), max(0, round(cell.left)) : round(cell.right)] = True
            assert seen.mean() > 0.95
            assert cells[EDGES].to_numpy().min() > -3
            assert cells[EDGES].to_numpy().max() < 451

    @pytest.mark.parametrize("name", BUILDERS)
    def test_tokens_are_those_of_the_batch(self, name: str) -> None:
        batch = batch_of(name)
        table = token_table(batch)
        assert batch.visual is not None
        for stack, rows in table.groupby("stack"):
            if stack == "lm":
                assert rows.token.tolist() == batch.spans[0]["image"].tolist()
            else:
                assert rows.token.tolist() == list(range(batch.visual.sizes[str(stack)]))
            spans = batch.spans[0] if stack == "lm" else batch.visual.spans[str(stack)][0]
            for k in range(len(ITEM.boxes)):
                own = {token for token, objects in zip(rows.token, rows.objects, strict=True) if k in objects}
                assert own == set(spans.get(f"image.object.{k}", np.zeros(0)).tolist())

    def test_a_grid_in_closed_form(self, organism: Vlm) -> None:
        """The organism's 72 pixels in patches of 12."""
        item = tasks.get("cards.sum").items(1)[0]
        table = token_table(organism.encode([item], condition="direct"))
        for stack, first in (("vision", 0), ("projector", 0), ("lm", 2)):
            rows = table[table["stack"] == stack]
            for cell in rows.itertuples():
                row, column = divmod(cell.token - first, 6)
                expected = [12 * column, 12 * row, 12 * column + 12, 12 * row + 12]
                assert [getattr(cell, edge) for edge in EDGES] == pytest.approx(expected, abs=0.01)


class TestDrawing:
    @pytest.mark.parametrize(("name", "rows"), [("llava", 1), ("llava_next", 2), ("idefics3", 2), ("mllama", 1)])
    def test_views_that_overlap_are_apart(self, name: str, rows: int) -> None:
        figure = drawn(name)
        assert len(figure.axes) == 3 * rows
        labels = [axes.get_ylabel() for axes in figure.axes[::3]]
        assert labels == (
            [""] if rows == 1 else ["views 0-8", "view 9"] if name == "idefics3" else ["view 0", "view 1"]
        )

    @pytest.mark.parametrize("name", BUILDERS)
    def test_what_is_filled_is_the_tokens(self, name: str) -> None:
        """As many stripes of each object, over all rows, as it has tokens; those of one cell fill it together."""
        figure, table = drawn(name), token_table(batch_of(name))
        for column, stack in enumerate(STACKS):
            own = table[table["stack"] == stack]
            panels = range(len(figure.axes) // 3)
            if own.view.isna().all():
                assert ABSENT[stack] in [each.get_text() for each in figure.axes[column].texts]
                assert not figure.axes[column].images
                continue
            for k in range(len(ITEM.boxes)):
                stripes = [shape for row in panels for shape in filled(figure, row, column)[k]]
                cells = own[[k in objects for objects in own.objects]]
                assert len(stripes) == len(cells)
                area = sum(np.ptp(shape[:, 0]) * np.ptp(shape[:, 1]) for shape in stripes)
                parts = (cells.right - cells.left) * (cells.bottom - cells.top) / cells.objects.map(len)
                assert area == pytest.approx(parts.sum())

    def test_boxes_keep_their_colours(self) -> None:
        axes = drawn("llava").axes[0]
        outlines = [each for each in axes.patches if isinstance(each, Rectangle)]
        assert [each.get_edgecolor()[:3] for each in outlines] == [to_rgb(colour) for colour in OBJECTS[:4]]
        assert [(each.get_x(), each.get_y(), each.get_width(), each.get_height()) for each in outlines] == [
            (box.left, box.top, box.right - box.left, box.bottom - box.top) for box in ITEM.boxes
        ]

    def test_numbers_stand_in_their_cells(self) -> None:
        """Positions in the prompt, in the decoder's panel."""
        axes, table = drawn("qwen2_vl").axes[2], token_table(batch_of("qwen2_vl"))
        cells = table[(table["stack"] == "lm") & (table.objects.map(len) > 0)].set_index("token")
        numbers = {int(each.get_text()): each.get_position() for each in axes.texts if each.get_text().isdigit()}
        assert set(numbers) == set(cells.index)
        for token, (x, y) in numbers.items():
            cell = cells.loc[token]
            assert (x, y) == pytest.approx(((cell.left + cell.right) / 2, (cell.top + cell.bottom) / 2))

    def test_no_numbers_where_they_would_not_fit(self) -> None:
        table = token_table(batch_of("qwen2_vl"))
        crowded = table.assign(token=table.token + 10_000_000)
        for axes in draw_overlay(ITEM.image, ITEM.boxes, crowded).axes:
            assert not [each for each in axes.texts if each.get_text().isdigit()]

    def test_headings_and_keys_count(self) -> None:
        figure, table = drawn("llava_next"), token_table(batch_of("llava_next"))
        first = [[each.get_text() for each in axes.texts if not each.get_text().isdigit()] for axes in figure.axes[:3]]
        inside = table[table["stack"] == "lm"]
        placed, positions = int(inside.view.notna().sum()), (inside.token.min(), inside.token.max())
        assert first[2] == [
            f"{len(inside) - placed} more show no place",
            f"{placed} tokens at positions {positions[0]}-{positions[1]}",
            "decoder",
        ]
        keys = [each.get_text() for each in figure.legends[0].get_texts()]
        assert keys[1] == "image.object.1: " + " · ".join(f"{name} {count(table, s, 1)}" for s, name in STACKS.items())
        assert len(keys) == 4

    def test_padding_beyond_the_picture_is_shown(self) -> None:
        table = token_table(batch_of("llava"))
        wider = table.assign(left=table.left - 100, right=table.right - 100)
        for axes in draw_overlay(ITEM.image, ITEM.boxes, wider).axes:
            assert axes.get_xlim() == pytest.approx((-100, 448), abs=1)

    def test_no_boxes(self) -> None:
        table = token_table(batch_of("llava"))
        figure = draw_overlay(ITEM.image, (), table.assign(objects=[()] * len(table)))
        assert not figure.legends

    def test_a_large_picture_is_drawn_small(self) -> None:
        table = token_table(batch_of("llava"))
        figure = draw_overlay(Image.new("RGB", (4000, 300)), (), table)
        assert figure.axes[0].images[0].get_array().shape == (90, 1200, 3)
        assert figure.axes[0].images[0].get_extent() == [0, 4000, 300, 0]


def count(table: pd.DataFrame, stack: str, k: int) -> int:
    held: Sequence[tuple[int, ...]] = table.objects[table["stack"] == stack].tolist()
    return sum(k in objects for objects in held)
