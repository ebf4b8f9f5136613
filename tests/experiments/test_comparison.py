from __future__ import annotations

import re
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from seamscope.experiments import Run, Settings, Study, _demo, figures
from seamscope.experiments._comparison import Compared, write_comparison
from seamscope.experiments._demo import PLANTED, demonstrate
from seamscope.experiments._plate import Plate, Words
from seamscope.experiments._verdict import LOCI, Loss
from seamscope.experiments.organism import faults
from seamscope.hooks import RunError, SiteError

from ._synthetic import gap_table, verdict
from .test_report import HOSTILE, Page

GAP = gap_table()
UNREAD = Loss(locus="not_used", place=None, objects=(1,))
EVIL = Loss(locus=HOSTILE, place=HOSTILE, objects=(0,))


@pytest.fixture
def run(tmp_path) -> Compared:
    """A late model of which that is known."""
    report = tmp_path / "a run" / "report.html"
    report.parent.mkdir()
    report.touch()
    told = verdict(place="lm.3.resid_post")
    return Compared(name="late", verdict=told, gap=GAP, report=report, truth="too_late", place="lm.2.resid_post")


@pytest.fixture
def plate(tmp_path) -> Plate:
    saved = figures.save(figures.gap_bars(GAP), tmp_path / "figures", "models", data=GAP, dpi=60)
    words = Words(title="Models", caption="Read it so.", controls="an oracle.", caveat="where.", alt="Bars.")
    return Plate(saved=saved, words=words, section="models")


def rows(folder, runs, **options) -> list[str]:
    """The text of each row of the table."""
    source = write_comparison(folder, runs, **options).read_text(encoding="utf-8")
    body = re.search(r"<tbody>(.*?)</tbody>", source, flags=re.DOTALL)[1]
    return [Page(row).text for row in re.findall(r"<tr>.*?</tr>", body, flags=re.DOTALL)]


def test_models_stand_side_by_side(tmp_path, run):
    natural = replace(
        run,
        name="natural",
        truth=None,
        place=None,
        verdict=verdict(also=(UNREAD,)),
    )
    late, other = rows(tmp_path, [run, natural])
    assert late == (
        "late report cards.sort, n = 200 too late lm.2.resid_post too late decoder layer 3 (interval: 2 to 4) "
        "✓ class , ✓ place 0.94 0.31 [0.25, 0.37] 0.86 [0.81, 0.91] 0.93 [0.89, 0.97]"
    )
    assert "not known too late , also not used decoder layer 3 (interval: 2 to 4) – 0.94" in other


@pytest.mark.parametrize(
    ("truth", "place", "found", "told"),
    [
        ("too_late", "lm.4.resid_post", "lm.3.resid_post", "✓ class , ✓ place"),
        ("too_late", "lm.5.resid_post", "lm.3.resid_post", "✓ class , ✗ place"),
        ("overwritten", "lm.3.resid_post", "lm.3.resid_post", "✗ class , ✓ place"),
        ("not_encoded", "vision.3.resid_post", "lm.3.resid_post", "✗ class , ✗ place"),
        ("too_late", "lm.3.resid_post", "projector.out", "✓ class , ✗ place"),
        ("too_late", "projector.out", "projector.out", "✓ class , ✓ place"),
        ("too_late", "lm.embed", "lm.0.resid_post", "✓ class , ✗ place"),
        ("too_late", "lm.4.resid_post", None, "✓ class , ✓ place"),
        ("too_late", None, "lm.3.resid_post", "✓ class 0.94"),
        ("none", None, None, "✗ class 0.94"),
    ],
)
def test_it_is_said_whether_it_is_as_known(tmp_path, run, truth, place, found, told):
    """Without a place, a verdict's layer is the decoder's."""
    layer = None if found == "projector.out" else 3
    given = replace(run, truth=truth, place=place, verdict=verdict(layer=layer, place=found))
    assert told in rows(tmp_path, [given])[0]


def test_a_verdict_without_a_place_has_not_found_one(tmp_path, run):
    assert "✗ place" in rows(tmp_path, [replace(run, verdict=verdict("none", None))])[0]


def test_what_is_known_is_counted(tmp_path, run):
    wrong = replace(run, truth="none", place=None)
    unknown = replace(run, truth=None, place=None)
    told = Page(write_comparison(tmp_path, [run, run, wrong, unknown], note="No score.").read_text()).text
    assert "Where do 4 models lose the intermediate visual result? Of 3 of them the answer is known" in told
    assert "names the right class in 2, and of the 2 with a known place" in told
    assert "one layer beside it in 2. No score." in told
    none = Page(write_comparison(tmp_path, [unknown]).read_text()).text
    assert "Where does one model lose the intermediate visual result? Of none of them the answer is known." in none


def test_links_lead_to_the_reports_and_to_the_figures_files(tmp_path, run, plate):
    page = Page(write_comparison(tmp_path, [run], title="Some models", figure=plate).read_text(encoding="utf-8"))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    assert links == ["a%20run/report.html", "figures/models.pdf", "figures/models.csv", "a%20run/report.html"]
    assert "Figure 1. Models. Read it so. n = 133 to 200 items." in page.text
    assert "Some models" in page.text
    assert [attrs["src"][:15] for tag, attrs in page.tags if tag == "img"] == ["data:image/png;"]
    assert not [attrs for tag, attrs in page.tags if tag == "figure" and "class" in attrs]


def test_a_wide_figure_takes_the_width_and_scrolls_where_it_is_too_wide(tmp_path, run, plate):
    saved = figures.save(Figure(figsize=(6.9, 2)), tmp_path / "wide", "wide", data=GAP, dpi=60)
    page = Page(write_comparison(tmp_path, [run], figure=replace(plate, saved=saved)).read_text(encoding="utf-8"))
    assert [attrs.get("class") for tag, attrs in page.tags if tag == "figure"] == ["wide"]


def test_it_loads_nothing_and_hostile_text_is_only_text(tmp_path, run, plate):
    evil = replace(
        run,
        name=HOSTILE,
        gap=GAP.assign(task=HOSTILE).drop_duplicates(["task", "subset", "condition"]),
        verdict=verdict(
            **dict.fromkeys(("task", "model", "locus", "summary", "overturn"), HOSTILE),
            also=(EVIL,),
        ),
    )
    path = write_comparison(tmp_path, [evil], title=HOSTILE, note=HOSTILE, figure=plate)
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert "<script" not in source
    assert "{{ 7 * 7 }}" in page.text
    assert "default-src 'none'" in source
    assert not [tag for tag, attrs in page.tags if tag in ("script", "link", "iframe") or "onerror" in attrs]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"truth": "lat"}, RunError, "unknown class of a loss 'lat'"),
        ({"place": "lm.2.nowhere"}, SiteError, r"unknown site 'lm\.L\.nowhere'"),
        ({"gap": GAP[GAP.task != "cards.sort"]}, RunError, "unknown task of the gap table 'cards.sort'"),
        ({"gap": GAP.drop(columns="low")}, RunError, "the gap table lacks the column 'low'"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, run, changes, error, message):
    with pytest.raises(error, match=message):
        write_comparison(tmp_path, [replace(run, **changes)])
    run.report.unlink()
    with pytest.raises(RunError, match="the report of 'late' is not on disk"):
        write_comparison(tmp_path, [run])
    with pytest.raises(RunError, match="no run was given"):
        write_comparison(tmp_path, [])
    assert not (tmp_path / "comparison.html").exists()


def test_the_demonstration_shows_models_of_the_development_half_alone() -> None:
    shown = [faults()[name] for name in PLANTED]
    assert not [fault.name for fault in shown if fault.held_back]
    losses = {fault.locus for fault in shown}
    assert losses == {*LOCI} - {"cannot_tell"}  # one of each class, and a healthy one


@pytest.mark.parametrize("small", [True, False])
def test_only_a_small_model_is_located_beside_the_planted_ones(tmp_path, monkeypatch, small):
    sent = []

    def noting(act, plan, **options):
        sent.extend(each.name for each in plan)
        return [act(each) for each in plan]

    monkeypatch.setattr(_demo, "is_small", lambda _: small)
    monkeypatch.setattr(_demo, "side_by_side", noting)
    own, planted = "fault:none.composing-cards.sum", "taught-unlearned-cards.sum"
    study = Study(Run(tmp_path / "run", Settings(model=own, n=20)))
    page, found = demonstrate(study, planted=[planted])
    assert sent == ([own, planted] if small else [planted])
    assert [(each.name, each.truth, each.verdict.locus) for each in found] == [
        (own, None, "none"),
        (planted, "text_skill", "text_skill"),
    ]
    assert page == tmp_path / "run" / "comparison.html"
