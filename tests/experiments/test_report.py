from __future__ import annotations

import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from seamscope.experiments import figures
from seamscope.experiments._plate import Plate, Words
from seamscope.experiments._report import LIMITS, SECTIONS, Example, Output, write_report
from seamscope.experiments._report_views import control_rows, fixed_sites, main_family, path_rows, settings_rows
from seamscope.experiments._verdict import LOCI
from seamscope.experiments.tasks import get
from seamscope.hooks import RunError

from ._synthetic import (
    causal_table,
    effects_table,
    gap_table,
    lens_table,
    probes_table,
    transfer_table,
    verdict,
)

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
    said = {"title": "Gap", "caption": "Read it so.", "controls": "an oracle.", "caveat": "where.", "alt": "Bars."}
    words = Words(**{**said, **{name: text for name, text in changes.items() if name in said}})
    return Plate(saved=saved, words=words, section=changes.get("section", "gap"))


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
    assert "Gap. Read it so. Beside it: an oracle. It does not show where. PDF · CSV (gap)" in page.text
    assert links == ["figures%20of%20it/gap.pdf", "figures%20of%20it/gap.csv"]


@pytest.mark.parametrize(
    ("section", "heading"),
    [
        ("transfer", "In which form"),
        ("lens", "What the layers would say"),
        ("causal", "There, and used?"),
        ("patching", "What makes a difference"),
    ],
)
def test_a_part_of_the_path_is_told_where_it_was_measured(tmp_path, section, heading):
    _, source = write(tmp_path)
    assert f"<h3>{heading}</h3>" not in source
    _, source = write(tmp_path, figures=[plate(tmp_path, section=section, title="Drawn")])
    parts = re.split(r"<h[23]>", source)
    assert "Drawn" in next(part for part in parts if part.startswith(heading))


def test_every_section_has_its_figures_once_and_in_order(tmp_path):
    _, source = write(tmp_path, figures=[plate(tmp_path, section=name, title=f"<{name}>") for name in SECTIONS[::-1]])
    found = [source.index(f"&lt;{name}&gt;") for name in SECTIONS]
    assert found == sorted(found)
    assert all(source.count(f"&lt;{name}&gt;") == 1 for name in SECTIONS)


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
        figures=[
            plate(
                tmp_path,
                title=HOSTILE,
                caption=HOSTILE,
                controls=HOSTILE,
                caveat=HOSTILE,
                alt='"><script>alert(2)</script>',
            )
        ],
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


def test_controls_are_those_of_the_tables_that_are_there(tmp_path):
    transfer, lens, causal = transfer_table(), lens_table(), causal_table()
    few = [row["what"] for row in control_rows({"probes": PROBES, "effects": EFFECTS, "transfer": transfer[:0]})]
    assert "Probe on raw pixels: accuracy" in few
    assert "Probe on token embeddings, text runs: accuracy" in few
    assert not [what for what in few if "Transfer" in what or "lens" in what or "Random" in what]
    others = {"transfer": transfer, "lens": lens, "lens.tuned": lens, "decodable_causal": causal}
    page, _ = write(tmp_path, others=others)
    for what in ("Transfer of random labels", "Logit lens", "Tuned lens", "Random directions erased"):
        assert what in page.text
    found = {row["what"]: row for row in control_rows({"probes": PROBES, **others})}
    same = transfer[transfer.train_site == transfer.site]
    assert found["Transfer of random labels, same site: accuracy"]["found"] == "0.12"
    wanted = f"recentred: {same.recentred_accuracy.min():.2f} to {same.recentred_accuracy.max():.2f}"
    assert wanted in found["Transfer of random labels, same site: accuracy"]["beside"]


def test_controls_stand_beside_the_probes_of_the_same_runs():
    pixels = next(row for row in control_rows({"probes": PROBES}) if "pixels" in row["what"])
    direct = PROBES[PROBES.condition == "direct"].accuracy
    assert pixels["beside"].endswith(f"the probes: {direct.min():.2f} to {direct.max():.2f}")


def test_the_main_family_is_that_of_the_objects():
    assert main_family(pd.DataFrame({"target": ["sum", "card.0.rank", "card.0.suit"]})) == "card.*.rank"
    assert main_family(pd.DataFrame({"target": ["sum", "lowest"]})) == "sum"


def test_probes_are_tabulated_place_by_place():
    rows = path_rows(pd.concat([PROBES, PROBES.assign(target="sum", accuracy=0.0)]).sample(frac=1, random_state=0))
    assert [row["site"] for row in rows if row["place"] == "object patches"] == fixed_sites(list(PROBES.site))
    assert [row["place"] for row in rows].count("object words") == 3
    places = [row["place"].replace("words", "patches") for row in rows]
    assert len([k for k, name in enumerate(places) if k == 0 or places[k - 1] != name]) == 3
    own = PROBES[(PROBES.span == "last") & (PROBES.condition == "direct") & (PROBES.site == "lm.5.resid_post")]
    last = next(row for row in rows if (row["place"], row["site"]) == ("last position", "lm.5.resid_post"))
    assert last["accuracy"] == pytest.approx(own.accuracy.mean()) or last["condition"] == "cascaded"


def test_fixed_sites_are_chosen_by_place():
    sites = [f"vision.{k}.resid_post" for k in range(3)] + ["projector.out"]
    sites += [f"lm.{k}.resid_post" for k in range(6)]
    chosen = ["vision.2.resid_post", "projector.out", "lm.0.resid_post", "lm.3.resid_post", "lm.5.resid_post"]
    assert fixed_sites(sites) == chosen
    assert fixed_sites(["lm.0.resid_post"]) == ["lm.0.resid_post"]


def test_settings_are_flattened():
    assert settings_rows({"a": {"b": 1}, "c": [2]}) == [("a.b", "1"), ("c", "[2]")]
