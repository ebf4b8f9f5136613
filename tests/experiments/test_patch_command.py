"""`seamscope patch`: killed and resumed it gives the same table, whoever makes its parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from seamscope.experiments import Run, Settings, Study
from seamscope.experiments.sweeps import screen_agreement
from seamscope.hooks import RunError, SiteError

ASKED = ["patch", "-e", "denoise", "-e", "noise", "--by", "token", "--n", "8", "--spans", "last"]
SITES = ["--sites", "lm.1.resid_post", "--sites", "lm.5.mlp_out"]
NAME = "denoise+noise.token"
# the command, with the seconds set that other processes must save
SCRIPT = """
import sys
from seamscope.experiments import _cli
from seamscope.probes import _side_by_side
_side_by_side.START = _side_by_side.WORTH = float(sys.argv.pop(1))
_cli.main()
"""


def start(folder: Path, worth: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(worth), *ASKED, *SITES, "--out", str(folder), "--json"]
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    environment = {**os.environ, "LOKY_MAX_CPU_COUNT": "2"}
    return subprocess.Popen(command, start_new_session=True, text=True, env=environment, **pipes)


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".patched.{NAME}.parts/[0-9]*.csv"))


@pytest.mark.parametrize("worth", [-1.0, 1e9], ids=["in processes", "in one"])
def test_a_sweep_that_was_killed_gives_the_same_table(tmp_path: Path, worth: float) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    other = start(whole, 1e9)
    victim = start(killed, worth)
    while not (2 <= len(parts(killed)) < 8):
        assert victim.poll() is None, victim.communicate()
        time.sleep(0.02)
    os.killpg(victim.pid, signal.SIGKILL)
    victim.communicate()
    kept = {file.name: file.stat().st_mtime_ns for file in parts(killed)}
    assert not (killed / f"patched.{NAME}.csv").exists()
    made = json.loads(other.communicate()[0])
    again = start(killed, worth)
    while len(parts(killed)) < len(kept) + 1 and again.poll() is None:
        time.sleep(0.02)
    assert {name: (killed / f".patched.{NAME}.parts" / name).stat().st_mtime_ns for name in kept} == kept or (
        again.poll() == 0
    )
    resumed = json.loads(again.communicate()[0])
    for file in (f"patched.{NAME}.csv", f"effects.{NAME}.csv"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes()
    assert {**made, "run": None, "figures": []} == {**resumed, "run": None, "figures": []}
    assert [Path(file).name for file in made["figures"]] == [Path(file).name for file in resumed["figures"]]
    assert all(Path(file).exists() for file in resumed["figures"])
    assert not list(killed.glob(".*parts"))
    assert len(made["best"]) == 2


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("patch") / "run"
    return Study(Run(folder, Settings(n=6, sites=("lm.3.resid_post", "lm.3.head_z"), spans=("objects", "last"))))


def test_every_token_of_the_prompt_is_patched_by_itself(study: Study) -> None:
    rows = study.patched(["denoise"], by="token")
    one = rows[(rows.id == rows.id[0]) & (rows.target_site == "lm.3.resid_post")]
    batch = study.vlm.encode([study.task.partner(study.items[0])], condition="direct", answers=[study.items[0].answer])
    assert one.position.tolist() == [p for p in range(batch.width) if p not in batch.positions("answer")[0]]
    assert not one.duplicated(["span", "token"]).any()
    image = one[one.span.str.startswith("image")]
    assert image.position.tolist() == batch.positions("image")[0].tolist()
    assert (one[one.position == 0].patched == one[one.position == 0].base).all()  # before the picture: the same


def test_heads_are_patched_by_themselves(study: Study) -> None:
    rows = study.patched(["noise"], by="head")
    assert set(rows.target_site) == {"lm.3.head_z"}
    assert sorted(rows["head"].unique()) == list(range(study.vlm.n_heads))
    effects = study.patch_effects(["noise"], by="head")
    assert len(effects) == 2 * study.vlm.n_heads
    assert (effects.low <= effects.effect).all()


def test_heads_need_a_site_that_has_them(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Settings(n=6, sites=("lm.3.resid_post",), spans=("last",)))
    with pytest.raises(RunError, match="there are no heads to patch; --sites must name sites such as lm"):
        Study(run).patched(["noise"], by="head")


def test_tables_are_read_again(study: Study) -> None:
    first = study.patched(["denoise"], by="token")
    pd.testing.assert_frame_equal(first, Study(study.run).patched(["denoise"], by="token"))


def test_what_a_model_cannot_do_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    study = Study(Run(tmp_path / "run", Settings(n=6, attn_implementation="sdpa")))
    with pytest.raises(SiteError, match="needs attention weights"):
        study.cut("attention")
    assert not (tmp_path / "run").exists()


def test_the_route_from_the_objects_is_cut_in_all_layers_at_once(study: Study) -> None:
    rows = study.cut("severed")
    assert set(rows.experiment) == {"severed", "severed_control"}
    assert set(zip(rows["first"], rows["last"], strict=True)) == {(0, study.vlm.n_layers - 1)}
    assert len(study.cut_effects("severed")) == 2


@pytest.mark.parametrize("name", ["knockout", "exit"])
def test_cutting_has_a_table_of_its_own(study: Study, name: str) -> None:
    rows = study.cut(name)
    assert set(rows.experiment) == ({"knockout", "knockout_control"} if name == "knockout" else {"exit"})
    effects = study.cut_effects(name)
    assert effects["first"].max() == (study.vlm.n_layers - 2 if name == "knockout" else study.vlm.n_layers - 1)
    assert effects.effect.min() < -1  # the first layers read the image
    assert effects[effects["first"] == effects["first"].max()].effect.abs().max() < 0.5


def test_attention_that_is_put_elsewhere(tmp_path: Path) -> None:
    asked = Settings(n=6, attn_implementation="eager")
    effects = Study(Run(tmp_path / "run", asked)).cut_effects("attention")
    assert set(effects.experiment) == {f"attention_{way}" for way in ("uniform", "reversed", "shuffled")}
    question = effects[(effects.queries == "last") & (effects["keys"] == "question") & (effects["first"] == 0)]
    assert question[question.experiment == "attention_reversed"].effect.item() < -0.5
    assert effects[effects["first"] == 7].effect.abs().max() < 0.5


def test_the_screen_agrees_with_what_is_measured(study: Study) -> None:
    table = study.screen()
    agreement = screen_agreement(table).set_index("measured")
    assert agreement.loc["top", "rank_correlation"] > 0.5
    assert agreement.loc["top", "largest"] > 2 * agreement.loc["sample", "largest"]
    assert (table.measured == "top").sum() == (table.measured == "sample").sum() == 20
    assert table[table.measured == ""].exact.isna().all()
    assert table[table.measured != ""].n.between(1, 3).all()
    rows = study.patched(["denoise"], by="token")
    rows = rows[rows.groupby(["target_site", "span", "token"]).id.transform("count") == len(study.items)]
    assert set(table.target_site) == set(rows.target_site)
