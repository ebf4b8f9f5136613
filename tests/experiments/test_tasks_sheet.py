"""The contact sheet: what stands on it, and that nothing overlaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from PIL import Image

from seamscope.experiments.tasks import DATA_SETS, PROFILES, Look, contact_sheet, get
from seamscope.experiments.tasks._sheet import CHANGED, SAME


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", DATA_SETS)
def test_items_beside_their_partners(name: str, profile: str) -> None:
    task = get(name)
    figure = contact_sheet(task, 4, profile=profile, seed=2, look=Look(fonts=("serif",)))
    items = task.items(4, profile_name=profile, seed=2, look=Look(fonts=("serif",)))
    assert len(figure.axes) == 8
    for axes, item in zip(figure.axes[::2], items, strict=True):
        assert axes.get_title(loc="left") == item.id
        assert len(axes.patches) == len(item.boxes)
        colours = [to_hex(patch.get_edgecolor()).upper() for patch in axes.patches]
        theirs = task.partner(item).intermediate.parts
        changed = [mine != other for mine, other in zip(item.intermediate.parts, theirs, strict=True)]
        assert colours == [CHANGED if different else SAME for different in changed]
    captions = [text.get_text() for text in figure.texts[1:]]
    for caption, item in zip(captions[::2], items, strict=True):
        shown = "".join(caption.split())
        assert "".join(item.question.split()) in shown
        assert "".join(item.intermediate.text.split()) in shown
        assert caption.endswith(f"A: {item.answer}")
    assert all("Q: " not in caption for caption in captions[1::2])


@pytest.mark.parametrize("name", DATA_SETS)
def test_nothing_overlaps(name: str) -> None:
    figure = contact_sheet(get(name), 7, profile="full", seed=3)
    renderer = FigureCanvasAgg(figure).get_renderer()
    shown = [box for axes in figure.axes if (box := axes.get_tightbbox(renderer)) is not None]
    assert len(shown) == 14
    shown += [text.get_window_extent(renderer) for text in figure.texts]
    whole = figure.bbox.padded(1)
    for k, box in enumerate(shown):
        assert whole.x0 <= box.x0
        assert box.x1 <= whole.x1
        assert whole.y0 <= box.y0
        assert box.y1 <= whole.y1
        assert not any(box.padded(-1).overlaps(other.padded(-1)) for other in shown[k + 1 :])


def test_a_file_without_partners(tmp_path: Path) -> None:
    Image.new("RGB", (300, 90), "white").save(tmp_path / "a.png")
    row = {"image": "a.png", "question": "long " * 90, "intermediate": "words " * 90, "answer": "yes"}
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row)}")
    figure = contact_sheet(get(str(tmp_path / "x.jsonl")), 12, profile="full")
    assert len(figure.axes) == 2
    caption = figure.texts[1].get_text().splitlines()
    assert caption[-1] == "A: yes"
    assert len(caption) < 20
    figure.savefig(tmp_path / "x.png")
