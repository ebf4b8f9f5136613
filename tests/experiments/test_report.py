from __future__ import annotations

import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from seamscope.experiments import figures
from seamscope.experiments._page import RESAMPLED, shown
from seamscope.experiments._plate import Plate, Words
from seamscope.experiments._report import LIMITS, SECTIONS, Example, Output, write_report
from seamscope.experiments._report_views import (
    again,
    control_rows,
    fixed_sites,
    main_family,
    path_rows,
    settings_rows,
)
from seamscope.experiments._run import Settings
from seamscope.experiments._verdict import LOCI, Loss, Repair
from seamscope.experiments.tasks import get
from seamscope.hooks import RunError

from ._synthetic import (
    causal_table,
    effects_table,
    gap_table,
    lens_table,
    located_tables,
    probes_table,
    transfer_table,
    verdict,
)

GAP, PROBES, EFFECTS, LOCATED = gap_table(), probes_table(), effects_table(), located_tables()
UNREAD = Loss(locus="not_used", place="lm.1.resid_post", objects=(0, 2))
REPAIRS = (
    Repair(
        **{"name": "deliver_earlier", "words": "Its own later state, earlier", "mends": "too_late", "named": True},
        **{"restored": 0.6, "low": 0.5, "high": 0.7, "control": 0.1, "n": 90},
    ),
    Repair(
        **{"name": "strengthen_route", "words": "More attention", "mends": "not_routed", "named": False},
        **{"restored": 0.2, "low": 0.1, "high": 0.3, "control": None, "n": 90},
    ),
)
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


HEADINGS = [
    "1 Question",
    "2 Model and task",
    "3 The gap",
    "4 The path of the intermediate through the model",
    "5 The verdict",
    "6 Evidence",
    "7 Does a repair work?",
    "8 What makes a difference",
    "9 Controls",
    "10 What would overturn it",
    "11 Limits",
    "12 How it was made",
]


def section(source: str, heading: str) -> str:
    """The text of one section."""
    return next(Page(part).text for part in re.split(r"<h2>", source) if part.startswith(heading))


def test_the_story_is_told_in_order(tmp_path):
    page, source = write(tmp_path)
    assert re.findall(r"<h2>(.*?)</h2>", source) == HEADINGS
    held = {"5 The verdict": verdict().summary, "10 What would overturn it": verdict().overturn}
    for heading, told in held.items():
        assert told in section(source, heading)
    assert [re.sub(r"\W", "", text) for text in re.findall(r'<li><a href="#\w+">(.*?)</a>', source)] == [
        re.sub(r"\W", "", text.removesuffix(" through the model")) for text in HEADINGS
    ]
    anchors = {attrs["href"][1:] for _, attrs in page.tags if attrs.get("href", "").startswith("#")}
    assert anchors <= {attrs.get("id") for _, attrs in page.tags}


def test_the_abstract_tells_it_all_in_one_paragraph(tmp_path):
    _, source = write(tmp_path, task_summary="sort cards", verdict=verdict(repairs=REPAIRS, also=(UNREAD,)))
    (abstract,) = re.findall(r"<p>(A model may name.*?)</p>", source, flags=re.DOTALL)
    told = Page(abstract).text
    for part in (
        "Where does organism lose what it has seen, on cards.sort (sort cards)?",
        "Of 200 items it answers 0.31 [0.25, 0.37] directly and 0.86 [0.81, 0.91] in two calls",
        "a composition gap of +0.55 [0.49, 0.62]",
        "on the 133 items whose two steps both pass alone",
        f"The verdict is too late , decoder layer 3 (interval: 2 to 4): {verdict().summary}",
        "94 % of resamples of the items give the same class, which is stable under resampling.",
        "Repairing it takes repairing a second loss as well: not used.",
        "the repair that the verdict names, deliver earlier, brings right 0.60 [0.50, 0.70]",
    ):
        assert part in told
    few, _ = write(tmp_path, gap=GAP[GAP.subset == "all"])
    for absent in ("second loss", "Of the answers that fail directly", "whose two steps both pass alone,"):
        assert absent not in few.text


def test_figures_and_tables_are_numbered_in_the_order_of_the_page(tmp_path):
    figures = [plate(tmp_path, section=name, title=f"Of {name}") for name in SECTIONS]
    page, source = write(tmp_path, figures=figures, verdict=verdict(repairs=REPAIRS, spent={"seconds": 1.5}))
    assert re.findall(r"Figure (\d+)\. Of (\w+)\.", page.text) == [
        (str(k + 1), name) for k, name in enumerate(SECTIONS)
    ]
    tables = re.findall(r"Table (\d+)\. ", page.text)
    assert tables == [str(k + 1) for k in range(len(tables))]
    assert len(tables) == source.count("<table") == source.count("<caption>") == 10


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
    assert "Where both steps pass alone (133 items), it is" in page.text
    none, _ = write(tmp_path, gap=GAP[GAP.subset == "all"])
    assert "both pass alone, it is" not in none.text


def test_the_numbers_follow_the_tables(tmp_path):
    moved = GAP.copy()
    moved.loc[(moved.condition == "direct") & (moved.task == "cards.sort"), "estimate"] = 0.2468
    assert "0.25 [" in write(tmp_path, gap=moved)[0].text


def test_the_verdict_is_in_words(tmp_path):
    _, source = write(tmp_path, verdict=verdict(place="lm.3.resid_post", also=(UNREAD,)))
    told = section(source, "5 The verdict")
    assert LOCI["too_late"] in told
    assert "not used of objects 0, 2, at lm.1.resid_post: " + LOCI["not_used"] in Page(told).text
    assert "decoder layer 3 (interval: 2 to 4), at lm.3.resid_post" in told
    assert "94 % of bootstrap resamples of the items, which is stable under resampling" in told
    shaky, _ = write(tmp_path, verdict=verdict(confidence=0.4))
    assert "not stable under resampling" in shaky.text
    without, _ = write(tmp_path, verdict=verdict("format", None))
    assert "This class names no layer." in without.text


def test_kinds_of_evidence_stand_apart(tmp_path):
    _, source = write(tmp_path)
    told = section(source, "6 Evidence")
    assert "Table 3. Probes: is it there?" in told
    assert "Table 4. Patches: is it used?" in told
    assert "Behaviour" not in told
    assert told.index("0.34 [0.28, 0.41]") < told.index("Table 4") < told.index("0.91 [0.87, 0.95]")


def test_repairs_are_told_with_their_controls_and_the_named_one_is_marked(tmp_path):
    _, source = write(tmp_path, verdict=verdict(repairs=REPAIRS))
    told = section(source, "7 Does a repair work?")
    assert "deliver earlier named by the verdict" in told
    assert told.count("named by the verdict") == 1
    assert "too late 0.60 [0.50, 0.70] 0.10 90" in told
    assert "not routed 0.20 [0.10, 0.30] – 90" in told
    _, source = write(tmp_path)
    none = section(source, "7 Does a repair work?")
    assert "No repair was tried." in none
    assert "Restored" not in none


def test_limits_controls_and_provenance(tmp_path):
    page, _ = write(tmp_path)
    for limit in LIMITS:
        assert limit in page.text
    shuffled = PROBES.shuffled_accuracy
    assert f"{shuffled.min():.2f} to {shuffled.max():.2f}" in page.text
    assert "sweep.rule stretch" in page.text
    assert "seamscope locate --seed 7 --out FOLDER makes the run anew" in page.text
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
    assert f"Figure 1. Gap. Read it so. n = 133 to 200 items. {RESAMPLED} Beside it: an oracle." in page.text
    assert "It does not show where. Files:" in page.text
    assert "Files: figures of it/gap.pdf · figures of it/gap.csv" in page.text
    assert [link for link in links if not link.startswith("#")] == [
        "figures%20of%20it/gap.pdf",
        "figures%20of%20it/gap.csv",
    ]


@pytest.mark.parametrize(
    ("part", "heading"),
    [
        ("probes", "What can be read"),
        ("transfer", "In which form"),
        ("lens", "What the layers would say"),
        ("causal", "There, and used?"),
        ("patching", "Patches and cuts"),
    ],
)
def test_a_part_is_told_where_it_was_measured(tmp_path, part, heading):
    _, source = write(tmp_path)
    assert f"<h3>{heading}</h3>" not in source
    _, source = write(tmp_path, figures=[plate(tmp_path, section=part, title="Drawn")])
    assert "Drawn" in next(each for each in re.split(r"<h[23]>", source) if each.startswith(heading))


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
    evil = verdict(
        **dict.fromkeys(("task", "model", "locus", "summary", "overturn"), HOSTILE),
        also=(Loss(locus=HOSTILE, place=HOSTILE, objects=(0,)),),
        repairs=tuple(replace(each, name=HOSTILE, words=HOSTILE, mends=HOSTILE) for each in REPAIRS),
        spent={HOSTILE: 1},
        evidence=tuple(replace(each, question=HOSTILE, kind=HOSTILE, finding=HOSTILE) for each in verdict().evidence),
    )
    outputs = (Output(condition=HOSTILE, text=HOSTILE, correct=True),)
    page, source = write(
        tmp_path,
        gap=GAP.assign(task=HOSTILE, subset=GAP.subset).drop_duplicates(["task", "subset", "condition"]),
        probes=PROBES.assign(target="card.0.rank" + HOSTILE),
        effects=EFFECTS.assign(experiment=HOSTILE),
        others={"path": LOCATED["path"].assign(condition=HOSTILE, span=HOSTILE)},
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
        ({"others": {"path": LOCATED["path"].drop(columns="named")}}, "the path table lacks the column 'named'"),
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
    for path in (*lost.saved.csv, lost.saved.png):
        path.unlink()
        with pytest.raises(RunError, match=f"figure 'gap' is not on disk: .*{path.name} was expected"):
            write(tmp_path, figures=[lost])


def test_a_new_report_replaces_the_old_one(tmp_path):
    write(tmp_path)
    write(tmp_path, verdict=verdict(summary="Another summary."))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert "Another summary." in (tmp_path / "report.html").read_text(encoding="utf-8")


class TestTheLocatorsTablesAlone:
    @pytest.fixture
    def lean(self, tmp_path):
        return lambda **others: write(tmp_path, probes=None, effects=None, others=others)

    def test_the_way_is_tabulated_at_fixed_sites(self, lean):
        _, source = lean(**LOCATED)
        told = section(source, "4 The path")
        assert "The way of the intermediate at fixed sites" in told
        assert "Probe accuracy of" not in told
        own = LOCATED["path"][(LOCATED["path"].condition == "direct") & (LOCATED["path"].site == "projector.out")]
        share = (own.named.mean() - 0.2) / 0.8
        row = rf"object patches direct projector\.out named rightly {share:.2f} \[\S+, \S+\] \S+ 40"
        assert re.search(row, told)
        assert "object words oracle lm.embed named rightly 1.00 [1.00, 1.00]" in told
        assert "lm.1.resid_post" not in told

    def test_its_patches_and_controls_are_listed(self, lean):
        _, source = lean(**LOCATED)
        patches = section(source, "8 What makes a difference")
        for row in ("needs up to which layer", "hold do answers come back", "given do answers come back"):
            assert row in patches
        assert re.search(r"hold [^?]+\? 5 30 given", patches)
        assert "below margin" not in patches
        controls = section(source, "9 Controls")
        for row in ("Control task, named rightly", "Control task, told apart", "Probes of the words"):
            assert row in controls
        held = LOCATED["hold"][LOCATED["hold"].group.isin([f"g{k}" for k in range(30)])]
        share = held[held.experiment == "hold_control"].groupby("target_site").right.mean()
        assert f"Partner's image states held: failed answers that come right {share.min():.2f} to" in controls
        assert "untrained" not in controls

    def test_what_was_not_asked_is_not_told(self, lean):
        _, source = lean()
        assert "Nothing was read from inside the model" in section(source, "4 The path")
        assert "No state was patched" in section(source, "8 What makes a difference")
        assert "The tables hold no control." in section(source, "9 Controls")
        _, source = lean(path=LOCATED["path"])
        assert "named rightly" in section(source, "4 The path")
        assert "told apart" not in source
        assert "No state was patched" in section(source, "8 What makes a difference")

    def test_sections_and_numbers_are_those_of_any_run(self, lean):
        page, source = lean(**LOCATED)
        assert re.findall(r"<h2>(.*?)</h2>", source) == HEADINGS
        tables = re.findall(r"Table (\d+)\. ", page.text)
        assert tables == [str(k + 1) for k in range(source.count("<table"))]

    def test_beside_probes_and_effects_they_stand_as_well(self, tmp_path):
        _, source = write(tmp_path, others=LOCATED)
        assert "The way of the intermediate at fixed sites" in section(source, "4 The path")
        assert "Probe accuracy of card.*.rank" in section(source, "4 The path")
        assert re.search(r"hold .* denoise ", section(source, "8 What makes a difference"))


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


def test_the_command_tells_what_was_asked_and_not_usual():
    asked = asdict(Settings(model="a folder/m", n=24, batch_size=8, sites=("lm.embed", "lm.*.resid_post")))
    told = again(asked)
    assert told.startswith("seamscope locate --model 'a folder/m' --task cards.sum --n 24 --seed 0 --sites lm.embed")
    assert told.endswith("--batch-size 8 --out FOLDER")
    assert "engine" not in told
    assert again({**asked, "sites": list(asked["sites"])}) == told
    assert again({**asked, "pool": "last"}) == ""
    assert again({**asked, "made_from": {"model": "1"}}) == told


def test_settings_are_flattened():
    assert settings_rows({"a": {"b": 1}, "c": [2]}) == [("a.b", "1"), ("c", "[2]")]


def test_the_sample_of_a_figure_is_read_from_its_own_tables(tmp_path):
    def told(**tables) -> str:
        saved = figures.save(
            figures.gap_bars(GAP), tmp_path, "it", data={k: pd.DataFrame(t) for k, t in tables.items()}
        )
        return shown(replace(plate(tmp_path), saved=saved), tmp_path)["sample"]

    probed, patched = {"n_rows": [1200], "accuracy_low": [0.1]}, {"n": [20, 24, None]}
    assert told(a=patched) == "n = 20 to 24 items."
    assert told(a=probed, b=patched) == f"n = 20 to 24 items. n = 1,200 rows (items and their partners). {RESAMPLED}"
    assert told(a={"x": [1]}) == told(a={}) == ""
