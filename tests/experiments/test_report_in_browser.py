"""The pages, opened in a real browser: on a screen, on a phone, and printed. Each check is seen to fail as well."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pypdfium2
import pypdfium2.raw
import pytest
from PIL import Image

from seamscope.experiments._comparison import Compared, write_comparison
from seamscope.experiments._page import embedded
from seamscope.experiments._plate import Plate
from seamscope.experiments._plates import drafts_of
from seamscope.experiments._report import SECTIONS, Example, Output, write_report
from seamscope.experiments._verdict import Repair
from seamscope.experiments.figures import save

from ._synthetic import (
    causal_table,
    effects_table,
    gap_table,
    lens_table,
    probes_table,
    transfer_table,
    verdict,
)
from .browser import Browser, browsing, find_browser

FOUND = find_browser()
pytestmark = pytest.mark.skipif(FOUND is None, reason="no Chromium or Chrome is on the PATH")

PHONE = {"width": 390, "height": 844, "mobile": True}
LEAST = 14  # pixels, of text on a phone
A4 = (595.3, 841.9)  # points
PRINTED = 9.0  # points that a line of letters takes on paper, from the lowest to the highest
BROKEN = "[...document.images].filter(image => image.naturalWidth === 0).length"
FIGURES = "document.querySelectorAll('figure img').length"
WIDTH = "document.documentElement.scrollWidth"
LINKS = "[...document.querySelectorAll('figcaption a')].map(link => link.getAttribute('href'))"
TEXTS = """(() => {
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const range = document.createRange(), style = getComputedStyle(node.parentElement);
    range.selectNodeContents(node);
    if (node.data.trim() && range.getClientRects().length)
      found.push([node.data, parseFloat(style.fontSize), style.color]);
  }
  return found;
})()"""
"""Every text that is seen, with its size in pixels and its colour."""
DOT = embedded(Image.new("RGB", (1, 1)))
REPAIR = {"restored": 0.6, "low": 0.5, "high": 0.7, "control": 0.1, "n": 90}
TOLD = verdict(
    place="lm.3.resid_post",
    spent={"forward_passes": 1234, "seconds": 80.5},
    repairs=(
        Repair(name="deliver_earlier", words="Its later state, earlier", mends="too_late", named=True, **REPAIR),
        Repair(name="strengthen_route", words="More attention", mends="not_routed", named=False, **REPAIR),
    ),
)


@dataclass(frozen=True)
class Sheet:
    """One printed page: its size, its text, and the boxes of its letters and pictures, in points."""

    size: tuple[float, float]
    text: str
    letters: list[tuple[float, float, float, float]]
    pictures: list[tuple[float, float, float, float]]


def sheets(pdf: bytes) -> list[Sheet]:
    return [_sheet(page) for page in pypdfium2.PdfDocument(pdf)]


def _sheet(page: pypdfium2.PdfPage) -> Sheet:
    text = page.get_textpage()
    # Ligatures are one box of their own size for several letters, so that none of theirs is looked at.
    seen = [k for k in range(text.count_chars()) if not re.match(r"[\sfijlt]", text.get_text_range(k, 1))]
    return Sheet(
        size=page.get_size(),
        text=re.sub(r"^\d+ / \d+", "", text.get_text_range()),
        letters=[text.get_charbox(k, loose=True) for k in seen],
        pictures=[each.get_bounds() for each in page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE])],
    )


def outside(sheet: Sheet) -> list[tuple[float, float, float, float]]:
    """Boxes that are not wholly on the paper."""
    wide, high = sheet.size
    boxes = [*sheet.letters, *sheet.pictures]
    return [box for box in boxes if box[0] < 0 or box[1] < 0 or box[2] > wide or box[3] > high]


def missing(texts: list[list], printed: list[Sheet]) -> list[str]:
    """Texts of a page that are not on its sheets; only letters and digits count, for lines that end in a hyphen."""
    held = re.sub(r"\W", "", "".join(sheet.text for sheet in printed))
    return [text for text, *_ in texts if re.sub(r"\W", "", text) not in held]


def smallest(printed: list[Sheet]) -> float:
    """Points from the lowest to the highest that any letter of the smallest font takes."""
    return min(top - bottom for sheet in printed for _, bottom, _, top in sheet.letters)


def split(printed: list[Sheet]) -> list[str]:
    """Figures whose caption ends on another sheet than it begins on."""
    marks = [re.findall(r"Figure \d+\.|Files:", sheet.text) for sheet in printed]
    pairs = [pair for sheet in marks for pair in zip(sheet, [*sheet, ""][1:], strict=False)]
    return [first for first, second in pairs if first != "Files:" != second]


def contrast(colour: str) -> float:
    """Of a colour on white (WCAG 2)."""
    red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 1.05 / (0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing(FOUND) as started:
        yield started


@pytest.fixture(scope="module")
def plates(tmp_path_factory) -> list[Plate]:
    tables = {"gap": gap_table(), "probes": probes_table(), "effects": effects_table(), "transfer": transfer_table()}
    tables |= {"lens": lens_table(), "decodable_causal": causal_table()}
    folder = tmp_path_factory.mktemp("run") / "figures of it"
    drafts = drafts_of(tables, verdict=TOLD)
    some = [draft for name in SECTIONS for draft in [each for each in drafts if each.section == name][:2]]
    return [
        Plate(
            saved=save(draft.draw(), folder, draft.name, data=draft.data, dpi=100),
            words=draft.words,
            section=draft.section,
        )
        for draft in some
    ]


@pytest.fixture(scope="module")
def report(plates) -> Path:
    outputs = (Output(condition="direct", text="7 7", correct=False),)
    shown = Example(
        picture=Image.new("RGB", (64, 64), "red"), question="sort?", intermediate="7 3", answer="3 7", outputs=outputs
    )
    return write_report(
        plates[0].saved.png.parents[1],
        settings={"model": "organism", "made_from": {"model": "0" * 128}},
        gap=gap_table(),
        probes=probes_table(),
        effects=effects_table(),
        verdict=TOLD,
        figures=plates,
        examples=[shown] * 3,
        task_summary="sort cards",
    )


@pytest.fixture(scope="module")
def comparison(plates, report) -> Path:
    truths = [("not_encoded", "vision.2.resid_post"), ("too_late", "lm.2.resid_post"), (None, None)]
    runs = [
        Compared(name=f"model {k}", truth=truth, place=place, verdict=TOLD, gap=gap_table(), report=report)
        for k, (truth, place) in enumerate(truths)
    ]
    return write_comparison(report.parent, runs, figure=plates[0])


@pytest.fixture(scope="module")
def printed(browser, report) -> list[Sheet]:
    return sheets(browser.open(report).pdf())


@pytest.fixture(params=["report", "comparison"])
def page(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bad(tmp_path):
    """Writes a page with something wrong in it."""

    def write(body: str) -> Path:
        path = tmp_path / "bad.html"
        path.write_text(f"<!doctype html><meta charset='utf-8'><body>{body}</body>", encoding="utf-8")
        return path

    return write


class TestScreen:
    def test_nothing_goes_wrong_and_nothing_is_asked_for(self, browser, page):
        opened = browser.open(page)
        assert opened.errors == []
        assert opened.requests == []

    @pytest.mark.parametrize(
        "body",
        ["<script>console.error('oh')</script>", "<script>throw Error('oh')</script>", "<img src='none.png'>"],
    )
    def test_an_error_would_be_seen(self, browser, bad, body):
        assert browser.open(bad(body)).errors

    def test_a_request_would_be_seen(self, browser, bad):
        assert [Path(url).name for url in browser.open(bad("<img src='none.png'>")).requests] == ["none.png"]

    def test_every_figure_is_there_with_its_files(self, browser, report, plates):
        opened = browser.open(report)
        assert opened.evaluate(BROKEN) == 0
        assert opened.evaluate(FIGURES) == len(plates) > 10
        links = [(report.parent / unquote(link)).resolve() for link in opened.evaluate(LINKS)]
        assert links == [path for plate in plates for path in (plate.saved.pdf, *plate.saved.csv)]
        assert all(path.is_file() for path in links)

    def test_a_figure_that_is_broken_would_be_seen(self, browser, bad):
        assert browser.open(bad("<figure><img src='data:image/png;base64,AAAA'></figure>")).evaluate(BROKEN) == 1


class TestPhone:
    def test_the_page_is_as_wide_as_the_phone_and_its_text_can_be_read(self, browser, page):
        opened = browser.open(page, **PHONE)
        assert opened.evaluate(WIDTH) <= PHONE["width"]
        assert min(size for _, size, _ in opened.evaluate(TEXTS)) >= LEAST

    @pytest.mark.parametrize("fault", ["<div style='width: 2000px'>wide</div>", "no viewport is set"])
    def test_a_page_that_is_wider_would_be_seen(self, browser, bad, fault):
        assert browser.open(bad(fault), **PHONE).evaluate(WIDTH) > PHONE["width"]

    def test_small_text_would_be_seen(self, browser, bad):
        opened = browser.open(
            bad("<p>read</p><p style='font-size: 13px'>me</p><p hidden style='font-size: 1px'>not</p>")
        )
        assert min(size for _, size, _ in opened.evaluate(TEXTS)) == 13


class TestPrint:
    def test_all_text_can_be_found_on_paper(self, browser, report, printed):
        opened = browser.open(report)
        opened.call("Emulation.setEmulatedMedia", media="print")
        texts = opened.evaluate(TEXTS)
        assert {TOLD.overturn, "12 How it was made"} <= {text for text, *_ in texts}
        assert missing(texts, printed) == []

    def test_the_paper_is_a4_and_nothing_is_cut_off(self, printed, browser, comparison):
        for sheet in [*printed, *sheets(browser.open(comparison).pdf())]:
            assert sheet.size == pytest.approx(A4, abs=0.5)
            assert outside(sheet) == []

    def test_figures_are_whole(self, printed, plates):
        assert sum(len(sheet.pictures) for sheet in printed) == len(plates) + 3
        assert split(printed) == []
        assert sum(sheet.text.count("Files: ") for sheet in printed) == len(plates)

    def test_text_is_large_and_dark_enough(self, printed, browser, report):
        assert smallest(printed) >= PRINTED
        opened = browser.open(report)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        opened.call("Emulation.setEmulatedMedia", media="print", features=dark)
        assert min(contrast(colour) for *_, colour in opened.evaluate(TEXTS)) >= 7
        assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"

    def test_faults_would_be_seen(self, browser, bad):
        tall = "<p style='height: 140mm'>Figure 1. </p><p style='height: 140mm'>more</p><p>Files: x</p>"
        found = sheets(browser.open(bad(f"<p style='font-size: 6px; color: #aaa'>pale</p>{tall}")).pdf())
        assert found[0].size != pytest.approx(A4, abs=0.5)
        assert smallest(found) < PRINTED
        assert split(found) == ["Figure 1."]
        pale = browser.open(bad("<p style='color: #aaa'>pale</p>")).evaluate(TEXTS)
        assert contrast(pale[0][-1]) < 3

    def test_what_is_cut_off_would_be_seen(self, browser, bad):
        opened = browser.open(
            bad(f"<img src='{DOT}' style='width: 9000px; height: 50px'><p style='margin-left: 8000px'>far</p>")
        )
        found = sheets(opened.pdf())
        assert outside(found[0])
        assert missing(opened.evaluate(TEXTS), found) == ["far"]
