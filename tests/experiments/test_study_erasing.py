"""`seamscope erase` on the shipped organism: what is erased where, beside what probes read; refusals, and resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from seamscope.experiments import Run, Settings, Study, _cli, _model, _study_erasing
from seamscope.experiments._erasing_effects import WARNING
from seamscope.experiments._study_erasing import _can_be_pushed, _sample, _spans
from seamscope.experiments.tasks import get
from seamscope.hooks import RunError, TaskError, Vlm

SITES = ("projector.out", "lm.7.resid_post")
ASKED = ("--n", "12", "--sites", SITES[0], "--sites", SITES[1], "--spans", "objects+reading")
RANKS = {f"card.{k}.rank" for k in range(3)}
CELL = ["condition", "site", "span", "variable"]

Making = Callable[..., Study]


def erase(folder: Path, *words: str) -> Any:
    return CliRunner().invoke(_cli.app, ["erase", "--out", str(folder), *words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which everything is finished, and what was said."""
    folder = tmp_path_factory.mktemp("erasing") / "run"
    result = erase(folder, *ASKED, "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr == ""
    return folder, json.loads(result.stdout)


@pytest.fixture
def making(organism: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Making:
    """Studies of the organism, of which a model that runs is an error."""
    monkeypatch.setattr(_model, "load_vlm", lambda *_, **__: organism)
    monkeypatch.setattr(Vlm, "score", lambda *_, **__: pytest.fail("the model ran"))
    return lambda **asked: Study(Run(tmp_path / "run", Settings(**{"sites": SITES, "n": 12, **asked})))


def records(folder: Path, *rows: dict[str, Any]) -> str:
    """A file of records, two by two each other's partners, with a picture for each two."""
    for k, item in enumerate(get("cards.sort").items(len(rows) // 2)):
        item.image.save(folder / f"{k}.png")
    said = [{"question": "Which?", "intermediate": [word], "answer": word} for word in ("5", "ace")]
    lines = [
        said[k % 2] | {"id": str(k), "pair": str(k ^ 1), "image": f"{k // 2}.png"} | row for k, row in enumerate(rows)
    ]
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(folder / "mine.jsonl")


def test_the_variables_of_the_answer_are_erased_where_they_stand_and_where_it_is_made(run: Any) -> None:
    erased = pd.DataFrame(run[1]["erased"])
    assert set(erased.condition) == {"direct"}
    assert set(erased.variable) == {*RANKS, "sum"}, "an answer does not depend on suits"
    assert {(row.site, row.span) for row in erased[erased.variable == "sum"].itertuples()} == {
        (site, "last") for site in SITES[1:]
    }
    own = erased[erased.span != "last"]
    assert len(own) == 3 * len(SITES)
    assert (own.span == "image.object." + own.variable.str[5]).all()
    assert (erased.n == 12).all()
    assert ((erased.changed > 0) & (erased.random_changed > 0)).all()
    assert (erased.q >= erased.p).all()


def test_what_nobody_reads_has_no_effect(run: Any) -> None:
    """After the last layer no position but the last is read; before it, what is taken away is missed."""
    for name in ("erased", "pushed"):
        table = pd.DataFrame(run[1][name])
        last = table[(table.site == SITES[1]) & (table.span != "last")]
        assert len(last)
        assert (last[["effect", "random_effect", "difference"]] == 0).all(axis=None)
    erased = pd.DataFrame(run[1]["erased"])
    assert (erased[erased.site == SITES[0]].effect != 0).all()


def test_each_cell_stands_beside_its_probe(run: Any) -> None:
    folder, found = run
    pairs = pd.DataFrame(found["decodable_causal"]).set_index(CELL)
    probes = pd.read_csv(folder / "probes.csv").rename(columns={"target": "variable"}).set_index(CELL)
    erased = pd.DataFrame(found["erased"]).set_index(CELL)
    assert set(pairs.index) == set(erased.index)
    assert pairs.accuracy.to_list() == pytest.approx(probes.loc[pairs.index].accuracy.to_list())
    assert pairs.difference.to_list() == pytest.approx(erased.loc[pairs.index].difference.to_list())
    assert set(pairs.warning) == {WARNING, found["warning"]}


def test_pushed_is_what_partners_differ_in(run: Any) -> None:
    pushed = pd.DataFrame(run[1]["pushed"])
    assert set(pushed.variable) <= {*RANKS, "sum"}
    task = get("cards.sum")
    items = task.items(12)
    differ = {name: sum(item.variables[name] != task.partner(item).variables[name] for item in items) for name in RANKS}
    assert len(pushed)
    for row in pushed.itertuples():
        assert row.variable not in differ or row.n <= differ[row.variable]


def test_a_finished_run_needs_no_model(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = run
    assert {f"{name}.csv" for name in ("erased", "pushed", "decodable_causal")} <= {
        file.name for file in folder.iterdir()
    }
    figure = Path(found["figure"])
    assert figure == folder / "figures/decodable_causal.pdf"
    before = figure.read_bytes()
    figure.unlink()
    monkeypatch.setattr(_model, "load_vlm", lambda *_, **__: pytest.fail("a finished run loaded the model"))
    assert json.loads(erase(folder, *ASKED, "--json").stdout) == found
    assert figure.read_bytes() == before
    shown = erase(folder, *ASKED).stdout
    assert WARNING in shown
    assert "card.0.rank image.object.0" in shown
    assert shown.count("difference_high") == shown.count("difference_high    q") == 2
    missing = {"card.0.rank", "card.1.rank", "card.2.rank", "sum"} - {row["variable"] for row in found["pushed"]}
    assert all(f"note: {name} was not pushed" in shown for name in missing)


def test_interrupted_between_two_tables_it_goes_on(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = run
    (folder / "pushed.csv").unlink()
    monkeypatch.setattr(_study_erasing, "erase_sweep", lambda **_: pytest.fail("a finished table was made again"))
    assert json.loads(erase(folder, *ASKED, "--json").stdout)["pushed"] == found["pushed"]


def test_spans_are_those_that_a_run_holds() -> None:
    assert _spans(("objects", "question", "last", "reading"), boxed=True) == ["objects", "last"]
    assert _spans(("objects+reading",), boxed=True) == ["objects", "last"]
    assert _spans(("reading",), boxed=True) == ["last"]
    assert _spans(("objects", "last"), boxed=False) == ["last"]


@pytest.mark.parametrize("spans", [("question",), ("image", "answer")])
def test_a_run_without_their_spans_is_refused(making: Making, spans: tuple[str, ...]) -> None:
    with pytest.raises(RunError, match="there is nothing to erase; --spans must name objects or last"):
        _ = making(spans=spans, sites=("lm.0.resid_post",)).erasing


def test_records_without_boxes_have_no_objects_to_erase(making: Making, tmp_path: Path) -> None:
    task = records(tmp_path, *({"variables": {"step.0": str(k % 3)}} for k in range(12)))
    with pytest.raises(RunError, match="--spans must name last, where variables stand"):
        _ = making(task=task, spans=("objects",), sites=("lm.0.resid_post",)).erasing


@pytest.mark.parametrize("labels", [["a"] * 12, ["a", "b"] * 5 + ["a", None], ["a", "b"] * 5 + ["a", ""]])
def test_a_variable_needs_two_labels_and_one_in_every_item(making: Making, tmp_path: Path, labels: list[Any]) -> None:
    task = records(tmp_path, *({"variables": {"first": label} if label is not None else {}} for label in labels))
    with pytest.raises(TaskError, match="no variable has a label in every item, and two different ones"):
        _ = making(task=task).erasing


def test_records_without_variables_are_refused(making: Making, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="the records have no field 'variables'"):
        _ = making(task=records(tmp_path, *[{}] * 12)).erasing


def test_what_partners_share_is_not_pushed(making: Making, tmp_path: Path) -> None:
    rows = [{"variables": {"same": str(k // 2 % 2), "other": str(k % 2), "own": str(k)}} for k in range(12)]
    study = making(task=records(tmp_path, *rows), spans=("last",), sites=SITES[1:])
    pushable = {name: _can_be_pushed(_sample(study), name) for name in ("same", "other", "own")}
    assert pushable == {"same": False, "other": True, "own": False}
    rows = [{"variables": {"same": str(k // 2 % 2)}} for k in range(12)]
    study = making(task=records(tmp_path, *rows), spans=("last",), sites=SITES[1:])
    assert study.pushing.empty
    assert "variable" in study.pushing
