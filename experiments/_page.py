"""The pages that a browser shows: one file each, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
import csv
import os
from collections.abc import Iterable
from importlib.resources import files
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import jinja2
from PIL.Image import Image

from seamscope.hooks import RunError

from . import _report_views as views
from ._plate import Plate
from .figures._tables import finite

UNITS: Final = {"n": "items", "n_rows": "rows (items and their partners)", "rows": "rows to fit on"}
RESAMPLED: Final = "Intervals are of 95 %, from resampling whole groups, an item with its partner."


def write_page(path: Path, template: str, **given: Any) -> Path:
    """Fill one of the templates beside this module, write it, and give its path.

    Figures and tables count themselves in the order of the page. All text is escaped; what is not given is an error.
    """
    page = read_template(template).render(numbers={"figure": count(1), "table": count(1)}, **given)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".html.part")
    draft.write_text(page, encoding="utf-8")
    return draft.replace(path)


def read_template(name: str) -> jinja2.Template:
    """A template with the filters and functions that all have."""
    room = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda found: files(__package__).joinpath(found).read_text(encoding="utf-8")),
    )
    room.filters |= {"number": views.number, "plain": lambda text: str(text).replace("_", " "), "next": next}
    room.globals["interval"] = views.interval
    return room.get_template(name)


def shown(plate: Plate, folder: Path) -> dict[str, Any]:
    """A figure for `parts.html.jinja`, with links that lead from a page in `folder` to its files.

    Raises `RunError` where one of them is not on disk.
    """
    saved = plate.saved
    for path in (saved.png, saved.pdf, *saved.csv):
        if not path.is_file():
            raise RunError(f"figure {saved.name!r} is not on disk: {path} was expected")
    return {
        "words": plate.words,
        "source": _data(saved.png.read_bytes()),
        "sample": _sample(saved.csv),
        "links": [(relative(path, folder), quote(relative(path, folder))) for path in (saved.pdf, *saved.csv)],
    }


def _sample(tables: Iterable[Path]) -> str:
    """How many items or rows a figure's own tables say that it shows, and what its intervals are."""
    columns: dict[str, list[str]] = {}
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = [*csv.reader(file)] or [[]]
        for k, name in enumerate(head):
            columns.setdefault(name, []).extend(row[k] for row in rows)
    counts = {name: finite(float(text or "nan") for text in columns.get(name, ())) for name in UNITS}
    told = [f"n = {_span(numbers)} {UNITS[name]}." for name, numbers in counts.items() if numbers]
    return " ".join([*told, *([RESAMPLED] if any(name.endswith("low") for name in columns) else [])])


def _span(numbers: Iterable[float]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"


def relative(path: Path, folder: Path) -> str:
    """The path of a file as it is written in a page in a folder; a link to it is quoted."""
    return Path(os.path.relpath(path, folder)).as_posix()


def embedded(picture: Image, *, most: int = 512) -> str:
    """A picture as the source of an image, at most so many pixels wide and high."""
    small = picture.convert("RGB")
    small.thumbnail((most, most))
    held = BytesIO()
    small.save(held, format="PNG")
    return _data(held.getvalue())


def _data(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
