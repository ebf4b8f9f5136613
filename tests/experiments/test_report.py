from __future__ import annotations

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from seamscope.experiments import figures
from seamscope.experiments._report import LIMITS, Example, Output, Plate, write_report
from seamscope.experiments._report_views import fixed_sites, settings_rows
from seamscope.experiments._verdict import LOCI
from seamscope.experiments.tasks import get
from seamscope.hooks import RunError

from ._synthetic import effects_table, gap_table, probes_table, verdict

GAP, PROBES, EFFECTS = gap_table(), probes_table(), effects_table()
HOSTILE = """<script>alert("x")</script><img src='https://evil.example/x.png' onerror=alert(1)>{{ 7 * 7 }}"""


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self._style = False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False

    def handle_data(self, data):
        if not self._style:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def write(folder, **changes) -> tuple[Page, str]:
    given = {
        "settings": {"seed": 7, "sweep": {"rule": "stretch"}},
        "gap": GAP,
        "probes": PROBES,
        "effects": EFFECTS,
        "verdict": verdict(),
        "versions": {"seamscope": "0.1.0"},
    }
    path = write_report(folder, **{**given, **changes})
    source = path.read_text(encoding="utf-8")
    return Page(source), source


def plate(folder, **changes) -> Plate:
    saved = figures.save(figures.gap_bars(GAP), folder, "gap", data=GAP, dpi=60)
    return Plate(**{"saved": saved, "caption": "The gap is seen.", "alt": "Bars.", "section": "gap", **changes})


def example(**changes) -> Example:
    given = {
        "picture": Image.new("RGB", (8, 8), "red"),
        "question": "sort them",
        "intermediate": "7 3",
        "answer": "3 7",
        "outputs": (Output(condition="direct", text="7 7", correct=False),),
    }
    return Example(**{**given, **changes})


def test_the_story_is_told_in_order(tmp_path):
    page, _ = write(tmp_path)
    headings = re.findall(r"<h2>(.*?)</h2>", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert headings == [
        "The question",
        "How it was measured",
        "The gap",
        "The path of the intermediate",
        "The verdict",
        "Controls",
        "What would overturn it",
        "Limits",
        "Provenance",
    ]
    assert verdict().summary in page.text
    assert verdict().overturn in page.text


def test_gap_and_evidence_are_the_tables_numbers(tmp_path):
    page, _ = write(tmp_path)
    for row in GAP.itertuples():
        sign = "+" if row.condition == "gap" and row.estimate > 0 else ""
        assert f"{sign}{row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]" in page.text
    assert "0.34 [0.28, 0.41]" in page.text
    assert "0.91 [0.87, 0.95]" in page.text
    assert "It is readable there only from decoder layer 3 on." in page.text


def test_the_gap_is_told_for_all_items_and_for_those_whose_steps_pass(tmp_path):
    page, _ = write(tmp_path)
    assert "Of 200 items of cards.sort" in page.text
    assert " . Among the 133 items whose two steps both pass alone, it is" in page.text
    none, _ = write(tmp_path, gap=GAP[GAP.subset == "all"])
    assert "both pass alone, it is" not in none.text


def test_the_numbers_follow_the_tables(tmp_path):
    moved = GAP.copy()
    moved.loc[(moved.condition == "direct") & (moved.task == "cards.sort"), "estimate"] = 0.2468
    assert "0.25 [" in write(tmp_path, gap=moved)[0].text


def test_the_verdict_is_in_words(tmp_path):
    page, _ = write(tmp_path)
    assert LOCI["too_late"] in page.text
    assert "decoder layer 3 (interval: 2 to 4)" in page.text
    assert "94 % of bootstrap resamples of the items, which is stable under resampling" in page.text
    shaky, _ = write(tmp_path, verdict=verdict(confidence=0.4))
    assert "not stable under resampling" in shaky.text
    without, _ = write(tmp_path, verdict=verdict("format", None))
    assert "This class names no layer." in without.text


def test_limits_controls_and_provenance(tmp_path):
    page, _ = write(tmp_path)
    for limit in LIMITS:
        assert limit in page.text
    shuffled = PROBES.shuffled_accuracy
    assert f"{shuffled.min():.2f} to {shuffled.max():.2f}" in page.text
    assert "sweep.rule stretch" in page.text
    assert "seed 7" in page.text
    assert "seamscope 0.1.0" in page.text
    assert "torch" in write(tmp_path, versions=None)[0].text


def test_nothing_is_asked_of_other_machines(tmp_path):
    page, source = write(tmp_path, figures=[plate(tmp_path / "figures")], examples=[example()])
    for tag, attrs in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        assert attrs.get("src", "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attrs)
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert ("meta", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in [
        (tag, attrs.get("content")) for tag, attrs in page.tags
    ]


def test_figures_have_caption_alternative_text_and_files_beside_them(tmp_path):
    page, _ = write(tmp_path, figures=[plate(tmp_path / "figures of it")])
    image = next(attrs for tag, attrs in page.tags if tag == "img")
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert image["alt"] == "Bars."
    assert "The gap is seen." in page.text
    assert links == ["figures%20of%20it/gap.pdf", "figures%20of%20it/gap.csv"]


def test_items_are_shown_with_what_came_out(tmp_path):
    page, _ = write(tmp_path, examples=[example()])
    image = next(attrs for tag, attrs in page.tags if tag == "img")
    assert "7 3" in image["alt"]
    assert "direct: 7 7 (wrong)" in page.text


def test_an_example_is_made_from_an_item_and_its_answers():
    item = get("cards.sort").items(1)[0]
    rows = pd.DataFrame([{"id": item.id, "condition": "direct", "output": "no", "correct": False}])
    shown = Example.of(item, rows)
    assert shown.answer == item.answer
    assert shown.outputs[0].text == "no"


def test_hostile_text_is_only_text(tmp_path):
    evil = verdict(task=HOSTILE, model=HOSTILE, summary=HOSTILE, overturn=HOSTILE)
    outputs = (Output(condition=HOSTILE, text=HOSTILE, correct=True),)
    page, source = write(
        tmp_path,
        gap=GAP.assign(task=HOSTILE, subset=GAP.subset).drop_duplicates(["task", "subset", "condition"]),
        probes=PROBES.assign(target="card.0.rank" + HOSTILE),
        effects=EFFECTS.assign(experiment=HOSTILE),
        verdict=evil,
        figures=[plate(tmp_path, caption=HOSTILE, alt='"><script>alert(2)</script>')],
        examples=[example(question=HOSTILE, intermediate=HOSTILE, answer=HOSTILE, outputs=outputs)],
        task_summary=HOSTILE,
        limits=[HOSTILE],
        settings={HOSTILE: {HOSTILE: HOSTILE}},
        versions={HOSTILE: HOSTILE},
    )
    assert "<script" not in source
    assert "{{ 7 * 7 }}" in page.text
    assert not [tag for tag, attrs in page.tags if tag == "script" or "onerror" in attrs]
    assert all(attrs["src"].startswith("data:") for tag, attrs in page.tags if tag == "img")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gap": GAP[:0]}, "the gap table is empty"),
        ({"gap": GAP.drop(columns="low")}, "the gap table lacks the column 'low'"),
        ({"gap": GAP[GAP.task != "cards.sort"]}, "unknown task of the gap table 'cards.sort'"),
        ({"probes": PROBES.drop(columns="chance")}, "the probes table lacks the column 'chance'"),
        ({"effects": EFFECTS.drop(columns="right")}, "the effects table lacks the column 'right'"),
    ],
)
def test_errors_say_what_is_missing(tmp_path, changes, message):
    with pytest.raises(RunError, match=message):
        write(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_lost_figure_or_an_unknown_section_is_named(tmp_path):
    lost = plate(tmp_path / "figures")
    with pytest.raises(RunError, match="unknown section of the report 'gpa'; nearest: gap"):
        write(tmp_path, figures=[plate(tmp_path / "figures", section="gpa")])
    lost.saved.png.unlink()
    with pytest.raises(RunError, match="figure 'gap' is not on disk"):
        write(tmp_path, figures=[lost])


def test_a_new_report_replaces_the_old_one(tmp_path):
    write(tmp_path)
    write(tmp_path, verdict=verdict(summary="Another summary."))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert "Another summary." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_fixed_sites_are_chosen_by_place():
    sites = [f"vision.{k}.resid_post" for k in range(3)] + ["projector.out"]
    sites += [f"lm.{k}.resid_post" for k in range(6)]
    chosen = ["vision.2.resid_post", "projector.out", "lm.0.resid_post", "lm.3.resid_post", "lm.5.resid_post"]
    assert fixed_sites(sites) == chosen
    assert fixed_sites(["lm.0.resid_post"]) == ["lm.0.resid_post"]


def test_settings_are_flattened():
    assert settings_rows({"a": {"b": 1}, "c": [2]}) == [("a.b", "1"), ("c", "[2]")]
